"""The log of a CUDA device from its allocator's history and a profiler that lacks releases: recordings and made ones.

`recorded/h100/` holds one attribution pass of five methods on an H100 (torch 2.11): ResNet-18 at width 64 on the CIFAR
shape, batch 32. They were recorded before marks were written into the history. What was seen at a mark was alive then,
so releases between two events of the profiler follow the marks that saw their blocks; `written` puts that down.
"""

from __future__ import annotations

import gzip
import json
import random
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmem.harness.errors import LedgerError
from clmem.harness.memory.ledger.join import Ledger, Observation, PhaseSpan, Records, Saved, join, phase_peaks
from clmem.harness.memory.ledger.libraries import CUBLAS, library_of
from clmem.harness.memory.ledger.log import AllocationLog, Blocks, Event
from clmem.harness.memory.watching.device_log import OUTSIDE, Mark, merge

RECORDED = Path(__file__).parent / "recorded" / "h100"
KEPT_BY_CUBLAS = 8_519_680
Trace = list[dict[str, Any]]


@dataclass
class Recording:
    """What one attribution pass left behind. peak_bytes: the allocator's own, of the whole process."""

    profiled: AllocationLog
    trace: Trace
    records: Records
    peak_bytes: int

    @property
    def marks(self) -> dict[int, Mark]:
        """Every mark but the last: one thread, and times that nobody kept."""
        last = max(self.profiled.marks)
        return {number: Mark(1, None) for number in self.profiled.marks if number < last}

    def log(self, trace: Trace | None = None, **changed: Any) -> AllocationLog:
        """Return the log, perhaps of another trace."""
        return merge(self.profiled, trace or self.trace, changed.get("marks", self.marks), KEPT_BY_CUBLAS)


@cache
def recording(name: str) -> Recording:
    kept = json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()))
    records = kept["records"]
    events = [Event(*numbers, kept["operators"][op]) for *numbers, op in kept["log"]]
    names = ("action", "addr", "size", "time_us")
    found = Recording(
        AllocationLog(events, dict(kept["marks"])),
        [dict(zip(names, entry, strict=True), stream=0) for entry in kept["trace"]],
        Records(
            phases=[PhaseSpan(*span) for span in records["phases"]],
            observations=[Observation(*seen) for seen in records["observations"]],
            saved=[Saved(*saved) for saved in records["saved"]],
            declared=[(mark, roles) for mark, roles in records["declared"]],
            backwards=records["backwards"],
            end=records["end"],
            elsewhere=records["elsewhere"],
        ),
        kept["peak_bytes"],
    )
    found.trace = written(found)
    return found


def known(trace: Trace, log: AllocationLog) -> list[bool]:
    """Say of each entry of a history whether it is one of the profiler's events, which are met in order."""
    found = []
    done = 0
    for entry in trace:
        event = log.events[done] if done < len(log.events) else None
        action = None if event is None else "alloc" if event.size_bytes > 0 else "free_requested"
        found.append(event is not None and (event.address, action) == (entry.get("addr"), entry["action"]))
        done += found[-1]
    return found


def written(one: Recording) -> Trace:
    """Return the history with the number of the last mark in each entry that the profiler lacks."""
    seen: dict[int, list[int]] = {}
    for at in one.records.observations:
        seen.setdefault(at.address, []).append(at.mark)
    for saved in one.records.saved:
        seen.setdefault(saved.address, []).extend(mark for mark in (saved.start, saved.end) if mark is not None)
    looks = {mark for mark, _ in one.records.declared}  # a look is over with the mark behind its observations
    between: dict[int, list[int]] = {}
    for mark, state in sorted(one.profiled.marks.items()):
        between.setdefault(state, []).append(mark)
    result: Trace = []
    done, last = 0, -1
    for entry, is_known in zip(one.trace, known(one.trace, one.profiled), strict=True):
        done += is_known
        if not is_known and entry["action"] == "free_requested":
            here = between.get(done, [])
            own = [mark + (mark + 1 in looks) for mark in seen.get(entry["addr"], ()) if mark in here]
            last = max([last, *(mark - 1 for mark in here[:1]), *own])
            entry = {**entry, "user_metadata": str(last)}
        result.append(entry)
    return result


