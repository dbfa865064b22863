"""`clmem report`: result files into markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmem.bench.options import path_option
from clmem.harness.files import expand
from clmem.harness.text import clean


def report(
    directory: Annotated[Path, typer.Argument(help="A results directory.", parser=expand, metavar="PATH")],
    out: Annotated[Path | None, path_option(help="Where to write report.md and its plots (default: there).")] = None,
) -> None:
    """Write the markdown report of a results directory."""
    from clmem.harness.results.record import LONGEST_PATH

    print(clean(str(write_and_show(directory, out)), LONGEST_PATH))


def write_and_show(directory: Path, out: Path | None) -> Path:
    """Write the report of a directory, saying what is being drawn; return its path."""
    from rich.console import Console
    from rich.markup import escape

    from clmem.reports.report import write_report

    console = Console(stderr=True)
    with console.status("writing the report") as status:
        return write_report(
            directory, out, progress=lambda caption: status.update(escape(f"drawing: {clean(caption)}"))
        )
