"""CUDA's caching allocator, simulated: blocks, segments, and what is left when memory runs out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clmem.harness.memory.ledger.log import AllocationLog, Event, between, without
from clmem.harness.memory.predicting.caching import MIB, CachingAllocator, OutOfReservedError, cached


def test_requests_are_rounded_up_to_512_bytes() -> None:
    allocator = CachingAllocator()
    assert [allocator.allocate(size)[1] for size in (1, 512, 513)] == [512, 512, 1024]


def test_small_requests_share_a_segment_of_2_mib() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(MIB // 2)
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(1)
    assert allocator.reserved_bytes == 4 * MIB


def test_middle_requests_come_out_of_20_mib_and_large_ones_have_their_own_segment() -> None:
    allocator = CachingAllocator()
    allocator.allocate(3 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.allocate(11 * MIB + 1)
    assert allocator.reserved_bytes == 20 * MIB, "the rest of the 20 MiB is large enough"
    allocator.allocate(11 * MIB + 1)
    assert allocator.reserved_bytes == 32 * MIB


def test_a_remainder_of_up_to_1_mib_stays_with_a_large_block() -> None:
    allocator = CachingAllocator()
    assert allocator.allocate(11 * MIB)[1] == 12 * MIB
    assert CachingAllocator().allocate(10 * MIB + 512)[1] == 10 * MIB + 512


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    first, second = allocator.allocate(30 * MIB)[0], allocator.allocate(14 * MIB)[0]
    allocator.release(first)
    allocator.release(second)
    assert allocator.allocate(13 * MIB + 512)[0] == second
    assert allocator.reserved_bytes == 44 * MIB


def test_neighbours_that_are_free_become_one_block_again() -> None:
    allocator = CachingAllocator()
    addresses = [allocator.allocate(5 * MIB)[0] for _ in range(4)]
    for address in (addresses[1], addresses[3], addresses[2], addresses[0]):
        allocator.release(address)
    assert allocator.allocate(19 * MIB + 512)[0] == addresses[0]
    assert allocator.reserved_bytes == 20 * MIB


def test_what_is_cached_is_given_back_before_memory_runs_out() -> None:
    allocator = CachingAllocator(limit_bytes=40 * MIB)
    allocator.release(allocator.allocate(30 * MIB)[0])
    allocator.allocate(32 * MIB)
    assert (allocator.reserved_bytes, allocator.reserved_peak_bytes) == (32 * MIB, 32 * MIB)
    with pytest.raises(OutOfReservedError, match="of 41,943,040 B"):
        allocator.allocate(12 * MIB)


def test_a_log_keeps_its_places_and_learns_what_blocks_were_given() -> None:
    events = [Event(0, 7, 1000, 1000, "aten::add"), Event(1, 9, 300, 1300, "aten::mul"), Event(2, 7, -1000, 300, "")]
    log, reserved = cached(AllocationLog(events, {0: 1, 1: 3}))
    assert [(e.address, e.size_bytes, e.total_bytes, e.requested_bytes) for e in log.events] == [
        (7, 1024, 1024, 1000),
        (9, 512, 1536, 300),
        (7, -1024, 512, 1000),
    ]
    assert log.marks == {0: 1, 1: 3}
    assert reserved == 2 * MIB


def with_a_workspace(workspace_bytes: int) -> AllocationLog:
    """A block of 30 MiB, a workspace that comes and goes, and the block goes; a mark after each."""
    sizes = [(1, 30 * MIB, "aten::add"), (2, workspace_bytes, "scratch"), (2, -workspace_bytes, ""), (1, -30 * MIB, "")]
    totals = [30 * MIB, 30 * MIB + workspace_bytes, 30 * MIB, 0]
    events = [
        Event(number, address, size, total, op)
        for number, ((address, size, op), total) in enumerate(zip(sizes, totals, strict=True))
    ]
    return AllocationLog(events, {number: number for number in range(5)})


def test_a_dispensable_request_that_does_not_fit_is_left_out_and_marks_stay_where_they_were() -> None:
    log = with_a_workspace(20 * MIB)
    whole, reserved = cached(log, 64 * MIB, dispensable="scratch")
    assert (len(whole.events), reserved) == (4, 50 * MIB)
    cut, reserved = cached(log, 40 * MIB, dispensable="scratch")
    assert [event.size_bytes for event in cut.events] == [30 * MIB, -30 * MIB]
    assert (cut.marks, reserved) == ({0: 0, 1: 1, 2: 1, 3: 1, 4: 2}, 30 * MIB)
    with pytest.raises(OutOfReservedError):
        cached(log, 40 * MIB)


def test_a_log_without_an_operation_has_other_totals_and_marks_where_they_were() -> None:
    rest = without(with_a_workspace(20 * MIB), "scratch")
    assert [(event.size_bytes, event.total_bytes) for event in rest.events] == [(30 * MIB, 30 * MIB), (-30 * MIB, 0)]
    assert rest.marks == {0: 0, 1: 1, 2: 1, 3: 1, 4: 2}


def test_a_log_between_two_lies_on_the_line_through_them_and_keeps_their_marks() -> None:
    low, high = with_a_workspace(4 * MIB), with_a_workspace(12 * MIB)
    for share, workspace_mib in ((0.0, 4), (0.5, 8), (1.0, 12), (3.0, 28)):
        found = between(low, high, share)
        assert found is not None
        assert found.events == with_a_workspace(workspace_mib * MIB).events
        assert found.marks == low.marks


def test_a_block_that_shrinks_along_the_line_never_becomes_a_release() -> None:
    found = between(with_a_workspace(4 * MIB), with_a_workspace(3 * MIB), 30.0)
    assert found is not None
    assert [event.size_bytes for event in found.events] == [30 * MIB, 1, -1, -30 * MIB]
    assert cached(found)[0].events[-1].total_bytes == 0


def test_logs_that_are_not_the_same_events_have_no_line_between_them() -> None:
    log = with_a_workspace(4 * MIB)
    events = log.events
    for other in (
        AllocationLog(events[:2], log.marks),
        AllocationLog([events[0], replace(events[1], op="aten::mul"), *events[2:]], log.marks),
        AllocationLog([events[0], events[1], events[3], events[2]], log.marks),
    ):
        assert between(log, other, 0.5) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 40 * MIB), st.integers(1, 4096), st.just(0)), max_size=60), st.randoms())
def test_blocks_never_overlap_and_sums_agree(requests: list[int], random: object) -> None:
    """A request of 0 stands for releasing one of the blocks in use."""
    allocator, live = CachingAllocator(), {}
    for request in requests:
        if request:
            address, size = allocator.allocate(request)
            assert size >= request
            assert all(address + size <= other or other + held <= address for other, held in live.items())
            live[address] = size
        elif live:
            address = random.choice(sorted(live))  # type: ignore[attr-defined]
            assert allocator.release(address) == live.pop(address)
        assert allocator.allocated_bytes == sum(live.values())
        assert allocator.reserved_bytes == allocator.reserved_peak_bytes >= allocator.allocated_bytes
    for address in live:
        allocator.release(address)
    allocator.limit_bytes = 0
    with pytest.raises(OutOfReservedError):
        allocator.allocate(200 * MIB)
    assert allocator.reserved_bytes == 0, "with nothing in use, every segment can be given back"
