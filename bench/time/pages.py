"""A page for what a time benchmark found, so that it can be published with where it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from clmem.harness.files import write_text
from clmem.harness.results.environment import environment
from clmem.reports.markdown.tables import markdown_table

FOLDER = Path("results") / "times"


def write_page(name: str, title: str, note: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write `results/times/NAME.md` and print its table; note: what was timed, and by which command."""
    found = environment()
    code = str(found.get("commit"))[:10] + (" with uncommitted changes" if found.get("dirty") else "")
    where = (
        f"{found['device']} ({found['vectors']}), {found['cores']} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, commit {code}"
    )
    table = markdown_table(headers, rows)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_text(FOLDER / f"{name}.md", f"# {title}\n\n{note}\nMeasured on {where}.\n\n{table}\n")
    print(f"\n{table}")
