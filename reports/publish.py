"""Writes every published page anew from the results beside it, and stores no plot twice.

`python -m clmem.reports.publish reports/published` unpacks each folder's `results.tar.gz` for the time it takes, and
writes `report.md` and the claims' pages where they are. Pages that nothing here writes (times, tuning) stay.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from clmem.harness.files import write_text
from clmem.harness.results.record import RESULT_FILES
from clmem.reports.claims.claim import claim_names, load_claim
from clmem.reports.claims.measurements import load_measurements
from clmem.reports.claims.page import write_page
from clmem.reports.markdown.markup import link
from clmem.reports.plots.folder import plots_folder
from clmem.reports.report import write_report

ARCHIVE = "results.tar.gz"


def publish(published: Path) -> list[Path]:
    """Write the pages that lie in the folders of `published` anew, with their plots; return their paths.

    Raises OSError and UsageError where an archive or its results cannot be read.
    """
    pages = [
        page for page in sorted(published.glob("*/*.md")) if page.name == "report.md" or page.stem in claim_names()
    ]
    for folder in {plots_folder(page) for page in pages}:
        shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory() as temporary:
        for archive in published.glob(f"*/{ARCHIVE}"):
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
        for page in pages:
            if page.name == "report.md":
                write_report(Path(temporary) / page.parent.name, page)
            else:
                _write_claim(page, Path(temporary))
    share_plots(pages)
    return pages


def _write_claim(page: Path, results: Path) -> None:
    """Write the page of the claim that it is named after.

    It is made of the results in its own folder, or where that has none, of those of the claim's suites.
    """
    claim = load_claim(page.stem)
    own = results / page.parent.name
    folders = [own] if own.is_dir() else [results / name for name in claim.suites]
    write_page(
        claim, load_measurements(claim, [folder for folder in folders if any(folder.glob(RESULT_FILES))]), [], page
    )


def share_plots(pages: Sequence[Path]) -> None:
    """Delete each plot that another page has too, and lead to that page's; pages with few plots keep theirs."""
    plots = {page: sorted(plots_folder(page).glob("*.png")) for page in pages}
    first: dict[bytes, Path] = {}
    for page in sorted(pages, key=lambda page: (len(plots[page]), page)):
        text = page.read_text(encoding="utf-8")
        for plot in plots[page]:
            kept = first.setdefault(plot.read_bytes(), plot)
            if kept != plot:
                plot.unlink()
                place = os.path.relpath(kept.parent, page.parent)
                text = text.replace(f"(plots/{link(plot.name)})", f"({place}/{link(kept.name)})")
        write_text(page, text)


if __name__ == "__main__":
    for written in publish(Path(sys.argv[1])):
        print(written)
