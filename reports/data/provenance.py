"""Where the numbers come from: on what they were measured, and which promises are broken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clmem.harness.results.record import RunResult
from clmem.reports.data.grouping import Section
from clmem.reports.data.units import count

SHOWN_LINES = 50
"""Broken checks of one run, or notes of all, that are shown; more are only counted."""


def broken_checks(section: Section) -> list[str]:
    """Return every broken promise of a section in one sentence each, naming the run; empty when all is well."""
    broken = [f"{run.run_id}: {check}" for run in section.runs for check in shown_lines(run.checks)]
    for cell, run, footprint in section.measured:
        where = run.run_id
        for level, at_peak, peak in [
            ("the peak", footprint.at_peak, footprint.peak_bytes),
            *((f"task {p.task} {p.phase}", p.at_peak, p.peak_bytes) for p in footprint.by_phase),
        ]:
            residual = sum(at_peak.values()) - peak
            if residual:
                broken.append(f"{where}: the roles at {level} sum to {count(residual)} B more than the allocator peak")
        delta, recorded = cell.observer_delta_bytes, run.observer_delta_bytes
        if None not in (delta, recorded) and delta != recorded:
            broken.append(f"{where}: observer delta is {count(delta)} B but {count(recorded)} B was recorded")
    return broken


def shown_lines(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and how many more there are."""
    rest = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], *([f"{rest:,} more"] if rest > 0 else [])]


def environment_values(runs: Sequence[RunResult]) -> dict[str, dict[str, int]]:
    """Return for every key of the environments, dotted where nested, its values and how many runs had each.

    The digest of the code that measured is among them, where results have it.
    """
    values: dict[str, dict[str, int]] = {}
    for run in runs:
        code = {key: digest for key, digest in run.code.items() if key == "measuring"}
        for key, value in flat({**run.environment, "code": code}).items():
            values.setdefault(key, {}).setdefault(value, 0)
            values[key][value] += 1
    return dict(sorted(values.items()))


def environment_differences(runs: Sequence[RunResult]) -> list[str]:
    """Return the keys of the environment that are not the same in every run that measures the same thing.

    Memory runs pin the allocator's settings and accuracy runs do not, so the two are not held against each other.
    """
    differing = set()
    for group in (
        [run for run in runs if run.spec.measure == "accuracy"],
        [run for run in runs if run.spec.measure != "accuracy"],
    ):
        for key, values in environment_values(group).items():
            if len(values) > 1 or sum(values.values()) < len(group):
                differing.add(key)
    return sorted(differing)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return values by their keys, dotted where nested, each as text."""
    found: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found.update(flat(item, f"{prefix}{key}."))
        else:
            found[prefix + key] = item if isinstance(item, str) else json.dumps(item, sort_keys=True)
    return found