def in_mib(ledger: Ledger) -> dict[str, float]:
    held = ledger.footprint.at_peak
    return {role: round(size / 2**20, 1) for role, size in held.items() if size >= 2**20}


@pytest.mark.parametrize(
    ("name", "peak_bytes", "cudnn_bytes", "without", "roles"),
    [
        ("sgd", 345_450_496, 207_765_504, 225_563_648, {"parameters": 42.6, "activations": 64.0, "workspace": 222.4}),
        (
            "derpp",
            406_486_016, 34_537_472, 371_489_792,
            {"parameters": 42.6, "gradients": 42.0, "activations": 240.2, "workspace": 60.5, "rounding": 1.5},
        ),
        (
            "ewc",
            438_649_856, 207_765_504, 317_714_432,
            {"parameters": 42.6, "method_state": 85.3, "activations": 64.0, "workspace": 222.4, "rounding": 3.6},
        ),
        (
            "pnn",
            807_410_176, 42_467_328, 752_097_792,
            {"parameters": 90.0, "gradients": 64.6, "method_state": 304.9, "activations": 244.3, "workspace": 60.8,
             "rounding": 5.0},
        ),
        (
            "lightcl-sparse-lean",
            40_204_288, 14_955_408, 8_415_232,
            {"parameters": 4.0, "activations": 1.2, "workspace": 31.8},
        ),
    ],
)  # fmt: skip
def test_a_recording_of_a_gpu_joins_to_the_byte(
    name: str, peak_bytes: int, cudnn_bytes: int, without: int, roles: dict[str, float]
) -> None:
    one = recording(name)
    log = one.log()
    ledger = join(log, one.records)
    assert max(event.total_bytes for event in log.events) == one.peak_bytes
    assert sum(ledger.footprint.at_peak.values()) == ledger.footprint.peak_bytes == peak_bytes
    assert in_mib(ledger) == roles
    assert ledger.undeclared == []
    assert ledger.footprint.workspace_at_peak[CUBLAS] == 2 * KEPT_BY_CUBLAS, "backward has a thread of its own"
    assert ledger.footprint.library_workspace_at_peak == {"cuDNN": cudnn_bytes, "cuBLAS": 2 * KEPT_BY_CUBLAS}
    assert ledger.footprint.without_libraries_bytes == without
    assert ledger.footprint.marks == "history"


def test_releases_outside_operators_are_in_the_history_alone() -> None:
    one = recording("sgd")
    releases = [entry for entry in one.trace if entry["action"] == "free_requested"]
    assert (len(releases), sum(event.size_bytes < 0 for event in one.profiled.events)) == (859, 684)
    assert sum(event.op == OUTSIDE for event in one.log().events) == 859 - 684


@pytest.mark.parametrize("name", ["sgd", "derpp", "pnn"])
def test_without_marks_in_the_history_releases_are_placed_by_time(name: str) -> None:
    one = recording(name)
    plain = [{key: value for key, value in entry.items() if key != "user_metadata"} for entry in one.trace]
    ledger = join(one.log(plain), one.records)
    assert ledger.undeclared == []
    assert ledger.footprint == join(one.log(), one.records).footprint.model_copy(update={"marks": "time"})


def test_streams_segments_and_late_completions_change_nothing() -> None:
    one = recording("sgd")
    chance = random.Random(0)
    trace: Trace = []
    late: Trace = []
    for entry in one.trace:
        changed = {**entry, "stream": chance.choice([0, 0x7F00])}
        if entry["action"] == "free_completed":
            late.append(changed)  # what another stream still used
        elif entry["action"] != "segment_alloc":
            trace.append(changed)
        if chance.random() < 0.1:
            trace += [{**entry, "action": name} for name in ("segment_map", "segment_unmap", "annotate", "snapshot")]
            trace += late
            late.clear()
    assert one.log(trace) == one.log()


