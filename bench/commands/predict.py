"""`clmem predict`: the memory of one method, without running it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clmem.bench.groups import MemoryOptions
from clmem.bench.options import METHOD, AsJson, path_option
from clmem.harness.errors import UsageError
from clmem.harness.files import expand
from clmem.harness.text import clean, some

if TYPE_CHECKING:
    from clmem.harness.results.record import RunResult
    from clmem.harness.specs.run import Sources

LONGEST_REASON = 2000
"""Characters of a reason why a run is not predicted."""


def predict(
    options: MemoryOptions,
    method: Annotated[str | None, METHOD] = None,
    against: Annotated[
        Path | None,
        path_option(
            help="Instead of a METHOD: predict every memory run in this directory under its own settings, and show "
            "the error."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="With --against: also keep the predictions there, for its report.")
    ] = False,
    card: Annotated[
        str | None, typer.Option(help="With --target cuda: the card whose cuDNN is predicted; see `clmem list cards`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict one method's memory, role by role, without a device and without running a kernel."""
    if card is not None and (against is not None or not options.target.startswith("cuda")):
        raise UsageError(
            f"--card {clean(card, 80)} is about a METHOD with --target cuda; leave it out here (--against takes the "
            "card of each run)"
        )
    if against is not None and method is None:
        _against(against, options.sources(), as_json, keep)
        return
    if method is None or against is not None:
        raise UsageError("predict takes a METHOD or --against DIRECTORY, and not both")
    spec, sources = options.memory_spec(method), options.sources()
    from clmem.harness.memory.predicting.cards import card_named

    assumed = None if card is None else card_named(card)  # a wrong name is said before torch is imported
    from clmem.harness.answers.prediction import predict as predicted
    from clmem.harness.learning.registry import method_class
    from clmem.harness.memory.predicting.scratch import assuming_card
    from clmem.harness.runs.checks import check_spec
    from clmem.reports.terminal.runs import measure_json, measure_table

    check_spec(spec, sources, here=False)
    with assuming_card(assumed):
        result = predicted(spec, sources)
    if as_json:
        print(json.dumps(measure_json(result), indent=1))
    else:
        print(measure_table(result, uses_buffer=method_class(spec.method).uses_buffer))


def _against(directory: Path, sources: Sources, as_json: bool, keep: bool) -> None:
    """Print what is predicted beside what was measured, for every memory run of a directory."""
    from clmem.harness.results.record import LONGEST_PATH, load_results

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
