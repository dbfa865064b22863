"""`clmem claims`: what a paper printed, recomputed and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clmem.bench.options import AsJson, path_option
from clmem.harness.errors import UsageError
from clmem.harness.text import clean


def claims(
    claim: Annotated[str, typer.Argument(help="A claim's name (see `clmem list claims`) or the path of its file.")] = (
        "lightcl"
    ),
    results: Annotated[
        list[Path] | None,
        path_option(
            "--results",
            help="Directory with results (repeatable; default: results/SUITE of each suite that the claim names).",
        ),
    ] = None,
    fixes: Annotated[
        list[str] | None,
        typer.Option(
            "--fix",
            help="Correct the paper's arithmetic: the name of a correction on the page (repeatable), or `all`.",
        ),
    ] = None,
    out: Annotated[Path | None, path_option(help="Write the page and its plots into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a published memory table: recompute each number, list what it leaves out, and show the same rows measured.

    The measurements are results of suites that it names. Run these suites first, or unpack the published results.
    """
    from clmem.harness.results.record import LONGEST_PATH, RESULT_FILES
    from clmem.reports.claims.claim import load_claim
    from clmem.reports.claims.measurements import load_measurements
    from clmem.reports.claims.page import claim_json, terminal, write_page
    from clmem.reports.claims.tables import within_tolerance

    chosen = load_claim(claim)
    named = [chosen.fix(name) for name in dict.fromkeys(fixes or []) if name != "all"]
    applied = chosen.fixes if "all" in (fixes or []) else named
    usual = (Path("results") / name for name in chosen.suites)
    given = results or []
    directories = given or [folder for folder in usual if any(folder.glob(RESULT_FILES))]
    by_target = load_measurements(chosen, directories)
    if given and not any(measurements.runs for measurements in by_target):
        raise UsageError(
            f"nothing in {', '.join(clean(str(folder)) for folder in given)} measures a row of the claim "
            f"{chosen.name!r}; its suites are "
            f"{', '.join(chosen.suites)} (`clmem run`)"
        )
    path = None if out is None else write_page(chosen, by_target, applied, out)
    if as_json:
        print(json.dumps(claim_json(chosen, by_target, applied), indent=1))
    else:
        print(terminal(chosen, by_target, applied))
        if path is not None:
            print(f"page: {clean(str(path), LONGEST_PATH)}")
    counts = [within_tolerance(chosen, "memory"), within_tolerance(chosen, "flops")]
    raise typer.Exit(0 if all(hit == known for hit, known in counts) else 1)
