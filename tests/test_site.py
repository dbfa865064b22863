"""The site holds every document, every published page with its plots, and the modules that programs import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_site_is_made_of_documents_pages_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert found is not None
    assert found.loader is not None
    site = importlib.util.module_from_spec(found)
    found.loader.exec_module(site)
    monkeypatch.setattr(site, "SOURCE", tmp_path / "source")
    site.assemble()
    made = {str(path.relative_to(tmp_path / "source")) for path in (tmp_path / "source").rglob("*.*")}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reference/index.md"} <= made
    for pattern in ("docs/*.md", "reports/published/*/*.md", "reports/published/*/plots/*.png"):
        assert {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)} <= made
    index = (tmp_path / "source" / "reference" / "index.md").read_text(encoding="utf-8")
    lines = [line for line in index.splitlines() if line.startswith("- ")]
    assert len(lines) == len(site.MODULES)
    assert all(line.split(": ", 1)[1] for line in lines), "every module says what it is for"
