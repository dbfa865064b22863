"""What a run would hold at its peak, without a device and without running a kernel."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue

import torch

from clmem.harness.errors import ClmemError, UsageError, blame
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.registry import method_class, method_config, source_digests
from clmem.harness.learning.training import Progress, short_schedule, train
from clmem.harness.memory.ledger.join import Records, join, undeclared_sentence
from clmem.harness.memory.ledger.libraries import CUDNN
from clmem.harness.memory.ledger.log import AllocationLog, without
from clmem.harness.memory.predicting.caching import cached
from clmem.harness.memory.predicting.cards import card_of
from clmem.harness.memory.predicting.predicted import ShapeRecorder
from clmem.harness.memory.predicting.scratch import assumed_card, assuming_card, assuming_vectors
from clmem.harness.memory.watching.observer import Observer
from clmem.harness.output import printing_to_stderr
from clmem.harness.results.environment import cores, environment
from clmem.harness.results.record import RunResult
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources
from clmem.harness.specs.targets import PREDICTED, allocator_of
from clmem.harness.specs.techniques import PLAIN, techniques
from clmem.harness.text import clean, some


@dataclass(frozen=True)
class Recorded:
    """The short schedule of a run, taken on tensors without values: what was asked for, and who was seen to hold it.

    unknown: what the prediction does not know, a sentence each.
    """

    run: Run
    log: AllocationLog
    records: Records
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class PredictedPeak:
    """The tensor peak that was predicted for a run. peak_bytes: None if the run cannot be predicted; reason: why."""

    peak_bytes: int | None
    reason: str = ""


def predict(spec: RunSpec, sources: Sources = NOWHERE, limit_bytes: int | None = None) -> RunResult:
    """Return the footprint of a run's short schedule as predicted: the same phases and roles as `measure` finds.

    On CUDA the requests are served as the caching allocator serves them; limit_bytes: what it may reserve. Workspaces
    of cuDNN that do not fit are left out, for torch asks it for another algorithm then; for anything else
    OutOfReservedError is raised. Raises UsageError for what cannot be predicted. As in a measurement, LedgerError is
    raised where roles do not add up, and ClmemError for undeclared state.
    """
    return result_of(spec, record(spec, sources), limit_bytes)


@printing_to_stderr()
def record(spec: RunSpec, sources: Sources = NOWHERE) -> Recorded:
    """Take a run's short schedule on tensors without values; shapes decide memory. Raises as `predict` does.

    How many weights a mask leaves open is taken from the method's `sparsity`.
    """
    kept, kind = None, allocator_of(spec.target)
    chosen = techniques(spec.execution, method_class(spec.method).lean)
    if chosen.unpredictable:
        raise UsageError(f"{chosen.unpredictable}; measure it")
    if chosen.storage == "compact":
        # which channels fall is read from the weights, so those are drawn once
        plain = spec.model_copy(update={"execution": PLAIN})
        with _faults_named(spec):
            kept = build(plain, Unwatched(), sources, device="cpu").method.kept_channels()
    recorder = ShapeRecorder(kind, share_open=1 - getattr(method_config(spec), "sparsity", 0.5))
    observer = Observer(recorder, device=None if kind == "cpu" else "meta")
    recorder.start()
    try:
        with observer.watching():
            with _faults_named(spec):
                with torch.device("meta"):
                    run = build(spec, observer, sources, device="meta", kept=kept)
                train(run, short_schedule(run.method), observer, Progress())
            observer.finish()
    finally:
        log = recorder.stop()
        gc.unfreeze()  # what an observer froze: this process goes on
    return Recorded(run, log, observer.records, tuple(_unknown(recorder)))


@contextmanager
def _faults_named(spec: RunSpec) -> Iterator[None]:
    """Turn whatever a method raises into one sentence that names it."""
    try:
        yield
    except NotImplementedError as error:
        raise _unpredictable(spec, error) from error
    except (ClmemError, KeyboardInterrupt):
        raise
    except BaseException as error:  # such as SystemExit
        raise ClmemError(f"method {spec.method!r} failed while it was predicted: {blame(error)}") from error


def result_of(spec: RunSpec, recorded: Recorded, limit_bytes: int | None = None) -> RunResult:
    """Return what a recorded schedule comes to. Raises OutOfReservedError, LedgerError and ClmemError as `predict`."""
    run, log = recorded.run, recorded.log
    on_cuda: dict[str, int] = {}
    card = assumed_card()
    about = {} if card is None else {"device": card.device, "capability": card.capability, "cudnn": card.cudnn}
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
        execution=run.runner.prepared.describe(),
        joint=run.method.joint,
        environment={**environment(), **(about if on_cuda else {})},
        notes=list(recorded.unknown),
        footprint=ledger.footprint.model_copy(update=on_cuda),
    )


def _unknown(recorder: ShapeRecorder) -> Iterator[str]:
    """Yield what a prediction does not know, a sentence each."""
    if recorder.guessed:
        yield (
            f"a value is read in {clean(some(list(recorder.guessed)), 300)}, where a prediction has none: a number was "
            "taken for 0 and a comparison for true, so if a branch depends on it, a run may take the other one"
        )
    if recorder.unseen:
        yield (
            f"cuDNN was not seen on this card with {len(recorder.unseen)} of the shapes of convolutions here, forward "
            "or backward; what it takes for them is predicted by rules"
        )
    if recorder.channels_last:
        yield (
            "the network has convolutions of maps laid out with channels last, whose copies clmem does not know; the "
            "peak may be some percent off, so measure it"
        )


def _unpredictable(spec: RunSpec, error: NotImplementedError) -> UsageError:
    """Name the line of the method that asked a tensor without values for one."""
    inside = (Path(torch.__file__).parent, Path(__file__).parents[1])
    lines = [(Path(line.filename), line) for line in traceback.extract_tb(error.__traceback__)]
    theirs = [line for path, line in lines if not any(folder in path.parents for folder in inside)]
    where = f" in {Path(theirs[-1].filename).name}:{theirs[-1].lineno} ({theirs[-1].line})" if theirs else ""
    said = clean(str(error).partition(";")[0])
    return UsageError(
        f"{spec.method!r} reads values{where} and cannot be predicted, as predictions have none ({said}); measure it"
    )


def predicted_peak_bytes(spec: RunSpec, sources: Sources = NOWHERE) -> int | None:
    """Return the predicted tensor peak of a run, None where it cannot be predicted; `predict` says why."""
    return _predicted_peak(spec, sources).peak_bytes


def _predicted_peak(spec: RunSpec, sources: Sources) -> PredictedPeak:
    try:
        footprint = predict(spec, sources).footprint
    except ClmemError as error:
        return PredictedPeak(None, str(error))
    return PredictedPeak(None if footprint is None else footprint.peak_bytes)


def why_incomparable(run: RunResult) -> str | None:
    """Say why a prediction made here is not one of this run: another torch, or other code of its method; else None.

    A result of an older version, which does not say what it was measured with, counts as comparable.
    """
    measured_with = run.environment.get("torch")
    if measured_with is not None:
        there, here = str(measured_with).partition("+")[0], torch.__version__.partition("+")[0]
        if here != there:
            return (
                f"measured with torch {clean(there, 40)}, and this is torch {here}; measure again, or predict with "
                "theirs"
            )
    with suppress(ClmemError):  # the prediction itself says that there is no such method or network
        for part, digest in source_digests(run.spec).items():
            if "method" in run.code and run.code.get(part) != digest:
                return f"the code of the {part} changed since it was measured; measure again"
    return None


def predicted_peaks(runs: Sequence[RunResult], sources: Sources = NOWHERE) -> list[PredictedPeak]:
    """Predict each run for the vectors of the processor that measured it, as many at a time as there are cores.

    Every process predicts one run at a time, so that one that dies tells which method ended it.
    """
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def one(run: RunResult) -> PredictedPeak:
        process = idle.get()
        try:
            return process.submit(_predicted_for, run, sources).result()
        except BrokenProcessPool:
            process.shutdown()
            process = _process()
            said = f"method {run.spec.method!r} ended the process that predicted it, so it cannot be predicted"
            return PredictedPeak(None, f"{said}; measure it")
        finally:
            idle.put(process)

    count = min(cores(), len(runs))
    for _ in range(count):
        idle.put(_process())
    try:
        with ThreadPoolExecutor(max_workers=max(1, count)) as threads:
            return list(threads.map(one, runs))
    finally:
        for _ in range(count):
            idle.get().shutdown()


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))


def _predicted_for(run: RunResult, sources: Sources) -> PredictedPeak:
    """Predict a run as on its own processor, whose vectors decide how wide the blocks of a convolution are, and on its
    own card.
    """
    with assuming_card(card_of(run.environment.get("capability"), run.environment.get("cudnn"))):
        if "vectors" not in run.environment:  # an older result
            return _predicted_peak(run.spec, sources)
        with assuming_vectors(run.environment["vectors"]):
            return _predicted_peak(run.spec, sources)