def test_an_operator_that_runs_out_of_memory_leaves_what_was_held() -> None:
    one = recording("derpp")
    middle = one.records.backwards[2]
    kept = one.profiled.marks[middle] + 40
    marks = {mark: state for mark, state in one.profiled.marks.items() if state <= kept}
    last = max(marks) + 1  # which `stop` sets
    cut = AllocationLog(one.profiled.events[:kept], {**marks, last: kept})
    reached = list(accumulate(known(one.trace, cut)))
    trace = [*one.trace[: bisect_left(reached, kept) + 1], {"action": "oom", "size": 9 << 30, "stream": 0}]
    log = merge(cut, trace, dict.fromkeys(marks, Mark(1, None)), KEPT_BY_CUBLAS)
    spans = [replace(span, end=min(span.end, last)) for span in one.records.phases if span.start <= middle]
    whole = phase_peaks(one.log(), spans[:-1])
    assert whole == phase_peaks(log, spans)[: len(whole)]
    assert log.events == one.log().events[: len(log.events)]
    assert len(log.events) > kept, "releases outside operators are in it"


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (100, r"lacks event 0 of the profiler's log .* was it cut short, or started late"),
        (2000, "that it never gave; the device was in use before the recording began, or its history was cut short"),
    ],
)
def test_a_history_without_its_beginning_is_refused(first: int, message: str) -> None:
    one = recording("sgd")
    with pytest.raises(LedgerError, match=message):
        one.log(one.trace[first:])


def test_blocks_from_before_the_recording_are_refused() -> None:
    one = recording("sgd")
    later = [replace(event, total_bytes=event.total_bytes + 4096) for event in one.profiled.events]
    with pytest.raises(LedgerError, match=r"held 4,096 B where its history adds up to 0 B .* in use before"):
        replace(one, profiled=replace(one.profiled, events=later)).log()


def entry(action: str, address: int, size: int, time_us: int, **more: Any) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "time_us": time_us, "stream": 0, **more}


def test_a_block_of_a_thread_that_nobody_profiles_has_the_size_that_is_missing() -> None:
    """Of a large segment the allocator may give more than it rounds up to: what it leaves would be too small."""
    trace = [
        entry("alloc", 1, 1000, 1),
        entry("alloc", 2, 20 << 20, 2),
        entry("alloc", 3, 1000, 3),
        entry("free_requested", 2, 20 << 20, 4),
        entry("free_requested", 1, 1000, 5),
    ]
    events = [
        Event(1000, 1, 1024, 1024, "aten::empty"),
        Event(3000, 3, 1024, 2048 + (20 << 20) + 65536, "aten::add"),
        Event(5000, 1, -1024, 1024, "aten::empty"),
    ]
    log = merge(AllocationLog(events, {}), trace, {}, KEPT_BY_CUBLAS)
    assert [event.size_bytes for event in log.events] == [1024, (20 << 20) + 65536, 1024, -(20 << 20) - 65536, -1024]
    assert [event.total_bytes for event in log.events][-2:] == [2048, 1024]
    assert log.events[1].op == OUTSIDE
    assert log.events[1].requested_bytes == 20 << 20


def test_several_such_blocks_are_rounded_as_the_allocator_does() -> None:
    trace = [entry("alloc", 1, 1000, 1), entry("alloc", 2, 512, 2), entry("alloc", 3, 1, 3), entry("alloc", 4, 8, 4)]
    log = merge(AllocationLog([Event(4000, 4, 512, 2560, "aten::add")], {}), trace, {}, KEPT_BY_CUBLAS)
    assert [event.size_bytes for event in log.events] == [1024, 512, 512, 512]
    wrong = [Event(4000, 4, 512, 3072, "aten::add")]
    with pytest.raises(LedgerError, match="held 2,560 B where its history adds up to 2,048 B"):
        merge(AllocationLog(wrong, {}), trace, {}, KEPT_BY_CUBLAS)


@pytest.mark.parametrize(
    ("op", "name"), [("aten::addmm", CUBLAS), ("aten::relu", "aten::relu"), ("aten::cudnn_convolution", None)]
)
def test_a_block_that_a_product_keeps_is_the_library_s(op: str, name: str | None) -> None:
    event = Event(1000, 1, KEPT_BY_CUBLAS, KEPT_BY_CUBLAS, op)
    log = merge(AllocationLog([event], {}), [entry("alloc", 1, KEPT_BY_CUBLAS, 1)], {}, KEPT_BY_CUBLAS)
    assert log.events[0].op == (name or op)


