"""Reads what torch's allocator does on a device, CPU or CUDA, through the profiler's memory events.

Start it before anything is allocated: the allocator's total counts from there. One recording per process.
Marks are empty profiler ranges, so they lie on the same clock, in the same order, as the events themselves.
Allocations on other Python threads and outside torch (numpy) are not in this log. Of CUDA it lacks releases too, and
what was asked for; `device_log` has the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType, _RecordFunctionFast
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from clmem.harness.errors import LedgerError
from clmem.harness.memory.ledger.log import AllocationLog, Event

MARK = "clmem mark "

NOT_THE_USER = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[2]}/")
"""Where the files lie whose lines are no answer to "who allocated this?": torch's, and those that measure."""


class LogRecorder:
    """Records the allocator's log of one device.

    with_stacks: also the Python line behind each allocation. on_mark: is told the number of every mark that is set.
    mark_times: when each was set, in ns by the profiler's clock, after `stop`.
    """

    def __init__(
        self, device: str = "cpu", with_stacks: bool = False, on_mark: Callable[[int], None] = lambda number: None
    ) -> None:
        self.mark_times: dict[int, int] = {}
        self._on_mark = on_mark
        self._device = torch.device(device)
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._sites = _Sites(self.mark) if with_stacks else None
        self._marks = 0
        self._running = False

    def start(self) -> None:
        """Begin recording."""
        self._profile.start()
        self._running = True
        if self._sites is not None:
            self._sites.__enter__()  # type: ignore[no-untyped-call]

    def mark(self) -> int:
        """Set a mark and return its number. After `stop` it lies at the end of the log."""
        number = self._marks
        if self._running:
            self._marks += 1
            with _RecordFunctionFast(MARK + str(number)):
                pass
            self._on_mark(number)
        return number

    def stop(self) -> AllocationLog:
        """End recording and return the log. Raises LedgerError when torch lost marks."""
        if self._sites is not None:
            self._sites.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._running = False
        self._profile.stop()
        entries: list[tuple[int, Any, Any]] = []  # (time, node, allocation or None for a mark)
        todo: list[Any] = list(self._profile.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
        todo.reverse()
        while todo:
            node = todo.pop()
            todo.extend(reversed(node.children))
            kind, extra = node.typed
            if kind == _EventType.Allocation:
                if self._is_ours(extra.device):
                    entries.append((node.start_time_ns, node, extra))
            elif kind == _EventType.TorchOp and node.name.startswith(MARK):
                entries.append((node.start_time_ns, node, None))
        # Stable: what a coarse clock puts at one instant stays in the order of torch's tree.
        entries.sort(key=lambda entry: entry[0])
        events: list[Event] = []
        marks: dict[int, int] = {}
        sites = {} if self._sites is None else self._sites.by_mark
        site: str | None = None
        for time_ns, node, extra in entries:
            if extra is None:
                number = int(node.name[len(MARK) :])
                marks[number] = len(events)
                self.mark_times[number] = time_ns
                site = sites.get(number, site)
            else:
                events.append(Event(time_ns, extra.ptr, extra.alloc_size, extra.total_allocated, _operator(node), site))
        if len(marks) != self._marks:
            raise LedgerError(
                f"torch's profiler kept {len(marks)} of {self._marks} marks, so nothing can be attributed"
            )
        marks[self._marks] = len(events)  # for what is released later, a graph that outlives the recording
        return AllocationLog(events, marks)

    def _is_ours(self, device: torch.device) -> bool:
        return device.type == self._device.type and device.index in (None, -1, self._device.index)


ALLOCATING = frozenset(
    "aten::" + name for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")
)
"""Operators that only allocate on behalf of another: a reader wants the name of that other."""


def _operator(node: Any) -> str:
    """Return the innermost operator around an allocation that does more than allocate."""
    name = "(outside any operator)"
    parent = node.parent
    while parent is not None:
        if parent.typed[0] == _EventType.TorchOp:
            name = str(parent.name)
            if name not in ALLOCATING:
                break
        parent = parent.parent
    return name


class _Sites(TorchFunctionMode):
    """Remembers by mark which line called torch (None once it returned): exact also for operators like `a * b`.

    The profiler's own stacks name only the first line of a function for those, and record every Python call.
    """

    def __init__(self, mark: Callable[[], int]) -> None:
        super().__init__()
        self.by_mark: dict[int, str | None] = {}
        self._mark = mark

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function between two marks."""
        self.by_mark[self._mark()] = _python_site()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.by_mark[self._mark()] = None


def _python_site() -> str | None:
    """Return "file:line (function)" of the innermost frame that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(NOT_THE_USER):
        frame = frame.f_back  # type: ignore[assignment]
    return frame and f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
