"""The log of a CUDA device: the history that its caching allocator keeps, with operators from torch's profiler.

The profiler alone is no log there: its event tree leaves out what is released outside of any operator, such as a tensor
that Python drops between two (torch 2.11 on an H100: 175 of 859 releases). With Python stacks it has those too, but
records every call. The allocator's history has each block given and taken back, in the allocator's own order. It does
not say how large a block is, or which operator asked for it; the profiler does, and its events are some of the
history's, in the same order.

Where a mark lies: whatever the profiler has says between which two of its events. Of releases between these two, the
history tells, if torch can write into it (2.11 and newer): each thread writes the number of its last mark, and the
allocator copies it into every later entry of that thread. Entries of another thread, and all of older torch's, are
placed by time; both clocks agree to a microsecond.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clmem.harness.errors import LedgerError
from clmem.harness.memory.ledger.cublas import cublas_workspace_bytes, multiplies
from clmem.harness.memory.ledger.libraries import CUBLAS
from clmem.harness.memory.ledger.log import AllocationLog, Event
from clmem.harness.memory.watching.cuda import History
from clmem.harness.memory.watching.recorder import LogRecorder

OUTSIDE = "(outside any operator)"
ROUNDED_TO = 512
"""Bytes that the caching allocator rounds a request up to."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Which thread set a mark, and when by the profiler's clock; None where the time is not known."""

    thread: int
    time_ns: int | None


class DeviceRecorder:
    """Records the log of one CUDA device. with_stacks, snapshot: as in `LogRecorder` and `History`."""

    def __init__(self, device: str, with_stacks: bool = False, snapshot: Path | None = None) -> None:
        self._history = History(device, snapshot)
        self._profiler = LogRecorder(device, with_stacks, self._note)
        self._threads: dict[int, int] = {}

    def start(self) -> None:
        """Begin recording, before anything is allocated."""
        self._history.start()
        self._profiler.start()

    def mark(self) -> int:
        """Set a mark and return its number. After `stop` it lies at the end of the log."""
        return self._profiler.mark()

    def annotate(self, tensor: Tensor, role: str) -> None:
        """Write a tensor's role into a snapshot."""
        self._history.annotate(tensor, role)

    def stop(self) -> AllocationLog:
        """End recording and return the log. Raises LedgerError where the two recordings do not belong together."""
        profiled = self._profiler.stop()
        trace = self._history.stop()
        times = self._profiler.mark_times
        marks = {number: Mark(thread, times[number]) for number, thread in self._threads.items()}
        return merge(profiled, trace, marks, cublas_workspace_bytes())

    def _note(self, number: int) -> None:
        self._threads[number] = threading.get_ident()
        self._history.mark(number)


def merge(
    profiled: AllocationLog, trace: Sequence[Mapping[str, Any]], marks: Mapping[int, Mark], cublas_bytes: int
) -> AllocationLog:
    """Return the log of a device.

    profiled: the profiler's; its total is the allocator's own count. trace: the history, as in
    `torch.cuda.memory._snapshot()["device_traces"]`. marks: what is known of each mark but the last, which lies at the
    end. cublas_bytes: of a block that a matrix product asks for and cuBLAS keeps. Raises LedgerError where the two
    disagree.
    """
    entries = [entry for entry in trace if entry["action"] in ("alloc", "free_requested")]
    joined = _Joined()
    found = [0]
    """By number of profiled events: how many entries of the history came until then."""
    for number, entry in enumerate(entries, start=1):
        old = profiled.events[len(found) - 1] if len(found) <= len(profiled.events) else None
        given = entry["action"] == "alloc"
        if old is not None and old.address == entry["addr"] and (old.size_bytes > 0) == given:
            is_cublas = given and entry["size"] == cublas_bytes and multiplies(old.op)
            joined.add_known(replace(old, requested_bytes=entry["size"], op=CUBLAS if is_cublas else old.op))
            found.append(number)
        else:
            joined.add_unknown(entry)
    if len(found) <= len(profiled.events):
        missing = profiled.events[len(found) - 1]
        raise LedgerError(
            f"the allocator's history has {len(entries):,} entries and lacks event {len(found) - 1:,} of the "
            f"profiler's log ({missing.size_bytes:,} B at {missing.address:#x}); was it cut short, or started late?"
        )
    found.append(len(entries) + 1)
    in_history = any(_last_mark(entry) is not None for entry in entries)
    places: dict[int, int] = {}
    before = 0
    for number in sorted(profiled.marks):
        state = profiled.marks[number]
        gap = range(found[state], found[state + 1] - 1)
        mark = marks.get(number)
        before = max(before, gap.stop if mark is None else _place(number, mark, gap, entries, marks))
        places[number] = before
    return AllocationLog(joined.events, places, marked_by="history" if in_history else "time")


