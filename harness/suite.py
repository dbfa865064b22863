"""Many runs: a suite file becomes specs, the specs become passes, and a directory fills with results.

A directory belongs to one suite (its `suite.json` says which). A run whose result file is there is done; everything
else is run again, so the same command completes what was interrupted at any moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import UsageError
from harness.files import read_toml, write_json
from harness.job import Job, Outcome, Pass
from harness.measurement import assemble, passes
from harness.processes import Workers
from harness.results import RunResult, load_result, save_result
from harness.spec import NOWHERE, Conditions, Measured, RunSpec, Scalar, Sources, spec_errors, weights_label
from harness.techniques import PLAIN, Techniques, canonical, techniques

MANIFEST = "suite.json"
SHORT = {"epochs": 1, "steps_per_task": None}
"""How long a run trains that measures memory: its schedule is short whatever the suite says."""


def _each_once(values: list[Any]) -> list[Any]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"it names {', '.join(twice)} more than once")
    return values


class Variation(BaseModel):
    """What differs from the suite's: those of its methods and streams (all by default), in other executions and over
    other seeds if named, are run under these conditions too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[str] | None = None
    streams: list[str] | None = None
    executions: list[Annotated[str, AfterValidator(canonical)]] | None = None
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    batch_size: int | None = None
    buffer_size: int | None = None
    replay_size: int | None = None
    config: dict[str, dict[str, Scalar]] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _only_once(cls, values: list[int] | None) -> list[int] | None:
        return None if values is None else _each_once(values)

    def conditions(self) -> dict[str, int]:
        """Return the conditions that it changes."""
        return self.model_dump(include={"batch_size", "buffer_size", "replay_size"}, exclude_none=True)


class Suite(Conditions):
    """A suite file: every method on every stream, its memory once and its accuracy once per seed.

    executions: how steps are carried out; every run once in each. config: per method, overrides of its
    hyper-parameters. vary: the suite is run once under each of these, and not under its own conditions alone.
    timeout_s: for one process.
    """

    title: str
    methods: list[str] = Field(min_length=1)
    streams: list[str] = Field(min_length=1)
    measure: list[Measured] = Field(default=["memory", "accuracy"])
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    executions: list[Annotated[str, AfterValidator(canonical)]] = Field(default=[PLAIN], min_length=1)
    timeout_s: float = Field(3600, gt=0)
    config: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    vary: list[Variation] = Field(default=[Variation()], min_length=1)

    @field_validator("methods", "streams", "measure", "seeds", "executions")
    @classmethod
    def _only_once(cls, values: list[Any]) -> list[Any]:
        return _each_once(values)

    @model_validator(mode="after")
    def _speaks_of_its_own_methods(self) -> Suite:
        for config in (self.config, *(variation.config for variation in self.vary)):
            for name in config:
                if name not in self.methods:
                    raise ValueError(
                        f"it sets [config.{name}] but does not run {name!r}; its methods are {self.methods}"
                    )
        for variation in self.vary:
            for kind, named, own in (
                ("methods", variation.methods, self.methods),
                ("streams", variation.streams, self.streams),
            ):
                for name in named or []:
                    if name not in own:
                        raise ValueError(f"it varies {name!r} but does not run it; its {kind} are {own}")
        return self

    def specs(self) -> list[RunSpec]:
        """Return one spec per run, memory first."""
        shared = {name: getattr(self, name) for name in Conditions.model_fields}
        if self.weights is not None:
            shared["weights"] = weights_label(self.weights)
        specs = [
            RunSpec(
                **{**shared, **({} if measure == "accuracy" else SHORT), **variation.conditions()},
                method=method,
                config={**self.config.get(method, {}), **variation.config.get(method, {})},
                stream=stream,
                seed=seed,
                execution=execution,
                measure=measure,
            )
            for measure in get_args(Measured)
            if measure in self.measure
            for variation in self.vary
            for seed in (variation.seeds or self.seeds if measure == "accuracy" else self.seeds[:1])
            for stream in (self.streams if variation.streams is None else variation.streams)
            for method in (self.methods if variation.methods is None else variation.methods)
            for execution in (self.executions if variation.executions is None else variation.executions)
        ]
        return list(dict.fromkeys(specs))


def load_suite(path: Path) -> Suite:
    """Read a suite file; its weights lie beside it. Raises UsageError naming the file and what is wrong in it."""
    values = read_toml(path)
    if isinstance(values.get("weights"), str):
        values["weights"] = str(path.parent / values["weights"])
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"the suite file {path} is wrong: {spec_errors(error, list(Suite.model_fields))}") from error


class Watcher:
    """Is told how a suite goes on. This one stays silent; the command line has one that draws."""

    def run_done(self, result: RunResult, done: int, total: int) -> None:
        """A run has its result."""

    def progress(self, spec: RunSpec, what: Pass, fields: dict[str, Any] | None) -> None:
        """A pass moved on; None when it ended."""


