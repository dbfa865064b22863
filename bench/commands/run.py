"""`clmem run`: a suite, and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clmem.bench.commands.report import write_and_show
from clmem.bench.groups import SuiteOptions, make_sources
from clmem.bench.options import DATA_ROOT, JOBS, OTHERS, AsJson, is_sound, path_option
from clmem.bench.suite_changes import (
    USUAL,
    load,
    only_methods,
    override,
    suite_file,
    which,
    with_methods,
    with_settings,
)
from clmem.harness.errors import UsageError
from clmem.harness.text import file_name

if TYPE_CHECKING:
    from clmem.harness.runs.directory import Reuse

MOST_SEEDS = 10_000


def run(
    options: SuiteOptions,
    suite: Annotated[
        str | None,
        typer.Argument(
            help="A suite's name (see `clmem list suites` and `clmem show SUITE`) or the path of a suite file (see "
            "`clmem new-suite`); default: quick."
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Run only this one of the suite's methods (repeatable). Without SUITE: run this method, whichever it "
            "is, under the conditions of the suite quick (`clmem show quick`).",
        ),
    ] = None,
    added: Annotated[
        list[str] | None,
        typer.Option("--add-method", help="Run this method too, which the suite does not have (repeatable)."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, 0 to N-1.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as method.key=value (repeatable).")
    ] = None,
    out: Annotated[
        Path | None,
        path_option(help="Results directory (default: results/SUITE; without SUITE the methods follow its name)."),
    ] = None,
    jobs: Annotated[int | None, JOBS] = None,
    others: Annotated[int | None, OTHERS] = None,
    data_root: Annotated[Path | None, DATA_ROOT] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what crashed or timed out.")] = False,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep results that older code made; they are measured again otherwise.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run everything again, whatever is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite and write its report. The same command completes what was interrupted."""
    if keep_old and fresh:
        raise UsageError("--keep-old keeps every result that is there and --fresh none; give one of them")
    path = suite_file(USUAL if suite is None else suite)
    chosen = load(path)
    said = ""
    if suite is None:
        said = which(chosen, methods or [])
        chosen = with_methods(chosen, [name for name in methods or [] if name not in chosen.methods])
    if methods:
        chosen = only_methods(chosen, methods)
    chosen = with_methods(chosen, added or [])
    chosen = override(chosen, options.changed() | ({} if seeds is None else {"seeds": list(range(seeds))}))
    chosen = with_settings(chosen, settings or [])
    from clmem.harness.learning.registry import check_method

    for name in chosen.methods:
        check_method(name)
    specs = chosen.specs()
    sources = make_sources(data_root, chosen.weights, others)
    from rich.console import Console

    from clmem.bench.progress import Bars
    from clmem.harness.runs.checks import check_spec
    from clmem.harness.runs.directory import run_suite

    for spec in specs:
        check_spec(spec, sources)
    own = file_name(f"{USUAL}-{'+'.join(methods)}") if suite is None and methods else path.stem
    directory = out or Path("results") / own
    reuse: Reuse = "all" if keep_old else "none" if fresh else "unchanged"
    if said:
        typer.echo(said, err=True)
    console = Console(stderr=True)
    with Bars(console, len(specs)) as bars:
        results = run_suite(chosen, directory, jobs=jobs, sources=sources, retry=retry, reuse=reuse, watcher=bars)
    report_path = write_and_show(directory, None)
    if as_json:
        print(json.dumps([result.model_dump(mode="json", by_alias=True) for result in results], indent=1))
    else:
        from clmem.reports.data.load import load_sections
        from clmem.reports.terminal.runs import summary

        print(summary(load_sections(directory)))
        print(f"report: {report_path}")
    raise typer.Exit(0 if all(is_sound(result) for result in results) else 1)
