"""`clmem predict`: the memory of one method, without running it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from clmem.bench.options import (
    AsJson,
    BatchSize,
    BufferSize,
    DataRoot,
    Execution,
    Network,
    Settings,
    Target,
    Weights,
    Width,
    make_sources,
    memory_spec,
    path_option,
)
from clmem.harness.errors import UsageError
from clmem.harness.files import expand
from clmem.harness.results.record import LONGEST_PATH, RunResult, load_results
from clmem.harness.specs.run import Sources
from clmem.harness.text import clean, some

LONGEST_REASON = 2000
"""Characters of a reason why a run is not predicted."""


def predict(
    method: Annotated[str | None, typer.Argument(help="Method; see `clmem list methods`.")] = None,
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
    against: Annotated[
        Path | None,
        path_option(
            help="Instead of a METHOD: every memory run in this directory, under its own settings, and the error."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="With --against: also keep the predictions there, for its report.")
    ] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Predict one method's memory, role by role, without a device and without running a kernel."""
    if (method is None) == (against is None):
        raise UsageError("predict takes a METHOD or --against DIRECTORY, and not both")
    if against is not None:
        _against(against, make_sources(data_root, weights), as_json, keep)
        return
    spec = memory_spec(
        method=method,
        stream=stream,
        network=network,
        width=width,
        weights=weights,
        target=target,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=replay_size,
        execution=execution,
        settings=settings,
    )
    sources = make_sources(data_root, weights)
    from clmem.harness.answers.prediction import predict as predicted
    from clmem.harness.runs.checks import check_spec
    from clmem.reports.terminal.runs import measure_json, measure_table

    check_spec(spec, sources, here=False)
    result = predicted(spec, sources)
    print(json.dumps(measure_json(result), indent=1) if as_json else measure_table(result))


def _against(directory: Path, sources: Sources, as_json: bool, keep: bool) -> None:
    """Print what is predicted beside what was measured, for every memory run of a directory."""
    directory = expand(directory)
    found = load_results(directory) if directory.is_dir() else []
    measured = [run for run in found if run.status == "ok" and run.allocator is not None]
    shown = clean(str(directory), LONGEST_PATH)
    if not measured:
        raise UsageError(f"{shown} holds no memory runs; run `clmem run` or `clmem measure --out {shown}` first")
    from clmem.harness.answers.prediction import predicted_peaks, why_incomparable
    from clmem.reports.data.predictions import save_predictions
    from clmem.reports.terminal.runs import prediction_json, prediction_table

    reasons = [why_incomparable(run) for run in measured]
    left_out = [(run, reason) for run, reason in zip(measured, reasons, strict=True) if reason is not None]
    if len(left_out) == len(measured):
        raise UsageError(f"no run in {shown} can be compared with a prediction: {left_out[0][1]}")
    _explain("left out", left_out)
    measured = [run for run, reason in zip(measured, reasons, strict=True) if reason is None]
    predicted = predicted_peaks(measured, sources)
    _explain("not predicted", [(run, peak.reason) for run, peak in zip(measured, predicted, strict=True)])
    sizes = [peak.peak_bytes for peak in predicted]
    if keep:
        save_predictions(directory, measured, sizes)
    print(prediction_json(measured, sizes) if as_json else prediction_table(measured, sizes))


def _explain(what: str, reasons: Iterable[tuple[RunResult, str]]) -> None:
    """Say each reason once on stderr, with the methods of its runs; an empty reason is none."""
    methods: dict[str, dict[str, None]] = {}
    for run, reason in reasons:
        if reason:
            methods.setdefault(reason, {})[run.spec.method] = None
    for reason, names in methods.items():
        typer.echo(f"clmem: {what}: {some(list(names))}: {clean(reason, LONGEST_REASON)}", err=True)
