"""What a run would hold at its peak, without a device and without running a kernel."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.build import Run, build
from harness.environment import environment
from harness.errors import ClmemError, UsageError, blame
from harness.execution.monitor import Unwatched
from harness.memory.caching import cached
from harness.memory.ledger import Records, join, undeclared_sentence
from harness.memory.log import AllocationLog, without
from harness.memory.observer import Observer
from harness.memory.predicted import ShapeRecorder
from harness.memory.scratch import CUDNN
from harness.registry import method_class, method_config
from harness.results import RunResult
from harness.spec import NOWHERE, RunSpec, Sources
from harness.targets import PREDICTED, allocator_of
from harness.techniques import PLAIN, techniques
from harness.text import clean
from harness.training import Progress, short_schedule, train


@dataclass(frozen=True)
class Recorded:
    """The short schedule of a run, taken on tensors without values: what was asked for, and who was seen to hold it."""

    run: Run
    log: AllocationLog
    records: Records


def predict(spec: RunSpec, sources: Sources = NOWHERE, limit_bytes: int | None = None) -> RunResult:
    """Return the footprint of a run's short schedule as predicted: the same phases and roles as `measure` finds.

    On CUDA the requests are served as the caching allocator serves them; limit_bytes: what it may reserve. Workspaces
    of cuDNN that do not fit are left out, for torch asks it for another algorithm then; for anything else
    OutOfReservedError is raised. Raises UsageError for what cannot be predicted. As in a measurement, LedgerError is
    raised where roles do not add up, and ClmemError for undeclared state.
    """
    return result_of(spec, record(spec, sources), limit_bytes)


def record(spec: RunSpec, sources: Sources = NOWHERE) -> Recorded:
    """Take a run's short schedule on tensors without values; shapes decide memory. Raises as `predict` does.

    How many weights a mask leaves open is taken from the method's `sparsity`.
    """
    kept, kind = None, allocator_of(spec.target)
    chosen = techniques(spec.execution, method_class(spec.method).lean)
    if chosen.autocast != "none":
        raise UsageError(
            f"autocast={chosen.autocast} cannot be predicted, as torch casts nothing without a device; measure it"
        )
    if chosen.moves:
        raise UsageError(
            f"{chosen.moves[0]} moves values between a device and the host and cannot be predicted without; measure it"
        )
    if chosen.storage == "compact":
        # which channels fall is read from the weights, so those are drawn once
        kept = build(
            spec.model_copy(update={"execution": PLAIN}), Unwatched(), sources, device="cpu"
        ).method.kept_channels()
    recorder = ShapeRecorder(kind, share_open=1 - getattr(method_config(spec), "sparsity", 0.5))
    observer = Observer(recorder, device=None if kind == "cpu" else "meta")
    recorder.start()
    try:
        with observer.watching():
            with torch.device("meta"):
                run = build(spec, observer, sources, device="meta", kept=kept)
            try:
                train(run, short_schedule(run.method), observer, Progress())
            except NotImplementedError as error:
                raise _unpredictable(spec, error) from error
            except ClmemError:
                raise
            except Exception as error:
                raise ClmemError(f"method {spec.method!r} failed while it was predicted: {blame(error)}") from error
            observer.finish()
    finally:
        log = recorder.stop()
        gc.unfreeze()  # what an observer froze: this process goes on
    return Recorded(run, log, observer.records)


def result_of(spec: RunSpec, recorded: Recorded, limit_bytes: int | None = None) -> RunResult:
    """Return what a recorded schedule comes to. Raises OutOfReservedError, LedgerError and ClmemError as `predict`."""
    run, log = recorded.run, recorded.log
    on_cuda: dict[str, int] = {}
    if allocator_of(spec.target) == "cuda":
        if limit_bytes is None:
            others, _ = cached(without(log, CUDNN))
            on_cuda["without_cudnn_bytes"] = max(event.total_bytes for event in others.events)
        log, on_cuda["reserved_bytes"] = cached(log, limit_bytes, dispensable=CUDNN)
    ledger = join(log, recorded.records)
    if ledger.undeclared:
        raise ClmemError(f"predicted: {undeclared_sentence(spec.method, ledger.undeclared)}")
    target = f"{PREDICTED}{spec.target}"
    return RunResult(
        run_id=f"{spec.run_id}--{target}",
        spec=spec.model_copy(update={"target": target}),
        status="ok",
        method_config=run.method.config.model_dump(mode="json"),
        execution=run.execution.describe(),
        joint=run.method.joint,
        environment=environment(),
        footprint=ledger.footprint.model_copy(update=on_cuda),
    )


def _unpredictable(spec: RunSpec, error: NotImplementedError) -> UsageError:
    """Name the line of the method that asked a tensor without values for one."""
    inside = (Path(torch.__file__).parent, Path(__file__).parent)
    lines = [(Path(line.filename), line) for line in traceback.extract_tb(error.__traceback__)]
    theirs = [line for path, line in lines if not any(folder in path.parents for folder in inside)]
    where = f" in {Path(theirs[-1].filename).name}:{theirs[-1].lineno} ({theirs[-1].line})" if theirs else ""
    said = clean(str(error).partition(";")[0])
    return UsageError(
        f"{spec.method!r} reads values{where} and cannot be predicted, as predictions have none ({said}); measure it"
    )


def predicted_peak_bytes(spec: RunSpec, sources: Sources = NOWHERE) -> int | None:
    """Return the predicted tensor peak of a run, None where it cannot be predicted; `predict` says why."""
    try:
        footprint = predict(spec, sources).footprint
    except ClmemError:
        return None
    return None if footprint is None else footprint.peak_bytes
