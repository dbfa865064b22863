"""Which results measure the rows of a claim, and what may stand in one table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clmem.harness.errors import UsageError
from clmem.harness.results.environment import decides_bytes
from clmem.harness.results.record import LONGEST_PATH, RunResult, distinct, load_results
from clmem.harness.specs.techniques import LEAN, PLAIN
from clmem.harness.text import clean
from clmem.reports.claims.claim import Claim, Measure, Row
from clmem.reports.data.executions import RELEASED, techniques_of
from clmem.reports.data.grouping import Cell, Section, sections
from clmem.reports.data.load import check_same_data, told

ENVIRONMENT = ("clmem", "device", "system")
"""Parts of the environment that runs of one table must share, as well as what decides bytes.

Commits may differ, and are listed with their runs."""

SPEC = ("weights", "seed", "steps_per_task", "evaluate_on", "budget")
"""Fields of a run's spec that runs of one table must share, beside what makes them runs of one cell."""

EXECUTIONS = (RELEASED, PLAIN, LEAN)
"""Executions in the order in which they are shown; others follow in the claim's own order."""

NOT_MEASURED = "not measured"

Level = Literal["tensor", "process"]


@dataclass(frozen=True, order=True)
class Place:
    """One measured cell: a row in an execution, on a data set, at a batch and a replay size.

    replay_size: 0 for rows that replay nothing; for those that remember samples of their own, how many.
    """

    dataset: str
    row: str
    execution: str
    batch_size: int
    replay_size: int


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured on one target.

    runs: the run of each place. failed: the status of places where only failed runs are. learnt: the rows' accuracies
    on whichever streams they were measured. left_out: how many runs measure no row, by what sets them apart.
    """

    claim: Claim
    target: str
    runs: dict[Place, RunResult]
    failed: dict[Place, str] = field(default_factory=dict)
    learnt: Sequence[Section] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def executions(self) -> list[str]:
        """Return the executions that any row has: as released, plain, lean, then others in the claim's order."""
        named = dict.fromkeys(name for row in self.claim.rows for name in row.measured)
        return [name for name in EXECUTIONS if name in named] + [name for name in named if name not in EXECUTIONS]

    def executions_of(self, row: Row) -> list[str]:
        """Return the executions of one row, in the same order."""
        return [name for name in self.executions if name in row.measured]

    def place(
        self, dataset: str, row: str, execution: str, batch_size: int | None = None, replay_size: int | None = None
    ) -> Place:
        """Return a place, under the claim's own batch and replay size unless others are given."""
        conditions = self.claim.conditions
        batch = conditions.batch_size if batch_size is None else batch_size
        replay = conditions.replay_size if replay_size is None else replay_size
        return Place(dataset, row, execution, batch, replay if self.claim.row(row).replays else 0)

    def peak_bytes(self, place: Place, level: Level = "tensor") -> int | None:
        """Return a peak, None where it was not measured."""
        run = self.runs.get(place)
        if run is None:
            return None
        part = run.allocator if level == "tensor" else run.process
        return None if part is None else part.peak_bytes

    def ratio(self, larger: Place, smaller: Place, level: Level = "tensor") -> float | None:
        """Return how often the one peak holds the other, None where either was not measured."""
        one, other = self.peak_bytes(larger, level), self.peak_bytes(smaller, level)
        return None if one is None or not other else one / other

    def shown(self, place: Place) -> str:
        """Return why a place has no number."""
        return self.failed.get(place, NOT_MEASURED)

    @property
    def has_headline(self) -> bool:
        """Tell whether both rows of the headline were measured under the claim's conditions, in any execution."""
        headline = self.claim.headline
        return all(
            any(self.place(headline.dataset, row, execution) in self.runs for execution in self.executions)
            for row in (headline.larger, headline.smaller)
        )

    def learners(self, section: Section) -> list[tuple[Row, Cell]]:
        """Return the rows whose accuracy was measured in a section, in the claim's order."""
        found = [(row_that_learnt(self.claim, cell.accuracy[0]), cell) for cell in section.cells if cell.accuracy]
        return [(row, cell) for row in self.claim.rows for other, cell in found if other is row]

    def commits(self) -> dict[str, int]:
        """Return the commits of the runs and how many runs each has; a dirty tree is marked."""
        counted = Counter(
            str(run.environment.get("commit"))[:10] + (" (dirty)" if run.environment.get("dirty") else "")
            for run in self.runs.values()
        )
        return dict(sorted(counted.items()))


