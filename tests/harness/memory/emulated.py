"""A CUDA device that is not there: the CPU's log, served as the caching allocator would have served it.

Tensors lie on the CPU. What is emulated is what torch says about them: the profiler's sizes are those of blocks, and
the allocator's history has every request, in the form of `torch.cuda.memory._snapshot()`. No number that comes out of
this says anything about a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmem.harness.execution import step
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning import build
from clmem.harness.memory.ledger.log import AllocationLog
from clmem.harness.memory.predicting.caching import cached
from clmem.harness.memory.watching import device_log
from clmem.harness.memory.watching.device_log import OUTSIDE
from clmem.harness.memory.watching.recorder import LogRecorder
from clmem.harness.runs import worker
from clmem.harness.runs.job import Job

TRACE: list[dict[str, Any]] = []
"""The history of the last recording."""
ANNOTATED: list[str] = []
"""The roles that were written into it."""


def trace_of(log: AllocationLog) -> list[dict[str, Any]]:
    """Return the entries of the allocator's history for a log that `cached` made, with the mark before each."""
    entries: list[dict[str, Any]] = [{"action": "segment_alloc", "addr": 1 << 32, "size": 2 << 20, "stream": 0}]
    last = np.searchsorted([log.marks[number] for number in sorted(log.marks)], range(len(log.events)), side="right")
    for event, marks_before in zip(log.events, last, strict=True):
        entry = {"addr": event.address, "size": event.requested_bytes, "stream": 0, "frames": []}
        entry |= {"time_us": event.time_ns // 1000, "user_metadata": str(marks_before - 1) if marks_before else ""}
        actions = ["alloc"] if event.size_bytes > 0 else ["free_requested", "free_completed"]
        entries += [{"action": action, **entry} for action in actions]
    return [*entries, {"action": "snapshot", "addr": 0, "size": 0, "stream": 0}]


def profiled(log: AllocationLog) -> AllocationLog:
    """Return what a profiler says of CUDA: no requests, and no release outside of an operator."""
    events, states = [], [0]
    for event in log.events:
        if event.size_bytes > 0 or event.op != OUTSIDE:
            events.append(replace(event, requested_bytes=None))
        states.append(len(events))
    return AllocationLog(events, {mark: states[state] for mark, state in log.marks.items()})


class EmulatedRecorder(LogRecorder):
    """Records the CPU and says what a profiler would say of CUDA."""

    def __init__(self, device: str = "cpu", *arguments: Any) -> None:
        super().__init__("cpu", *arguments)

    def stop(self) -> AllocationLog:
        log = self.served()
        TRACE[:] = trace_of(log)
        return profiled(log)

    def served(self) -> AllocationLog:
        """Return the whole log, as the caching allocator would have served its requests."""
        return cached(super().stop())[0]


class EmulatedHistory:
    """Stands for `History` of `memory.watching.cuda`; a snapshot is the history and the roles written into it."""

    def __init__(self, device: str, snapshot: Path | None = None) -> None:
        self._snapshot = snapshot

    def start(self) -> None: ...

    def mark(self, number: int) -> None: ...

    def annotate(self, tensor: Tensor, role: str) -> None:
        ANNOTATED.append(role)

    def stop(self) -> list[dict[str, Any]]:
        if self._snapshot is not None:
            self._snapshot.write_text(json.dumps({"device_traces": [TRACE], "roles": sorted(set(ANNOTATED))}))
        return list(TRACE)


class EmulatedPeaks(Unwatched):
    """Stands for `harness.memory.watching.cuda.DevicePeaks`: peaks by phase, from the log that nobody but it reads."""

    def __init__(self, device: str) -> None:
        self._recorder = EmulatedRecorder()
        self._recorder.start()
        self._spans: list[tuple[int, str, int, int]] = []

    @contextmanager
    def phase(self, name: str, task: int) -> Iterator[None]:
        start = self._recorder.mark()
        yield
        self._spans.append((task, name, start, self._recorder.mark()))

    @property
    def by_phase(self) -> list[tuple[int, str, int]]:
        if not hasattr(self, "_log"):
            self._log = self._recorder.served()
        totals = [0, *(event.total_bytes for event in self._log.events)]
        peaks: dict[tuple[int, str], int] = {}
        for task, name, start, end in self._spans:
            highest = max(totals[self._log.marks[start] : self._log.marks[end] + 1])
            peaks[task, name] = max(highest, peaks.get((task, name), 0))
        return [(task, name, peak) for (task, name), peak in peaks.items()]

    def highest(self) -> dict[str, int]:
        return {"requested_bytes": 1, "active_bytes": 2, "reserved_bytes": 3, "retries": 0}


def run_out_in(learning: int) -> None:
    """Let the device run out of memory in the backward of the n-th batch (0-based) that is learnt."""
    batches = iter(range(learning + 1))
    backward = step.StepRunner._backward

    def until_then(self: step.StepRunner, *arguments: Any) -> None:
        backward(self, *arguments)
        if next(batches) == learning:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    step.StepRunner._backward = until_then  # type: ignore[method-assign]


def main() -> None:
    """Do the job on standard input on the emulated device; print its outcome. Argument: when memory runs out."""
    for number in sys.argv[1:]:
        run_out_in(int(number))
    device_log.LogRecorder = EmulatedRecorder  # type: ignore[misc]
    device_log.History = EmulatedHistory  # type: ignore[misc,assignment]
    worker.DevicePeaks = EmulatedPeaks  # type: ignore[misc,assignment]
    worker.device_of = build.device_of = lambda target: "cpu"  # type: ignore[assignment]
    worker.check_device = worker.check_others = worker.pin = worker.limit_reserved = lambda *arguments: None  # type: ignore[assignment]
    worker.describe = lambda target, *, with_services: {"device": "emulated"}
    outcome = worker.perform(Job.model_validate_json(sys.stdin.read()), lambda progress: None)
    print(outcome.model_dump_json())


if __name__ == "__main__":
    main()
