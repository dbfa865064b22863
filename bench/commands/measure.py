"""`clmem measure`: the memory of one method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clmem.bench.groups import LimitedOptions
from clmem.bench.options import JOBS, METHOD, AsJson, is_sound, make_directory, path_option
from clmem.harness.errors import ClmemError, UsageError

if TYPE_CHECKING:
    from clmem.harness.results.record import RunResult


def measure(
    method: Annotated[str, METHOD],
    options: LimitedOptions,
    out: Annotated[Path | None, path_option(help="Also save the result file into this directory.")] = None,
    jobs: Annotated[int | None, JOBS] = None,
    snapshot: Annotated[
        Path | None,
        path_option(help="On CUDA, keep the allocator's history in this file, to open at pytorch.org/memory_viz."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure one method's memory: its peak, role by role, adding up to the byte."""
    spec, sources = options.memory_spec(method), options.sources()
    from clmem.harness.runs.checks import check_spec
    from clmem.harness.specs.targets import allocator_of

    check_spec(spec, sources)
    if snapshot is not None and allocator_of(spec.target) == "cpu":
        raise UsageError(f"--snapshot keeps the history of CUDA's allocator, and target {spec.target!r} has none")
    if snapshot is not None and snapshot.is_dir():
        raise UsageError(f"--snapshot {snapshot} is a folder; give the path of a file")
    for directory in (out, snapshot and snapshot.parent):
        if directory is not None:
            make_directory(directory)
    from rich.console import Console

    from clmem.bench.progress import Bars
    from clmem.harness.results.record import save_result
    from clmem.harness.runs.runner import run_specs

    results: list[RunResult] = []
    with Bars(Console(stderr=True), 1, announce=False) as bars:
        run_specs([spec], results.append, jobs=jobs, sources=sources, snapshot=snapshot, watcher=bars)
    result = results[0]
    if out is not None:
        save_result(out, result)
    if result.footprint is None and not as_json:
        raise ClmemError(f"{method} on {spec.stream_title}: {result.status}: {result.reason}")
    from clmem.harness.learning.registry import method_class
    from clmem.reports.terminal.runs import measure_json, measure_table

    if as_json:
        print(json.dumps(measure_json(result), indent=1))
    else:
        print(measure_table(result, uses_buffer=method_class(spec.method).uses_buffer))
    raise typer.Exit(0 if is_sound(result) else 1)