def load_measurements(claim: Claim, directories: Iterable[Path]) -> list[Measurements]:
    """Return what the results of some directories measure of a claim, as `by_target` does.

    Equal results of several directories count once. Raises UsageError for a directory without results too, and for
    two results of one run that differ.
    """
    results: list[RunResult] = []
    for directory in directories:
        found = list(load_results(directory)) if directory.is_dir() else []
        if not found:
            shown = clean(str(directory), LONGEST_PATH)
            raise UsageError(f"{shown} holds no results; run `clmem run` with --out {shown} first")
        results += found
    return measurements_of(claim, distinct(results))


def measurements_of(claim: Claim, results: Sequence[RunResult]) -> list[Measurements]:
    """Return what some results measure of a claim, by target; targets of which nothing belongs to it are left out.

    Raises UsageError where runs that would stand in one table differ: in the stream, the data, the batches, the
    schedule, the weights they start from or the environment; and where a run does not say which batches it consumed.
    """
    by_target: dict[str, list[RunResult]] = {}
    for run in results:
        by_target.setdefault(run.spec.target, []).append(run)
    matched = {
        target: [(place, run) for run in runs for place in places_of(claim, run)] for target, runs in by_target.items()
    }
    return [_measurements(claim, target, matched[target], by_target[target]) for target in by_target if matched[target]]


def row_that_learnt(claim: Claim, run: RunResult) -> Row | None:
    """Return the row whose accuracy a run measures, on whichever network and stream; None without any."""
    for row in claim.rows:
        measure = row.learns or row.measured.get(PLAIN)
        if measure is not None and (run.spec.method, run.spec.execution) == (measure.method, measure.execution):
            agrees = all(run.method_config.get(key) == value for key, value in measure.config.items())
            if agrees and set(run.spec.config) <= {*measure.config, *claim.conditions.free}:
                return row
    return None


def places_of(claim: Claim, run: RunResult) -> list[Place]:
    """Return the places that a run measures: those of every row whose method and settings are its own."""
    spec, wanted = run.spec, claim.conditions
    if spec.measure == "accuracy" or (spec.network, spec.width) != (wanted.network, wanted.width):
        return []
    return [
        Place(dataset, row.id, execution, spec.batch_size, spec.replay_size if row.replays else 0)
        for dataset, shape in claim.datasets.items()
        if spec.stream_title in shape.streams
        for row in claim.rows
        for execution, measure in row.measured.items()
        if _measures(claim, row, measure, run) and (not row.replays or _same_memory(claim, row, run))
    ]


def _same_memory(claim: Claim, row: Row, run: RunResult) -> bool:
    """Tell whether a run remembers what the claim's do, or replays its whole buffer, as on the surface of other sizes.

    Methods that remember samples of their own must remember as many as the run's replay size says.
    """
    spec = run.spec
    if row.remembers and (run.method_config or spec.config).get(row.remembers, spec.replay_size) != spec.replay_size:
        return False
    conditions = claim.conditions
    claimed = (conditions.buffer_size, conditions.replay_size)
    return spec.buffer_size == spec.replay_size or (spec.buffer_size, spec.replay_size) == claimed


def _measures(claim: Claim, row: Row, measure: Measure, run: RunResult) -> bool:
    if (run.spec.method, run.spec.execution) != (measure.method, measure.execution):
        return False
    own = set(run.spec.config) - {*claim.conditions.free, row.remembers}
    if not run.method_config:  # it died before its method was built: only what was set on it is known
        return own <= set(measure.config)
    agrees = all(run.method_config.get(key) == value for key, value in measure.config.items())
    return agrees and own <= set(measure.config)