class _Joined:
    """Events of the history, as they are put together; the sum is compared with the allocator's own wherever known."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._live: dict[int, int] = {}
        self._guessed: list[int] = []
        self._total = 0

    def add_known(self, event: Event) -> None:
        """Add an event that the profiler has, too."""
        expected = event.total_bytes - event.size_bytes
        if expected != self._total and len(self._guessed) == 1:
            self._correct(self._guessed[0], expected - self._total)
        if expected != self._total:
            raise LedgerError(
                f"the allocator held {expected:,} B where its history adds up to {self._total:,} B (event "
                f"{len(self.events)}); the device was in use before the recording began, or its history was cut short"
            )
        self._guessed.clear()
        if event.size_bytes > 0 and abs(event.size_bytes) < (event.requested_bytes or 0):
            raise LedgerError(
                f"the profiler's block of {event.size_bytes:,} B at {event.address:#x} is smaller than the "
                f"{event.requested_bytes:,} B that the allocator's history says were asked for"
            )
        self._add(event)

    def add_unknown(self, entry: Mapping[str, Any]) -> None:
        """Add what the history has alone: a release outside operators, or what a thread did that nobody profiles.

        Such a thread's block has the size that makes the next known sum right; until then it is what was asked for,
        rounded as the allocator does.
        """
        address, requested, time_ns = entry["addr"], entry["size"], 1000 * entry["time_us"]
        if entry["action"] == "alloc":
            size = -(-max(requested, 1) // ROUNDED_TO) * ROUNDED_TO
            self._guessed.append(len(self.events))
        elif address in self._live:
            size = -self._live[address]
        else:
            raise LedgerError(
                f"the allocator's history releases {requested:,} B at {address:#x} that it never gave; the device was "
                "in use before the recording began, or its history was cut short"
            )
        self._add(Event(time_ns, address, size, 0, OUTSIDE, None, requested))

    def _add(self, event: Event) -> None:
        self._total += event.size_bytes
        self.events.append(replace(event, total_bytes=self._total))
        if event.size_bytes > 0:
            self._live[event.address] = event.size_bytes
        else:
            self._live.pop(event.address, None)

    def _correct(self, first: int, surplus: int) -> None:
        """Let one block be larger, from its birth to its release if that came."""
        birth = self.events[first]
        if birth.size_bytes + surplus < (birth.requested_bytes or 0):
            return
        later = range(first + 1, len(self.events))
        went = any(self.events[n].address == birth.address and self.events[n].size_bytes < 0 for n in later)
        if went:
            return  # before anybody could tell: the sum does not depend on it
        size = self._live[birth.address] = birth.size_bytes + surplus
        self.events[first] = replace(birth, size_bytes=size, total_bytes=birth.total_bytes + surplus)
        for number in later:
            event = self.events[number]
            self.events[number] = replace(event, total_bytes=event.total_bytes + surplus)
        self._total += surplus


def _last_mark(entry: Mapping[str, Any]) -> int | None:
    """Return the last mark of the thread that an entry is of, as the history has it."""
    try:
        return int(entry.get("user_metadata") or "")
    except ValueError:  # somebody else's words
        return None


def _place(number: int, mark: Mark, gap: range, entries: Sequence[Mapping[str, Any]], marks: Mapping[int, Mark]) -> int:
    """Return how many entries came before a mark that lies in a gap between two entries that the profiler knows."""
    place = gap.start
    for index in gap:
        entry = entries[index]
        last = _last_mark(entry)
        if last is not None and last in marks and marks[last].thread == mark.thread:
            if last >= number:
                break
            place = index + 1
        elif place == index and (mark.time_ns is None or 1000 * entry["time_us"] <= mark.time_ns):
            place = index + 1
    return place
