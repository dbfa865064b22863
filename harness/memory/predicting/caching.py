"""Simulates CUDA's caching allocator: what blocks a sequence of requests gets, and what is reserved for them.

torch rounds a request up to 512 B and carves it out of a segment that it keeps: 2 MiB for requests of up to 1 MiB,
20 MiB for those below 10 MiB, else the request rounded up to 2 MiB. A remainder of the latter two kinds is split off
only above 1 MiB, so a block can be larger than its rounded request. The rules are those of torch's
c10/cuda/CUDACachingAllocator.cpp (round_size, get_allocation_size, get_free_block, should_split, free_block) with
default settings and one stream.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace

from clmem.harness.memory.ledger.log import AllocationLog, Event

MIB = 2**20
ROUND_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
OWN_SEGMENT_BYTES = 10 * MIB
ROUND_SEGMENT_BYTES = 2 * MIB


class OutOfReservedError(MemoryError):
    """A request that does not fit under the limit even when everything cached has been given back."""


@dataclass(eq=False, slots=True)
class _Block:
    """A stretch of a segment, free or in use; `before` and `after` are its neighbours in the segment."""

    address: int
    size: int
    small: bool
    used: bool = False
    before: _Block | None = None
    after: _Block | None = None

    @property
    def is_whole(self) -> bool:
        return self.before is None and self.after is None

    def key(self) -> tuple[int, int]:
        return self.size, self.address


class CachingAllocator:
    """Blocks in segments. limit_bytes: what may be reserved in all; None without a limit."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.allocated_bytes = self.reserved_bytes = self.reserved_peak_bytes = 0
        self._next_segment = 1 << 32
        self._used: dict[int, _Block] = {}
        self._free: dict[bool, list[_Block]] = {True: [], False: []}

    def allocate(self, requested_bytes: int) -> tuple[int, int]:
        """Return (address, size) of a block for a request. Raises OutOfReservedError under a limit."""
        size = max(ROUND_BYTES, -(-requested_bytes // ROUND_BYTES) * ROUND_BYTES)
        small = size <= SMALL_BYTES
        block = self._best_fit(size, small) or self._new_segment(size, small)
        rest = block.size - size
        if rest >= ROUND_BYTES if small else rest > SMALL_BYTES:
            remainder = _Block(block.address + size, rest, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = remainder
            block.after, block.size = remainder, size
            self._keep(remainder)
        block.used = True
        self._used[block.address] = block
        self.allocated_bytes += block.size
        return block.address, block.size

    def release(self, address: int) -> int:
        """Take a block back and join it with its free neighbours; return the size it had."""
        block = self._used.pop(address)
        size, block.used = block.size, False
        self.allocated_bytes -= size
        for other in (block.before, block.after):
            if other is not None and not other.used:
                self._free[block.small].remove(other)
                if other is block.before:
                    block.address, block.before = other.address, other.before
                    if block.before is not None:
                        block.before.after = block
                else:
                    block.after = other.after
                    if block.after is not None:
                        block.after.before = block
                block.size += other.size
        self._keep(block)
        return size

    def _best_fit(self, size: int, small: bool) -> _Block | None:
        free = self._free[small]
        position = bisect.bisect_left(free, (size, 0), key=_Block.key)
        return free.pop(position) if position < len(free) else None

    def _new_segment(self, size: int, small: bool) -> _Block:
        if small:
            total = SMALL_SEGMENT_BYTES
        elif size < OWN_SEGMENT_BYTES:
            total = LARGE_SEGMENT_BYTES
        else:
            total = -(-size // ROUND_SEGMENT_BYTES) * ROUND_SEGMENT_BYTES
        if self.limit_bytes is not None and self.reserved_bytes + total > self.limit_bytes:
            self._give_back_cached()
            if self.reserved_bytes + total > self.limit_bytes:
                raise OutOfReservedError(
                    f"{size:,} B more would reserve {self.reserved_bytes + total:,} B of {self.limit_bytes:,} B"
                )
        self.reserved_bytes += total
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        block = _Block(self._next_segment, total, small)
        self._next_segment += total + ROUND_SEGMENT_BYTES
        return block

    def _give_back_cached(self) -> None:
        """Free the segments in which nothing is in use, as torch does before it gives up."""
        for small, blocks in self._free.items():
            self.reserved_bytes -= sum(block.size for block in blocks if block.is_whole)
            self._free[small] = [block for block in blocks if not block.is_whole]

    def _keep(self, block: _Block) -> None:
        bisect.insort(self._free[block.small], block, key=_Block.key)


def cached(
    log: AllocationLog, limit_bytes: int | None = None, dispensable: str | None = None
) -> tuple[AllocationLog, int]:
    """Return a log of requests as the caching allocator would have served them, and the peak of what it reserves.

    An event's size becomes that of the block, and what was requested stands beside it. Raises OutOfReservedError for
    the first request that does not fit under the limit; those of the operation `dispensable` are left out instead.
    """
    allocator = CachingAllocator(limit_bytes)
    address_of: dict[int, int] = {}
    left_out: set[int] = set()
    events: list[Event] = []
    states = [0]
    for event in log.events:
        if event.size_bytes > 0:
            try:
                address_of[event.address], size = allocator.allocate(event.size_bytes)
            except OutOfReservedError:
                if event.op != dispensable:
                    raise
                left_out.add(event.address)
                states.append(len(events))
                continue
        elif event.address in left_out:
            left_out.remove(event.address)
            states.append(len(events))
            continue
        else:
            size = -allocator.release(address_of.pop(event.address))
        events.append(
            replace(
                event,
                size_bytes=size,
                total_bytes=allocator.allocated_bytes,
                requested_bytes=abs(event.size_bytes),
            )
        )
        states.append(len(events))
    marks = {mark: states[state] for mark, state in log.marks.items()}
    return AllocationLog(events, marks), allocator.reserved_peak_bytes
