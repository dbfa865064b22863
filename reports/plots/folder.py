"""Where a page's plots go: into its own folder and nowhere else."""

from __future__ import annotations

from pathlib import Path

from clmem.harness.errors import UsageError
from clmem.harness.results.record import LONGEST_PATH
from clmem.harness.text import clean


def plots_folder(page: Path) -> Path:
    """Return the folder for the plots of a page. Raises UsageError where that is a link, as a download may hold."""
    folder = page.parent / "plots"
    if folder.is_symlink():
        shown = clean(str(folder), LONGEST_PATH)
        raise UsageError(f"{shown} is a link to another place; delete it, or choose another folder with --out")
    return folder
