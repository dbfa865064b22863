"""Loading a directory of results, and refusing to compare runs that did not learn from the same data."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from clmem.harness.errors import UsageError
from clmem.harness.results.environment import decides_bytes
from clmem.harness.results.record import LONGEST_PATH, RunResult, load_results
from clmem.harness.text import clean
from clmem.reports.data.grouping import Section, Setting, is_joint, sections


def load_sections(directory: Path) -> list[Section]:
    """Load every result of a directory, checked and grouped, one section per setting.

    Raises UsageError when the directory is missing or holds no result, when a file is not a result, or when runs that
    would stand in one table learnt from different data.
    """
    shown = clean(str(directory), LONGEST_PATH)
    if not directory.is_dir():
        raise UsageError(f"{shown} is not a directory of results; run `clmem run` with --out {shown} first")
    results = list(load_results(directory))
    if not results:
        raise UsageError(f"{shown} holds no results; run `clmem run` with --out {shown} first")
    check_same_data(results)
    return sections(results)


def check_same_data(results: Sequence[RunResult]) -> None:
    """Check that comparable runs consumed the same batches of the same data set.

    Every successful run of a stream must have one `data_digest`. Every run of a stream, seed, batch size and length
    of training must have one `fingerprint`, accuracy runs and memory runs each among themselves; joint runs have an
    order of their own and are left out of this. Memory runs of one table must agree in what decides bytes. Raises
    UsageError naming the field, both values and both files.
    """
    finished = [run for run in results if run.status == "ok"]
    _check_equal("data_digest", ((run, run.spec.stream_title) for run in finished))
    joint = _joint_cells(results)
    ordered = [run for run in finished if run.spec.cell() not in joint]
    _check_equal("fingerprint", ((run, fingerprint_group(run)) for run in ordered))
    _check_same_bytes([run for run in finished if run.spec.measure != "accuracy"])


def fingerprint_group(run: RunResult) -> tuple[Hashable, ...]:
    """Return what runs must share for their fingerprints to be comparable.

    A method that grows with the tasks is measured over all tasks on a schedule of its own, so memory runs are
    comparable only where they trained through the same tasks and phases.
    """
    spec = run.spec
    length = (
        spec.stream_title,
        spec.evaluate_on,
        spec.measure,
        spec.seed,
        spec.batch_size,
        spec.epochs,
        spec.steps_per_task,
    )
    if spec.measure == "accuracy" or run.allocator is None:
        return length
    trained = {(task, phase) for task, phase, _ in run.allocator.by_phase if phase in ("first_step", "step")}
    return (*length, tuple(sorted(trained)))


def _check_same_bytes(runs: Iterable[RunResult]) -> None:
    """Check that memory runs of one setting had the same of everything that decides how many bytes a step takes.

    Older results lack some of it, which is taken for equal.
    """
    first: dict[tuple[Setting, str], RunResult] = {}
    for run in runs:
        setting = Setting.of(run)
        for key in decides_bytes(setting.target, of_a_process=run.process is not None):
            if key not in run.environment:
                continue
            other = first.setdefault((setting, key), run)
            expected, value = other.environment[key], run.environment[key]
            if value != expected:
                raise UsageError(
                    f"{key} differs: {told(expected)} in {other.where} but {told(value)} in {run.where}, which "
                    "decides how many bytes a step takes, so they cannot share a table; measure again with "
                    "`clmem run --fresh`, or put one of them into another directory"
                )


def told(value: object) -> str:
    """Return a value of an environment or a spec for a message: one line, cut where it is long."""
    return clean(repr(value), 200)


def _joint_cells(results: Iterable[RunResult]) -> set[tuple[tuple[str, str], ...]]:
    # by cell, because a run that died before its method was built does not know that it is joint
    return {run.spec.cell() for run in results if is_joint([run])}


def _check_equal(field: str, runs: Iterable[tuple[RunResult, Hashable]]) -> None:
    first: dict[Hashable, RunResult] = {}
    for run, group in runs:
        value = getattr(run, field)
        if value is None:
            continue
        other = first.setdefault(group, run)
        expected = getattr(other, field)
        if value != expected:
            raise UsageError(
                f"{field} differs: {expected} in {other.where} but {value} in {run.where}, so they did not learn "
                "from the same data and cannot share a table; delete the stale one and run it again"
            )