def test_a_block_smaller_than_what_was_asked_for_is_refused() -> None:
    log = AllocationLog([Event(1000, 1, 512, 512, "aten::empty")], {})
    with pytest.raises(LedgerError, match="block of 512 B at 0x1 is smaller than the 1,000 B"):
        merge(log, [entry("alloc", 1, 1000, 1)], {}, KEPT_BY_CUBLAS)


STEPS = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.sampled_from(["mark", "alloc", "free"]), st.booleans(), st.integers(0, 9)),
    max_size=60,
)


@given(STEPS, st.sampled_from(["history", "time", "words"]))
def test_marks_lie_where_they_were_set(steps: list[tuple[int, str, bool, int]], told_by: str) -> None:
    """Two threads allocate, release and mark in turns; the profiler lacks some releases, and words are no marks."""
    live: dict[int, int] = {}
    last: dict[int, int] = {}
    events: list[Event] = []
    trace: Trace = []
    marks: dict[int, Mark] = {}
    states: dict[int, int] = {}
    truth: dict[int, int] = {}
    for time_us, (thread, kind, is_profiled, size) in enumerate(steps):
        metadata = {"history": str(last.get(thread, "")), "time": "", "words": "epoch 3"}[told_by]
        if kind == "mark":
            number = len(marks)
            last[thread] = number
            marks[number] = Mark(thread, 1000 * time_us)
            states[number], truth[number] = len(events), len(trace)
            continue
        if kind == "alloc":
            address, change, is_profiled = time_us, 512 * (size + 1), True
            live[address] = change
        elif live:
            address = sorted(live)[size % len(live)]
            change = -live.pop(address)
        else:
            continue
        if is_profiled:
            events.append(Event(1000 * time_us, address, change, sum(live.values()), "aten::add"))
        name = "alloc" if change > 0 else "free_requested"
        trace.append(entry(name, address, abs(change), time_us, user_metadata=metadata))
    log = merge(AllocationLog(events, states), trace, marks, KEPT_BY_CUBLAS)
    assert log.marks == truth
    assert [event.size_bytes for event in log.events] == [
        item["size"] * (1 if item["action"] == "alloc" else -1) for item in trace
    ]
    Blocks(log)


@given(STEPS)
def test_marks_of_one_thread_need_no_clock(steps: list[tuple[int, str, bool, int]]) -> None:
    """A microsecond holds many releases: what the history says decides, and not when it was."""
    live: dict[int, int] = {}
    trace: Trace = []
    events: list[Event] = []
    states: dict[int, int] = {}
    truth: dict[int, int] = {}
    for address, (_, kind, is_profiled, size) in enumerate(steps):
        if kind == "mark":
            states[len(states)], truth[len(truth)] = len(events), len(trace)
            continue
        if kind == "alloc":
            where, change, is_profiled = address, 512 * (size + 1), True
            live[where] = change
        elif live:
            where = sorted(live)[size % len(live)]
            change = -live.pop(where)
        else:
            continue
        if is_profiled:
            events.append(Event(7000, where, change, sum(live.values()), "aten::add"))
        name = "alloc" if change > 0 else "free_requested"
        trace.append(entry(name, where, abs(change), 7, user_metadata=str(len(states) - 1) if states else ""))
    marks = {number: Mark(1, 7000) for number in states}
    assert merge(AllocationLog(events, states), trace, marks, KEPT_BY_CUBLAS).marks == truth


def test_a_convolution_s_workspace_comes_and_goes_within_it() -> None:
    """Its result does not, and neither does what another operation takes for a moment."""
    sizes = [("aten::cudnn_convolution", [1, 2, -2, 3, -3]), ("aten::relu", [4, -4]), ("aten::mm", [-1])]
    events: list[Event] = []
    for op, changes in sizes:
        for size in changes:
            events.append(Event(0, abs(size), size, sum(event.size_bytes for event in events) + size, op))
    for marked_by, library in (("history", "cuDNN"), (None, "oneDNN")):
        log = AllocationLog(events, {}, marked_by)  # type: ignore[arg-type]
        found = {block.size_bytes: library_of(log, block) for block in Blocks(log).all}
        assert found == {1: None, 2: library, 3: library, 4: None}
