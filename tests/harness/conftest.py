"""Packages of others, installed for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from clmem.harness.networks.registry import architecture
from clmem.harness.runs import checks

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Lay out a distribution as pip would: files by name, and plug-ins as {name: "module:Class"} or as raw text."""
    before = set(sys.modules)

    def put(
        files: Mapping[str, str], methods: Mapping[str, str] | str, name: str = "plugin", group: str = "clmem.methods"
    ) -> None:
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = methods if isinstance(methods, str) else "".join(f"{key} = {at}\n" for key, at in methods.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        monkeypatch.syspath_prepend(str(folder))
        checks._put_together.cache_clear()
        checks._normalises_one_value.cache_clear()
        architecture.cache_clear()

    yield put
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
    checks._put_together.cache_clear()
    checks._normalises_one_value.cache_clear()
    architecture.cache_clear()