def default_jobs() -> int:
    """Return how many processes run side by side: one more than cores, for much of a pass is importing and waiting.

    Bytes do not depend on it. The threads of the machine are divided between the processes.
    """
    return min(4, 1 + (os.cpu_count() or 1))


@dataclass
class _Pending:
    spec: RunSpec
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

    A run that fails is a result too; it never stops the others. A pass that ran out of memory beside others is run once
    more alone at the end, for its neighbours may have been the reason. checkpoints: a directory in which accuracy
    runs leave what they need to go on after an interruption. snapshot: a file for the history of CUDA's allocator in
    the attribution pass, of the last run that has one. Raises UsageError when the only spec turns out to be
    impossible, or the device of one to be missing or taken before anything was measured. On KeyboardInterrupt
    every worker is killed.
    """
    watcher = watcher or Watcher()
    shared = any(spec.target == "jetson" for spec in specs)  # the process level there is that of the whole board
    if shared and jobs is not None and jobs > 1:
        raise UsageError(f"--jobs is {jobs}, but on target 'jetson' runs share the memory that is measured; give 1")
    count = 1 if shared else jobs or default_jobs()
    workers = Workers(threads=max(1, (os.cpu_count() or 1) // count))
    pending = {spec.run_id: _Pending(spec) for spec in specs}
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
            on_result(result := assemble(spec, entry.outcomes, time.monotonic() - entry.started))
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


def run_suite(
    suite: Suite,
    directory: Path,
    *,
    jobs: int | None = None,
    sources: Sources = NOWHERE,
    retry: bool = False,
    watcher: Watcher | None = None,
) -> list[RunResult]:
    """Fill a directory with the results of a suite and return all of them, in the order of the specs.

    retry: run again what ended as crashed or timeout. Accuracy runs that were interrupted go on where they were. Raises
    UsageError when the directory cannot be written, holds another suite's results, or is being filled by another
    process; nothing in it is touched then.
    """
    specs = suite.specs()
    _claim(directory, suite)
    lock = FileLock(directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"another process is filling {directory}; wait for it or choose another --out") from error
    except OSError as error:
        raise UsageError(f"cannot write results to {directory}: {error.strerror}; choose another --out") from error
    with lock:
        for orphan in directory.rglob(".*.part"):
            orphan.unlink()
        results = {}
        for spec in specs:
            path = directory / f"{spec.run_id}.json"
            if path.exists():
                result = load_result(path)
                if has_its_settings(result, spec) and not (retry and result.status in ("crashed", "timeout")):
                    results[spec.run_id] = result

        def keep(result: RunResult) -> None:
            save_result(directory, result)
            results[result.run_id] = result

        missing = [spec for spec in specs if spec.run_id not in results]
        run_specs(
            missing,
            keep,
            timeout_s=suite.timeout_s,
            jobs=jobs,
            sources=sources.model_copy(update={"weights": suite.weights}),
            checkpoints=directory,
            watcher=watcher,
        )
    return [results[spec.run_id] for spec in specs]


def has_its_settings(result: RunResult, spec: RunSpec) -> bool:
    """Say whether a stored run had the hyper-parameters and the techniques that its spec means today.

    Values tuned since then differ, and so does a lean preset that was changed.
    """
    from harness.registry import method_class, method_config

    today = method_config(spec).model_dump(mode="json")
    if any(today[key] != value for key, value in result.method_config.items() if key in today):
        return False
    used = {key: value for key, value in result.execution.items() if key in Techniques.model_fields}
    return not result.execution or used == techniques(spec.execution, method_class(spec.method).lean).changed()


def checkpoint_path(directory: Path, spec: RunSpec) -> Path:
    """Return where an accuracy run keeps its checkpoint; the file is hidden and goes when the run has its result."""
    return directory / f".{spec.run_id}.checkpoint"


def _claim(directory: Path, suite: Suite) -> None:
    """Make the directory and write the manifest, or check that it is this suite's already."""
    manifest = directory / MANIFEST
    wanted = suite.model_dump(mode="json", exclude={"timeout_s"})
    try:
        if not manifest.exists():
            # hidden files are ours: a lock, or what an interrupted write left behind
            if directory.exists() and any(not path.name.startswith(".") for path in directory.iterdir()):
                raise UsageError(f"{directory} is not empty and no results directory of clmem; choose another --out")
            directory.mkdir(parents=True, exist_ok=True)
            write_json(manifest, wanted)
            return
        found = Suite.model_validate_json(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write results to {directory}: {error.strerror}; choose another --out") from error
    except ValidationError as error:
        raise UsageError(f"{manifest} is not a suite manifest of this version; choose another --out") from error
    if found.model_dump(mode="json", exclude={"timeout_s"}) != wanted:
        changed = [key for key, value in wanted.items() if getattr(found, key) != getattr(suite, key)]
        raise UsageError(
            f"{directory} already holds results of another suite (different {', '.join(changed)}); "
            "choose another --out or delete it"
        )