def _why_left_out(claim: Claim, run: RunResult) -> str:
    """Say what sets a run apart from every row's."""
    spec, wanted = run.spec, claim.conditions
    if (spec.network, spec.width) != (wanted.network, wanted.width):
        return f"{spec.network} of width {spec.width}"
    if spec.stream_title not in [stream for shape in claim.datasets.values() for stream in shape.streams]:
        return spec.stream_title
    named = [(measure.method, measure.execution) for row in claim.rows for measure in row.measured.values()]
    if spec.method not in [method for method, _ in named]:
        return spec.method
    if (spec.method, spec.execution) not in named:
        return "other executions"
    return f"other settings of {spec.method}, its buffer of {spec.buffer_size} or its replay of {spec.replay_size}"


def _measurements(
    claim: Claim, target: str, matched: Sequence[tuple[Place, RunResult]], everything: Sequence[RunResult]
) -> Measurements:
    learning = [run for run in everything if run.spec.measure == "accuracy" and row_that_learnt(claim, run)]
    used = {id(run) for _, run in matched} | {id(run) for run in learning}
    left_out = Counter(_why_left_out(claim, run) for run in everything if id(run) not in used)
    check_same_data(learning)
    ok = [(place, run) for place, run in matched if run.status == "ok" and run.allocator is not None]
    runs = list({id(run): run for _, run in ok}.values())
    for key in dict.fromkeys((*ENVIRONMENT, *decides_bytes(target, of_a_process=True))):
        _check_equal(key, [(_compared(key, run.environment.get(key)), run) for run in runs])
    by_label: dict[tuple[str, str], list[RunResult]] = {}
    for run in runs:
        by_label.setdefault((run.spec.method, run.spec.execution), []).append(run)
    for same in by_label.values():  # what a preset stands for may have changed between two runs
        _check_equal("execution", [(techniques_of(run), run) for run in same])
    for dataset in claim.datasets:
        within = [run for place, run in ok if place.dataset == dataset]
        _check_equal("stream", [(run.spec.stream_title, run) for run in within])
        for key in SPEC:
            _check_equal(key, [(getattr(run.spec, key), run) for run in within])
    check_same_data(runs)
    _check_same_batches(claim, ok)
    kept: dict[Place, RunResult] = {}
    for place, run in ok:
        other = kept.setdefault(place, run)
        assert other.allocator is not None
        assert run.allocator is not None
        if other.allocator.peak_bytes != run.allocator.peak_bytes:
            raise UsageError(
                f"the tensor peak of {place.row} on {place.dataset} differs: {other.allocator.peak_bytes:,} B in "
                f"{other.where} but {run.allocator.peak_bytes:,} B in {run.where}; give the results of one of them"
            )
        if run.footprint is not None and other.footprint is None:  # it says more of the same cell
            kept[place] = run
    failed: dict[Place, str] = {place: run.status for place, run in matched if run.status != "ok" and place not in kept}
    return Measurements(claim, target, kept, failed, sections(learning), dict(sorted(left_out.items())))


def _compared(key: str, value: object) -> object:
    """Return what of an environment's value must be equal: of a kernel its version, not who built it and when."""
    return re.sub(r"(\d)-\S+", r"\1", str(value)) if key == "system" else value


def _check_same_batches(claim: Claim, ok: Sequence[tuple[Place, RunResult]]) -> None:
    """Check that the runs of every ratio consumed the same batches: those of one data set, batch size and memory."""
    groups: dict[tuple[str, int, int, int], list[tuple[object, RunResult]]] = {}
    for place, run in ok:
        if run.fingerprint is None:
            raise UsageError(
                f"{run.where} does not say which batches it consumed, so it cannot be compared; run it again"
            )
        if not claim.row(place.row).own_batches:
            key = (place.dataset, place.batch_size, run.spec.buffer_size, run.spec.replay_size)
            groups.setdefault(key, []).append((run.fingerprint, run))
    for found in groups.values():
        _check_equal("fingerprint", found)


def _check_equal(name: str, values: Sequence[tuple[object, RunResult]]) -> None:
    for value, run in values[1:]:
        expected, first = values[0]
        if value != expected:
            raise UsageError(
                f"{name} differs: {told(expected)} in {first.where} but {told(value)} in {run.where}, so they "
                "cannot stand in one table; give directories whose runs agree"
            )
