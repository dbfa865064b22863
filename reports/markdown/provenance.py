"""Where the numbers of a page come from: environment, fingerprints, settings, failed runs, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clmem.harness.results.record import RunResult
from clmem.harness.text import some
from clmem.reports.data.grouping import Section, is_joint
from clmem.reports.data.load import fingerprint_group
from clmem.reports.data.provenance import environment_values, flat, shown_lines
from clmem.reports.data.units import count, plural
from clmem.reports.markdown.markup import plain
from clmem.reports.markdown.tables import markdown_table

SHOWN_VALUES = 4
"""Values of one key of the environment listed one by one; more are only counted, but for commits."""


def sum_check(section: Section) -> str:
    """Return the line that says whether roles add up to the allocator's peak, and what observing cost, in bytes."""
    residuals = {cell.label: sum(held.at_peak.values()) - held.peak_bytes for cell, _, held in section.measured}
    deltas = {cell.label: delta for cell, _, _ in section.measured if (delta := cell.observer_delta_bytes) is not None}
    return (
        f"Sum check: sum of roles - allocator peak = {_by_method(residuals)}; "
        f"observer delta (peak with roles recorded - peak with nothing instrumented) = {_by_method(deltas)}."
    )


def _by_method(values: Mapping[str, int]) -> str:
    if not values:
        return "not measured"
    if len(set(values.values())) == 1:
        everywhere = "" if len(values) == 1 else f" for each of {len(values)} methods"
        return f"{count(next(iter(values.values())))} B{everywhere}"
    other = [f"{count(value)} B for {plain(label)}" for label, value in values.items() if value]
    zeros = len(values) - len(other)
    return ", ".join(other + ([f"0 B for the other {zeros}"] if zeros else []))


def environment_table(runs: Sequence[RunResult]) -> str:
    """Return what the runs ran on; a key with several values has one row for each, with the number of runs."""
    rows = []
    for key, values in environment_values(runs).items():
        if len(values) > SHOWN_VALUES and key != "commit":
            rows.append([key, f"{len(values)} values", plural(sum(values.values()), "run")])
            continue
        for value, number in values.items():
            rows.append([key, value, "all" if number == len(runs) else plural(number, "run")])
    return markdown_table(["key", "value", "runs"], rows, left=3)


def fingerprint_table(runs: Sequence[RunResult]) -> str:
    """Return the digests of the batches the successful runs consumed, and which methods consumed them."""
    joint = {run.spec.cell() for run in runs if is_joint([run])}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        if run.status == "ok":
            own = run.spec.cell() in joint
            what = f"accuracy, {_length(run)}" if run.spec.measure == "accuracy" else "memory"
            digest = run.fingerprint or "not recorded"
            shown = (run.spec.stream_title, str(run.spec.seed), what + (" (joint: own order)" if own else ""), digest)
            methods = groups.setdefault((*shown, run.data_digest or "not recorded", own, fingerprint_group(run)), [])
            if run.spec.method not in methods:
                methods.append(run.spec.method)
    rows = [[*key[:5], ", ".join(sorted(methods))] for key, methods in groups.items()]
    headers = ["stream", "seed", "measured", "fingerprint of the batches", "digest of the data", "methods"]
    return markdown_table(headers, sorted(rows), left=6)


def _length(run: RunResult) -> str:
    steps = run.spec.steps_per_task
    return plural(run.spec.epochs, "epoch") + ("" if steps is None else f" of at most {plural(steps, 'step')}")


def failed_table(runs: Sequence[RunResult]) -> str:
    """Return every run that is not ok with its status and reason; empty when there is none."""
    rows = [[run.run_id, run.status, run.reason or "no reason recorded"] for run in runs if run.status != "ok"]
    return markdown_table(["run", "status", "reason"], rows, left=3)


def notes(runs: Sequence[RunResult]) -> str:
    """Return a list of what did not work and moved no number, with the runs that say so; empty without any."""
    said: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            said.setdefault(note, []).append(run.run_id)
    lines = [f"{plain(note)} ({plain(some(run_ids, shown=3))})" for note, run_ids in said.items()]
    return "\n".join(f"- {line}" for line in shown_lines(lines))


def settings_table(section: Section) -> str:
    """Return the typed hyper-parameters of each method and how its steps were executed."""
    rows = []
    for cell in section.cells:
        run = next((run for run in cell.runs if run.method_config or run.execution), cell.runs[0])
        rows.append([cell.label, _settings(run.method_config), _settings(run.execution)])
    return markdown_table(["method", "hyper-parameters", "execution"], rows, left=3)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(flat(values).items()))
