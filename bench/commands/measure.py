"""`clmem measure`: the memory of one method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clmem.bench.options import (
    AsJson,
    BatchSize,
    BudgetName,
    BufferSize,
    DataRoot,
    Execution,
    Jobs,
    Network,
    Others,
    Settings,
    Target,
    Weights,
    Width,
    is_sound,
    make_directory,
    make_sources,
    memory_spec,
    path_option,
)
from clmem.bench.progress import Bars
from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.results.record import RunResult, save_result
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.targets import allocator_of


def measure(
    method: Annotated[str, typer.Argument(help="Method; see `clmem list methods`.")],
    stream: Annotated[str, typer.Option(help="Stream; see `clmem list streams`.")] = "synthetic-cifar10",
    network: Network = "resnet18",
    width: Width = 64,
    weights: Weights = None,
    target: Target = "cpu",
    batch_size: BatchSize = 32,
    buffer_size: BufferSize = 15,
    replay_size: Annotated[
        int | None, typer.Option(help="Samples replayed per step (default: the smaller of batch and buffer).")
    ] = None,
    execution: Execution = "plain",
    settings: Settings = None,
    out: Annotated[Path | None, path_option(help="Also save the result file into this directory.")] = None,
    jobs: Jobs = None,
    budget: BudgetName = None,
    others: Others = None,
    snapshot: Annotated[
        Path | None,
        path_option(help="On CUDA, keep the allocator's history in this file, for pytorch.org/memory_viz."),
    ] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Measure one method's memory: its peak, role by role, adding up to the byte."""
    spec = memory_spec(
        method=method,
        stream=stream,
        network=network,
        width=width,
        weights=weights,
        target=target,
        budget=budget,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=replay_size,
        execution=execution,
        settings=settings,
    )
    sources = make_sources(data_root, weights, others)
    from clmem.harness.runs.checks import check_spec

    check_spec(spec, sources)
    if snapshot is not None and allocator_of(spec.target) == "cpu":
        raise UsageError(f"--snapshot keeps the history of CUDA's allocator, and target {target!r} has none")
    if snapshot is not None and snapshot.is_dir():
        raise UsageError(f"--snapshot {snapshot} is a folder; give the path of a file")
    for directory in (out, snapshot and snapshot.parent):
        if directory is not None:
            make_directory(directory)
    results: list[RunResult] = []
    with Bars(Console(stderr=True), 1, announce=False) as bars:
        run_specs([spec], results.append, jobs=jobs, sources=sources, snapshot=snapshot, watcher=bars)
    result = results[0]
    if out is not None:
        save_result(out, result)
    if result.footprint is None and not as_json:
        raise ClmemError(f"{method} on {stream}: {result.status}: {result.reason}")
    from clmem.reports.terminal.runs import measure_json, measure_table

    print(json.dumps(measure_json(result), indent=1) if as_json else measure_table(result))
    raise typer.Exit(0 if is_sound(result) else 1)
