"""One process of a measurement (`processes` starts it): a job on standard input, JSON lines on standard output.

Lines are `{"progress": ...}` while it runs and one `{"outcome": ...}` at the end. What a method prints goes to
standard error. The four passes differ only in who looks on: `truth` (the allocator's log and nothing else),
`attribution` (role records too), `process` (nothing at all, pinned malloc) and `accuracy` (the full stream).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from harness.build import Run, build
from harness.checkpoint import Checkpoint
from harness.environment import environment
from harness.errors import ClmemError, DivergedError, UndeclaredStateError, UsageError
from harness.execution.monitor import Monitor, Unwatched
from harness.job import Job, Outcome
from harness.memory.cpu import CpuRecorder
from harness.memory.ledger import Undeclared, join, phase_peaks
from harness.memory.observer import Observer, PhaseMarker
from harness.memory.process import high_water_bytes, reset_high_water, resident_bytes
from harness.results import Accuracy
from harness.training import Progress, Schedule, short_schedule, train

Report = Callable[[Progress], None]


def main() -> None:
    """Read the job, do it, write the outcome."""
    job = Job.model_validate_json(sys.stdin.read())
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def report(progress: Progress) -> None:
        fields = {"phase": progress.phase, "task": progress.task, "steps": progress.steps}
        channel.write(json.dumps({"progress": fields}) + "\n")

    outcome = perform(job, report)
    channel.write(json.dumps({"outcome": outcome.model_dump(mode="json")}) + "\n")
    channel.close()
    sys.stderr.flush()
    os._exit(0)  # tearing down a process that holds gigabytes takes long and tells nothing


def perform(job: Job, report: Report) -> Outcome:
    """Run one pass; whatever goes wrong becomes a status and one sentence."""
    progress, outcome = Progress(), Outcome(environment={**environment(), "threads": torch.get_num_threads()})
    try:
        if job.what in ("truth", "attribution"):
            _recorded(job, outcome, progress, report)
        else:
            _unwatched(job, outcome, progress, report)
    except DivergedError as error:
        outcome.status, outcome.reason = "diverged", str(error)
    except ClmemError as error:
        outcome.status, outcome.reason = "crashed", str(error)
        outcome.usage_error = isinstance(error, UsageError)
        outcome.undeclared = isinstance(error, UndeclaredStateError)
    except Exception as error:
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        outcome.status = "oom" if is_out_of_memory(error) else "crashed"
        outcome.reason = f"{sentence} (in {progress.phase} of task {progress.task}, after {progress.steps} steps)"
    outcome.phase_s = dict(progress.seconds)
    outcome.steps = progress.steps
    return outcome


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that memory ran out, on any target.

    On Jetson, CUDA's out-of-memory can surface as a failed NVML assertion inside the caching allocator.
    """
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            "out of memory" in text.lower()
            or "DefaultCPUAllocator: can't allocate memory" in text
            or ("NVML_SUCCESS == r" in text and "CUDACachingAllocator" in text)
        )
    )


def _build(job: Job, outcome: Outcome, monitor: Monitor) -> Run:
    run = build(job.spec, monitor, job.sources)
    outcome.method_config = run.method.config.model_dump(mode="json")
    outcome.execution = run.execution.describe()
    outcome.joint = run.method.joint
    outcome.weights = run.weights
    outcome.data_digest = run.stream.data_digest
    return run


def _recorded(job: Job, outcome: Outcome, progress: Progress, report: Report) -> None:
    """Truth and attribution: the short schedule under the allocator's log."""
    recorder = CpuRecorder(with_stacks=job.stacks)
    monitor = Observer(recorder) if job.what == "attribution" else PhaseMarker(recorder)
    recorder.start()
    try:
        with monitor.watching() if isinstance(monitor, Observer) else nullcontext():
            run = _build(job, outcome, monitor)
            schedule = short_schedule(run.method)
            train(run, schedule, monitor, progress, report)
            monitor.finish()
    finally:
        log = recorder.stop()
        outcome.peaks = phase_peaks(log, monitor.records.phases)
    outcome.fingerprint = run.stream.fingerprint
    if isinstance(monitor, Observer):
        ledger = join(log, monitor.records)
        if ledger.undeclared:
            raise UndeclaredStateError(_undeclared_sentence(job.spec.method, ledger.undeclared))
        outcome.footprint = ledger.footprint
    else:
        from harness.flops import count_flops  # slow to import, and only this pass needs it

        outcome.flops_per_step = count_flops(job.spec, job.sources, schedule.steps or (), run)


def _unwatched(job: Job, outcome: Outcome, progress: Progress, report: Report) -> None:
    """Process: the short schedule as the operating system sees it. Accuracy: the full stream."""
    outcome.peak_includes_imports = not reset_high_water()
    outcome.baseline_bytes = resident_bytes()
    full = job.what == "accuracy"
    checkpoint = Checkpoint(Path(job.checkpoint), {"run": job.spec.run_id}) if job.checkpoint else None
    try:
        run = _build(job, outcome, Unwatched())
        reset_high_water()  # reading pretrained weights holds them twice, which is no phase of the method
        schedule = Schedule() if full else short_schedule(run.method, steady=False)
        accuracy: Accuracy = train(run, schedule, Unwatched(), progress, report, checkpoint)
    finally:
        outcome.process_peak_bytes = high_water_bytes()
        if checkpoint is not None:
            outcome.process_peak_bytes = max(outcome.process_peak_bytes, checkpoint.process_peak_bytes)
            outcome.resumed_at = checkpoint.resumed_at
    outcome.fingerprint = run.stream.fingerprint
    if full and run.stream.has_data:
        outcome.accuracy = accuracy


def _undeclared_sentence(method: str, undeclared: list[Undeclared]) -> str:
    total = sum(item.block.size_bytes for item in undeclared)
    largest = undeclared[0]
    event = largest.block.event
    where = f"at {event.site}" if event.site else f"by {event.op}"
    return (
        f"method {method!r} keeps {total:,} B in {len(undeclared)} block(s) across steps without declaring them; the "
        f"largest ({largest.block.size_bytes:,} B, found at the start of {largest.phase} of task {largest.task}) was "
        f"allocated {where}: declare it in memory_roles(), or drop it"
    )
