"""Pages that have the same plot share one file of it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from clmem.reports import publish as publishing
from clmem.reports.publish import publish, share_plots


def page(folder: Path, plots: dict[str, bytes]) -> Path:
    """Write a page with plots beside it; return its path."""
    (folder / "plots").mkdir(parents=True)
    for name, content in plots.items():
        (folder / "plots" / name).write_bytes(content)
    path = folder / "report.md"
    path.write_text("\n".join(f"![a plot](plots/{name})" for name in plots), encoding="utf-8")
    return path


def test_pages_share_the_plots_that_are_the_same(tmp_path: Path) -> None:
    many = page(tmp_path / "a", {"derpp.png": b"derpp", "er.png": b"er of a", "sgd-2.png": b"sgd"})
    few = page(tmp_path / "b", {"er.png": b"er of b", "sgd.png": b"sgd"})
    share_plots([many, few])
    assert few.read_text(encoding="utf-8").split("](") == ["![a plot", "plots/er.png)\n![a plot", "plots/sgd.png)"]
    assert many.read_text(encoding="utf-8").split("\n") == [
        "![a plot](plots/derpp.png)",
        "![a plot](plots/er.png)",
        "![a plot](../b/plots/sgd.png)",
    ]
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert found == {"a/plots/derpp.png", "a/plots/er.png", "b/plots/er.png", "b/plots/sgd.png"}


def test_pages_in_one_folder_share_their_plots(tmp_path: Path) -> None:
    one = page(tmp_path, {"first.png": b"same", "second.png": b"same"})
    share_plots([one])
    assert one.read_text(encoding="utf-8").count("plots/first.png") == 2
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["first.png"]


def test_a_claim_is_written_from_the_results_of_its_folder_or_of_its_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of one card's results has a page of its own about the claim."""
    read: dict[str, list[str]] = {}
    monkeypatch.setattr(publishing, "load_measurements", lambda claim, folders: [folder.name for folder in folders])

    def write_page(claim: Any, found: list[str], fixes: Any, page: Path) -> Path:
        read[page.parent.name] = found
        return page

    monkeypatch.setattr(publishing, "write_page", write_page)
    for folder, results in (("claims", "table1-memory"), ("h100", "h100")):
        kept = tmp_path / "results" / results
        kept.mkdir(parents=True)
        (kept / "sgd--noise--memory--0.json").write_text("{}")
        (tmp_path / "published" / folder).mkdir(parents=True)
        (tmp_path / "published" / folder / "lightcl.md").write_text("")
        with tarfile.open(tmp_path / "published" / folder / "results.tar.gz", "w:gz") as tar:
            tar.add(kept, results)
    publish(tmp_path / "published")
    assert read == {"claims": ["table1-memory"], "h100": ["h100"]}
