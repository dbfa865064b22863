"""The allocator's log as plain data: what was allocated and freed, in order, and where the marks fall.

Time is counted in *states*: state n is the memory after the first n events. A mark at state n was set after event n-1
and before event n, so that "was this block alive when that was observed" is a comparison of integers.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import Literal

from clmem.harness.errors import LedgerError


@dataclass(frozen=True, slots=True)
class Event:
    """One allocation (+) or release (-) of `size_bytes`; `total_bytes` is the allocator's own count after it.

    op: the operation that asked for it. site: "file:line (function)" when stacks were recorded. requested_bytes: what
    was asked for, where the allocator gives more; None where it gives just that.
    """

    time_ns: int
    address: int
    size_bytes: int
    total_bytes: int
    op: str
    site: str | None = None
    requested_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AllocationLog:
    """Events in order, and for every mark the state in which it was set.

    marked_by: of a device, what told where marks lie among its releases: what the `history` of its allocator says of
    itself, or `time` alone, to a microsecond. None on the CPU, where marks lie in the log.
    """

    events: list[Event]
    marks: dict[int, int]
    marked_by: Literal["history", "time"] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One block of memory, alive in states born <= s < dies (`dies` is None when it outlives the log)."""

    address: int
    size_bytes: int
    born: int
    dies: int | None
    event: Event

    @property
    def requested_bytes(self) -> int:
        """What was asked for, at most `size_bytes`."""
        return self.size_bytes if self.event.requested_bytes is None else self.event.requested_bytes

    def alive(self, state: int) -> bool:
        """Say whether the block exists in a state."""
        return self.born <= state and (self.dies is None or state < self.dies)


class Blocks:
    """Every block of a log, found by address and state. Raises LedgerError when the log contradicts itself."""

    def __init__(self, log: AllocationLog) -> None:
        self.all: list[Block] = []
        self._by_address: dict[int, list[Block]] = {}
        live: dict[int, tuple[int, Event]] = {}
        total = 0
        for state, event in enumerate(log.events, start=1):
            total += event.size_bytes
            if total != event.total_bytes:
                raise LedgerError(
                    f"event {state} of the allocator's log brings the running sum to {total:,} B where the allocator "
                    f"says {event.total_bytes:,} B; memory was allocated before the log began or outside its thread"
                )
            if event.size_bytes > 0:
                if event.address in live:
                    raise LedgerError(
                        f"address {event.address:#x} is allocated twice without a release (event {state})"
                    )
                live[event.address] = (state, event)
            elif event.size_bytes < 0:
                if event.address not in live:
                    raise LedgerError(f"address {event.address:#x} is released but not allocated (event {state})")
                born, birth = live.pop(event.address)
                if birth.size_bytes != -event.size_bytes:
                    raise LedgerError(
                        f"address {event.address:#x} was allocated with {birth.size_bytes:,} B "
                        f"and released with {-event.size_bytes:,} B (event {state})"
                    )
                self._add(Block(event.address, birth.size_bytes, born, state, birth))
        for address, (born, birth) in live.items():
            self._add(Block(address, birth.size_bytes, born, None, birth))

    def _add(self, block: Block) -> None:
        self.all.append(block)
        bisect.insort(self._by_address.setdefault(block.address, []), block, key=lambda known: known.born)

    def find(self, address: int, state: int) -> Block | None:
        """Return the block that lies at an address in a state. Blocks at one address never overlap in time."""
        blocks = self._by_address.get(address, [])
        position = bisect.bisect_right(blocks, state, key=lambda block: block.born) - 1
        return blocks[position] if position >= 0 and blocks[position].alive(state) else None


def between(low: AllocationLog, high: AllocationLog, share: float) -> AllocationLog | None:
    """Return a log whose every size lies between those of two, or beyond them, as the share says: 0 is low, 1 is high.

    A size that shrinks stays at least a byte. None where the two are not the same events in the same order.
    """
    if len(low.events) != len(high.events):
        return None
    twins: dict[int, int] = {}
    events: list[Event] = []
    total = 0
    for event, other in zip(low.events, high.events, strict=True):
        size, larger = event.size_bytes, other.size_bytes
        twin = twins.setdefault(event.address, other.address) if size > 0 else twins.pop(event.address, None)
        if twin != other.address or event.op != other.op or (size > 0) != (larger > 0):
            return None
        reached = max(1, round(abs(size) + share * (abs(larger) - abs(size))))
        size = reached if size > 0 else -reached
        total += size
        events.append(replace(event, size_bytes=size, total_bytes=total))
    return replace(low, events=events)


def without(log: AllocationLog, op: str) -> AllocationLog:
    """Return a log without the blocks that an operation asked for."""
    left_out: set[int] = set()
    events: list[Event] = []
    states = [0]
    total = 0
    for event in log.events:
        if event.size_bytes > 0 and event.op == op:
            left_out.add(event.address)
        elif event.address in left_out:
            left_out.remove(event.address)
        else:
            total += event.size_bytes
            events.append(replace(event, total_bytes=total))
        states.append(len(events))
    return replace(log, events=events, marks={mark: states[state] for mark, state in log.marks.items()})
