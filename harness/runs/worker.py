"""One process of a measurement (`processes` starts it): a job in one inherited file, JSON lines on an inherited pipe.

Lines are `{"progress": ...}` while it runs and one `{"outcome": ...}` at the end. What anybody prints goes to the log
that the parent keeps. The four passes differ only in who looks on: `truth` (the allocator's log and nothing else),
`attribution` (role records too), `process` (nothing at all, pinned malloc) and `accuracy` (the full stream).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from clmem.harness.errors import ClmemError, DivergedError, LedgerError, UndeclaredStateError, UsageError, place_of
from clmem.harness.execution.monitor import Monitor, Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.checkpoint import Checkpoint, UnusableCheckpointError
from clmem.harness.learning.training import Progress, Schedule, short_schedule, train
from clmem.harness.memory.ledger.join import join, phase_peaks, undeclared_sentence
from clmem.harness.memory.system.gpu import describe
from clmem.harness.memory.system.process import high_water_bytes, reset_high_water, resident_bytes
from clmem.harness.memory.watching.cuda import DevicePeaks
from clmem.harness.memory.watching.device_log import DeviceRecorder
from clmem.harness.memory.watching.device_process import DeviceProcess
from clmem.harness.memory.watching.observer import Observer, PhaseMarker
from clmem.harness.memory.watching.recorder import LogRecorder
from clmem.harness.networks.registry import network_digests
from clmem.harness.out_of_memory import is_limited, means_out_of_memory, shortage
from clmem.harness.results.environment import environment
from clmem.harness.results.record import Accuracy
from clmem.harness.runs.devices import check_device, check_others
from clmem.harness.runs.job import Job, Outcome
from clmem.harness.runs.limits import lift_limit, limit_process, limit_reserved, pin
from clmem.harness.specs.targets import allocator_of, device_of

Report = Callable[[Progress], None]


def main() -> None:
    """Read the job, do it, write the outcome."""
    with os.fdopen(int(os.environ["CLMEM_JOB"]), "rb") as asked:
        job = Job.model_validate(json.loads(asked.read()))
    channel = os.fdopen(int(os.environ["CLMEM_CHANNEL"]), "w", encoding="utf-8", buffering=1)

    def report(progress: Progress) -> None:
        fields = {"phase": progress.phase, "task": progress.task, "steps": progress.steps}
        channel.write(json.dumps({"progress": fields}) + "\n")

    outcome = perform(job, report)
    channel.write(json.dumps({"outcome": outcome.model_dump(mode="json")}) + "\n")
    channel.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # tearing down a process that holds gigabytes takes long and tells nothing


def perform(job: Job, report: Report) -> Outcome:
    """Run one pass; whatever goes wrong becomes a status and one sentence."""
    progress, outcome = Progress(), Outcome(environment={**environment(), "threads": torch.get_num_threads()})
    work = {"truth": _truth, "attribution": _attribution}.get(job.what, _unwatched)
    try:
        try:
            check_device(job.spec.target)
            others_checked = check_others(job.spec.target, job.sources.others_bytes)
        except UsageError:
            outcome.unfit = True
            raise
        pin(job.spec.target)
        limit_reserved(job.spec)
        if described := describe(job.spec.target, with_services=job.what == "truth"):
            outcome.environment |= {"processor": outcome.environment["device"], **described}
            outcome.environment["others_checked"] = others_checked
        work(job, outcome, progress, report)
    except DivergedError as error:
        outcome.status, outcome.reason = "diverged", str(error)
    except ClmemError as error:
        outcome.status, outcome.reason = "crashed", str(error)
        outcome.usage_error = isinstance(error, UsageError)
        outcome.undeclared = isinstance(error, UndeclaredStateError)
    except Exception as error:
        ran_out = is_out_of_memory(error, job.spec.target)
        lift_limit()
        traceback.print_exc()
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{place_of(error)}"
        outcome.status = "oom" if ran_out else "crashed"
        outcome.reason = (
            f"{shortage(error) if ran_out else said} (in {progress.phase} of task {progress.task}, after "
            f"{progress.steps} steps)"
        )
    outcome.phase_s = dict(progress.seconds)
    outcome.steps = progress.steps
    return outcome


def is_out_of_memory(error: BaseException, target: str) -> bool:
    """Say whether an exception means that memory ran out, on any target.

    A convolution that gets no workspace for any of its plans says that it finds no engine, as one without plans does:
    then the device allocator's own count of refusals decides.
    """
    no_engine = isinstance(error, RuntimeError) and "unable to find an engine" in str(error)
    return means_out_of_memory(error, limited=is_limited()) or (no_engine and _device_ran_short(target))


def _device_ran_short(target: str) -> bool:
    if allocator_of(target) == "cpu":
        return False
    stats = torch.cuda.memory_stats(device_of(target))
    return bool(stats.get("num_ooms", 0) or stats.get("num_alloc_retries", 0))


def _build(job: Job, outcome: Outcome, monitor: Monitor) -> Run:
    run = build(job.spec, monitor, job.sources)
    outcome.method_config = run.method.config.model_dump(mode="json")
    outcome.execution = run.runner.prepared.describe()
    outcome.joint = run.method.joint
    outcome.weights = run.weights
    outcome.data_digest = run.stream.data_digest
    return run


def _truth(job: Job, outcome: Outcome, progress: Progress, report: Report) -> None:
    """The short schedule and nothing else: on CUDA the allocator counts its own peaks, on the CPU its log has them."""
    if allocator_of(job.spec.target) == "cuda":
        peaks = DevicePeaks(device_of(job.spec.target))
        try:
            run, schedule = _short(job, outcome, peaks, progress, report)
        finally:
            outcome.peaks, outcome.counters = peaks.by_phase, peaks.highest()
    else:
        recorder = LogRecorder()
        marker = PhaseMarker(recorder)
        recorder.start()
        try:
            run, schedule = _short(job, outcome, marker, progress, report)
            marker.finish()
        finally:
            outcome.peaks = phase_peaks(recorder.stop(), marker.records.phases)
    from clmem.harness.learning.flops import count_flops  # slow to import, and only this pass needs it

    outcome.flops_per_step = count_flops(job.spec, job.sources, schedule.steps or (), run)


def _attribution(job: Job, outcome: Outcome, progress: Progress, report: Report) -> None:
    """The short schedule under the allocator's log, with role records."""
    device = device_of(job.spec.target)
    recorder: LogRecorder | DeviceRecorder
    if allocator_of(job.spec.target) == "cuda":
        recorder = DeviceRecorder(device, job.stacks, None if job.snapshot is None else Path(job.snapshot))
        observer = Observer(recorder, torch.device(device).type, recorder.annotate)
    else:
        recorder = LogRecorder(device, job.stacks)
        observer = Observer(recorder, torch.device(device).type)
    ran_out = False
    recorder.start()
    try:
        with observer.watching():
            _short(job, outcome, observer, progress, report)
            observer.finish()
    except Exception as error:
        ran_out = is_out_of_memory(error, job.spec.target)
        raise
    finally:
        with suppress(LedgerError) if ran_out else nullcontext():  # what it held until then, where that adds up
            log = recorder.stop()
            outcome.peaks = phase_peaks(log, observer.records.phases)
            if ran_out and observer.records.phases:
                outcome.footprint = join(log, observer.records).footprint
    ledger = join(log, observer.records)
    if ledger.undeclared:
        raise UndeclaredStateError(undeclared_sentence(job.spec.method, ledger.undeclared))
    outcome.footprint = ledger.footprint


