"""Runs many specs, each pass in a process of its own, and hands over every result as soon as it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.learning.registry import source_digests
from clmem.harness.results.environment import cores
from clmem.harness.results.record import RunResult
from clmem.harness.results.source import measuring_digest
from clmem.harness.runs.job import Job, Outcome, Pass
from clmem.harness.runs.measurement import assemble, passes
from clmem.harness.runs.processes import Workers
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources


@dataclass(frozen=True)
class Present:
    """What of a suite's results a directory held when it was run again.

    kept: results that stand. failed: results that are tried again as asked. unwanted: results that are measured again
    as asked. ended_badly: kept results of runs that crashed or took too long. changed: methods whose code, or whose
    settings or lean preset, changed since they were measured. measuring_changed: runs that other code of clmem
    measured. elsewhere: runs that were measured with another torch, processor or setting of an allocator. undated: kept
    results of versions of clmem that did not note which code measured them.
    """

    total: int
    kept: int = 0
    failed: int = 0
    unwanted: int = 0
    ended_badly: int = 0
    changed: tuple[str, ...] = ()
    measuring_changed: int = 0
    elsewhere: int = 0
    undated: int = 0


class Watcher:
    """Is told how a suite goes on. This one stays silent; the command line has one that draws."""

    def begins(self, present: Present) -> None:
        """It is known what there is already, and nothing has been run yet."""

    def run_done(self, result: RunResult, done: int, total: int) -> None:
        """A run has its result."""

    def progress(self, spec: RunSpec, what: Pass, fields: dict[str, Any] | None) -> None:
        """A pass moved on; None when it ended."""


def default_jobs() -> int:
    """Return how many processes run side by side: one more than cores, because much of a pass is importing and waiting.

    Bytes do not depend on it: passes that count them have one thread. Accuracy runs divide the cores between them.
    """
    return min(4, 1 + cores())


@dataclass
class _Pending:
    spec: RunSpec
    code: dict[str, str]
    outcomes: dict[Pass, Outcome] = field(default_factory=dict)
    started: float = 0.0


def run_specs(
    specs: list[RunSpec],
    on_result: Callable[[RunResult], None],
    *,
    timeout_s: float = 3600,
    jobs: int | None = None,
    sources: Sources = NOWHERE,
    checkpoints: Path | None = None,
    snapshot: Path | None = None,
    watcher: Watcher | None = None,
) -> None:
    """Run every spec, each pass in its own process, and hand over each result as soon as it is whole.

    A run that fails is a result too; it never stops the others. If a pass runs out of memory while others run, it is
    run once more alone at the end, because they may have been the reason. checkpoints: a directory in which accuracy
    runs leave what they need to go on after an interruption. snapshot: a file for the history of CUDA's allocator in
    the attribution pass, of the last run that has one. Raises UsageError when the only spec turns out to be impossible,
    or the device of one to be missing or taken before anything was measured. On KeyboardInterrupt every worker is
    killed.
    """
    watcher = watcher or Watcher()
    shared = any(spec.target == "jetson" for spec in specs)  # the process level there is that of the whole board
    if shared and jobs is not None and jobs > 1:
        raise UsageError(f"--jobs is {jobs}, but on target 'jetson' runs share the memory that is measured; give 1")
    count = 1 if shared else jobs or default_jobs()
    workers = Workers(threads=max(1, cores() // count))
    # before anything runs: code that is changed meanwhile is measured again next time
    pending = {spec.run_id: _Pending(spec, _code_of(spec)) for spec in specs}
    pool = ThreadPoolExecutor(max_workers=count)

    def work(spec: RunSpec, what: Pass) -> Outcome:
        entry = pending[spec.run_id]
        entry.started = entry.started or time.monotonic()
        job = Job(spec=spec, what=what, sources=sources)
        if checkpoints is not None and what == "accuracy":
            job = job.model_copy(update={"checkpoint": str(checkpoint_path(checkpoints, spec))})
        if snapshot is not None and what == "attribution":
            job = job.model_copy(update={"snapshot": str(snapshot.resolve())})
        try:
            outcome = workers.run(job, timeout_s, lambda fields: watcher.progress(spec, what, fields))
            if outcome.undeclared:  # the log has no stacks: one more run finds the line
                outcome = workers.run(job.model_copy(update={"stacks": True}), timeout_s, lambda fields: None)
        except OSError as error:
            outcome = Outcome(status="crashed", reason=f"the {what} process could not be started: {error}")
        watcher.progress(spec, what, None)
        return outcome

    measured = False

    def keep(spec: RunSpec, what: Pass, outcome: Outcome) -> None:
        nonlocal measured
        if (outcome.unfit and not measured) or (outcome.usage_error and len(specs) == 1):
            raise UsageError(outcome.reason or "the request is impossible")
        measured = measured or outcome.status == "ok"  # a device taken later fails single runs, to be run again
        entry = pending[spec.run_id]
        entry.outcomes[what] = outcome
        if len(entry.outcomes) == len(passes(spec)):
            on_result(result := _result(spec, entry))
            goes_on = result.status == "timeout" or outcome.unfit  # when it is run again
            if checkpoints is not None and not goes_on:
                checkpoint_path(checkpoints, spec).unlink(missing_ok=True)
            del pending[spec.run_id]
            watcher.run_done(result, len(specs) - len(pending), len(specs))

    futures: dict[Future[Outcome], tuple[RunSpec, Pass]] = {
        pool.submit(work, spec, what): (spec, what) for spec in specs for what in passes(spec)
    }
    crowded: list[tuple[RunSpec, Pass]] = []
    try:
        while futures:
            finished, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                spec, what = futures.pop(future)
                outcome = future.result()
                if count > 1 and (outcome.status == "oom" or outcome.killed):
                    crowded.append((spec, what))
                else:
                    keep(spec, what, outcome)
        for spec, what in crowded:
            keep(spec, what, work(spec, what))
    finally:
        workers.stop()
        pool.shutdown(wait=True, cancel_futures=True)


def _result(spec: RunSpec, entry: _Pending) -> RunResult:
    """Make a run's result; what cannot be stored is a failure of that run, and of no other."""
    wall_s = time.monotonic() - entry.started
    try:
        result = assemble(spec, entry.outcomes, wall_s)
    except ValueError as error:
        outcome = Outcome(status="crashed", reason=f"its result cannot be stored: {error}")
        result = assemble(spec, dict.fromkeys(passes(spec), outcome), wall_s)
    result.code = entry.code
    return result


def _code_of(spec: RunSpec) -> dict[str, str]:
    """Return the digests of the source that a worker runs for a spec; an impossible method or network has none."""
    try:
        asked = source_digests(spec)
    except ClmemError:
        asked = {}
    return {**asked, "measuring": measuring_digest()}


def checkpoint_path(directory: Path, spec: RunSpec) -> Path:
    """Return where an accuracy run keeps its checkpoint; the file is hidden and goes when the run has its result."""
    return directory / f".{spec.run_id}.checkpoint"
