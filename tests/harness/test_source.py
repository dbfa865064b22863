"""Digests of source change with every line that a run can depend on, and with no other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from harness import source
from harness.registry import method_class
from harness.source import method_digest

FILES = {
    "mine/__init__.py": "",
    "mine/idea.py": "from mine.base import Base\nfrom .parts import buffer\nclass Idea(Base):\n    pass\n",
    "mine/base.py": "from methods.sgd import SGD\nclass Base(SGD):\n    name = 'idea'\n",
    "mine/parts/__init__.py": "",
    "mine/parts/buffer.py": "def late():\n    import mine.deep\n",
    "mine/deep.py": "SIZE = 1\n",
    "mine/other.py": "class Other: pass\n",
}


def digest(folder: Path, **changed: str) -> str:
    """Return the digest of Idea with some files changed, as a fresh process would see it."""
    for name, text in {**FILES, **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    source._method_digest.cache_clear()
    return method_digest(importlib.import_module("mine.idea").Idea)


@pytest.mark.parametrize("name", ["mine/idea.py", "mine/base.py", "mine/parts/buffer.py", "mine/deep.py"])
def test_a_change_in_what_a_method_is_made_of_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = digest(tmp_path)
    assert digest(tmp_path, **{name: FILES[name] + "# changed\n"}) != before
    assert digest(tmp_path) == before


def test_a_change_in_another_method_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert digest(tmp_path, **{"mine/other.py": "class Other: x = 1\n"}) == digest(tmp_path)


def test_a_base_in_another_package_belongs_to_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = digest(tmp_path)
    real = source._file
    changed = tmp_path / "sgd.py"
    changed.write_text("# another sgd\n")
    monkeypatch.setattr(source, "_file", lambda module: changed if module == "methods.sgd" else real(module))
    assert digest(tmp_path) != before


def test_methods_that_share_no_code_have_other_digests() -> None:
    assert method_digest(method_class("er")) != method_digest(method_class("derpp"))


def test_a_class_without_a_file_has_a_digest_too() -> None:
    assert method_digest(type("Typed", (), {"__module__": "__main__"})) == method_digest(
        type("Other", (), {"__module__": "__main__"})
    )