def _short(job: Job, outcome: Outcome, monitor: Monitor, progress: Progress, report: Report) -> tuple[Run, Schedule]:
    """Build the run and take the steps of the short schedule."""
    run = _build(job, outcome, monitor)
    schedule = short_schedule(run.method)
    train(run, schedule, monitor, progress, report)
    outcome.fingerprint = run.stream.fingerprint
    return run, schedule


def _unwatched(job: Job, outcome: Outcome, progress: Progress, report: Report) -> None:
    """Process: the short schedule as the operating system sees it. Accuracy: the full stream."""
    # The first optimizer makes torch import its compiler, 150 MiB of it: torch's part of the process, not the method's.
    importlib.import_module("torch._dynamo")
    outcome.peak_includes_imports = not reset_high_water()
    outcome.baseline_bytes = resident_bytes()
    checkpoint = (
        Checkpoint(Path(job.checkpoint), {"run": job.spec.run_id, **network_digests(job.spec.network)})
        if job.checkpoint
        else None
    )
    monitor = DeviceProcess(job.spec.target) if allocator_of(job.spec.target) == "cuda" else Unwatched()
    try:
        try:
            _learn(job, outcome, monitor, progress, report, checkpoint)
        except UnusableCheckpointError as error:
            outcome.notes.append(f"{error}, so it began anew")
            _learn(job, outcome, monitor, progress, report, checkpoint)
    finally:
        if isinstance(monitor, DeviceProcess):
            outcome.device_peak_bytes = monitor.peak_bytes
        outcome.process_peak_bytes = high_water_bytes()
        if checkpoint is not None:
            outcome.process_peak_bytes = max(outcome.process_peak_bytes, checkpoint.process_peak_bytes)
            outcome.resumed_at = checkpoint.resumed_at
            outcome.notes += checkpoint.notes


def _learn(
    job: Job, outcome: Outcome, monitor: Monitor, progress: Progress, report: Report, checkpoint: Checkpoint | None
) -> None:
    """Build the run and take its schedule, the full one for an accuracy run."""
    run = _build(job, outcome, monitor)
    limit_process(job.spec)
    reset_high_water()  # reading pretrained weights holds them twice, which is no phase of the method
    full = job.what == "accuracy"
    schedule = Schedule() if full else short_schedule(run.method, steady=False)
    accuracy: Accuracy = train(run, schedule, monitor, progress, report, checkpoint)
    outcome.fingerprint = run.stream.fingerprint
    if full and run.stream.has_data:
        outcome.accuracy = accuracy
