"""The ledger's arithmetic against a slow reference, on random logs in which addresses are reused all the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clmem.harness.memory.ledger.join as ledger_module
from clmem.harness.errors import LedgerError
from clmem.harness.memory.ledger.join import (
    TIMELINE_SAMPLES,
    Observation,
    PhaseSpan,
    Records,
    Saved,
    join,
    phase_peaks,
)
from clmem.harness.memory.ledger.log import AllocationLog, Block, Blocks, Event
from clmem.harness.results.record import PHASES, ROLES

ADDRESSES = (0x10, 0x20, 0x30)
LASTING = ("parameters", "module_buffers", "optimizer", "method_state", "replay")
"""What may live from phase to phase, the first of several claims first; written out, lest the code move it too."""
OBSERVABLE = (*LASTING, "gradients", "input")
"""Every role that a look can claim, in the order in which claims win."""


class Script:
    """Writes a log and its records by hand, keeping the allocator's books."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.marks: dict[int, int] = {}
        self.records = Records()
        self.live: dict[int, int] = {}

    @property
    def log(self) -> AllocationLog:
        return AllocationLog(self.events, self.marks)

    def mark(self) -> int:
        self.marks[len(self.marks)] = len(self.events)
        return len(self.marks) - 1

    def allocate(self, address: int, nbytes: int, op: str = "aten::mm") -> None:
        self.live[address] = nbytes
        self._event(address, nbytes, op)

    def release(self, address: int) -> None:
        self._event(address, -self.live.pop(address), "")

    def _event(self, address: int, nbytes: int, op: str) -> None:
        self.events.append(Event(len(self.events) * 1000, address, nbytes, sum(self.live.values()), op))

    def observe(self, address: int, *roles: str) -> None:
        """Claim all roles in one look."""
        mark = self.mark()
        for role in roles:
            self.records.observations.append(Observation(mark, address, self.live[address], role))

    def save(self, address: int) -> Saved:
        self.records.saved.append(Saved(self.mark(), None, address, self.live[address]))
        return self.records.saved[-1]

    def phase(self, start: int, name: str = "step", task: int = 0) -> None:
        self.records.phases.append(PhaseSpan(task, name, start, self.mark()))


ACTIONS = ("allocate", "allocate", "allocate", "release", "observe", "save", "let go", "backward")


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Random work in one to four phases, with work before and between them; every record is true of the log."""
    script = Script()
    saved: list[Saved] = []

    def work() -> None:
        for action in draw(st.lists(st.sampled_from(ACTIONS), max_size=12)):
            free = [address for address in ADDRESSES if address not in script.live]
            if action == "allocate" and free:
                script.allocate(draw(st.sampled_from(free)), draw(st.integers(1, 5)))
            elif action == "backward":
                script.records.backwards.append(script.mark())
            elif action == "let go" and saved:
                saved.pop(draw(st.integers(0, len(saved) - 1))).end = script.mark()
            elif action in ("release", "observe", "save") and script.live:
                address = draw(st.sampled_from(sorted(script.live)))
                if action == "release":
                    script.release(address)
                elif action == "observe":
                    script.observe(address, *draw(st.lists(st.sampled_from(OBSERVABLE), min_size=1, max_size=2)))
                else:
                    saved.append(script.save(address))

    for _ in range(draw(st.integers(1, 4))):
        work()
        start = script.mark()
        work()
        script.phase(start, draw(st.sampled_from(PHASES)), draw(st.integers(0, 1)))
    if draw(st.booleans()):
        work()
        script.records.end = script.mark()
    return script


@dataclass(frozen=True)
class Life:
    """What the reference knows of one block."""

    address: int
    nbytes: int
    born: int
    dies: int
    looks: list[tuple[int, int, str]]
    saved: list[tuple[int, int]]

    def alive(self, state: int) -> bool:
        return self.born <= state < self.dies

    def role(self, state: int) -> str:
        if not self.looks:
            return "activations" if any(a <= state <= b for a, b in self.saved) else "workspace"
        declared = [look for look in self.looks if look[2] in LASTING]
        first = min((mark for _, mark, _ in declared), default=None)
        last = max((mark for at, mark, _ in declared if at <= state), default=None)
        if last is None:
            passing = [role for _, mark, role in self.looks if first is None or mark < first]
            if passing:
                return min(passing, key=OBSERVABLE.index)
            last = first
        return min((role for _, mark, role in declared if mark == last), key=OBSERVABLE.index)


def lives(script: Script) -> list[Life]:
    """Follow every allocation through the rest of the log and look for what was said about it."""
    log, records = script.log, script.records
    found = []
    for index, event in enumerate(log.events):
        if event.size_bytes < 0:
            continue
        later = (n for n in range(index + 1, len(log.events)) if log.events[n].address == event.address)
        born, dies = index + 1, next(later, len(log.events)) + 1
        here = range(born, dies)
        looks = [(log.marks[s.mark], s.mark, s.role) for s in records.observations if s.address == event.address]
        said = [look for look in looks if look[0] in here]
        kept = [
            (log.marks[s.start], dies if s.end is None else log.marks[s.end])
            for s in records.saved
            if s.address == event.address and log.marks[s.start] in here
        ]
        found.append(Life(event.address, event.size_bytes, born, dies, said, kept))
    return found


def by_role(script: Script, state: int) -> dict[str, int]:
    held = dict.fromkeys(ROLES, 0)
    for life in lives(script):
        if life.alive(state):
            held[life.role(state)] += life.nbytes
    return held


def at_peak(script: Script) -> dict[str, int]:
    """Join; return the bytes of the roles that have any at the peak."""
    return {role: n for role, n in join(script.log, script.records).footprint.at_peak.items() if n}


def states(script: Script, span: PhaseSpan) -> range:
    return range(script.marks[span.start], script.marks[span.end] + 1)


@settings(max_examples=200, deadline=None)
@given(scripts())
def test_every_state_has_the_roles_that_a_slow_reference_finds_and_they_sum_to_the_total(script: Script) -> None:
    timeline = join(script.log, script.records).footprint.timeline
    spans = script.records.phases
    every = range(script.marks[spans[0].start], script.marks[spans[-1].end] + 1)
    assert len(every) <= TIMELINE_SAMPLES, "the timeline must hold every state for this comparison"
    rows = [{role: timeline.roles[role][n] for role in ROLES} for n in range(len(timeline.time_s))]
    assert rows == [by_role(script, state) for state in every]
    totals = [0, *(event.total_bytes for event in script.events)]
    assert [sum(row.values()) for row in rows] == [totals[state] for state in every]
    assert timeline.time_s == sorted(timeline.time_s)


@settings(max_examples=200, deadline=None)
@given(scripts())
def test_phases_peak_where_the_reference_says(script: Script) -> None:
    footprint = join(script.log, script.records).footprint
    totals = [0, *(event.total_bytes for event in script.events)]
    groups: dict[tuple[int, str], list[int]] = {}
    for span in script.records.phases:
        groups.setdefault((span.task, span.name), []).extend(states(script, span))
    peaks = {key: max(totals[state] for state in members) for key, members in groups.items()}
    assert {(task, name): peak for task, name, peak in phase_peaks(script.log, script.records.phases)} == peaks
    assert {(entry.task, entry.phase): entry.peak_bytes for entry in footprint.by_phase} == peaks
    assert footprint.peak_bytes == max(peaks.values())
    assert footprint.phases == {
        name: max(peak for (_, phase), peak in peaks.items() if phase == name) for _, name in groups
    }
    for entry in footprint.by_phase:
        members = groups[entry.task, entry.phase]
        first = next(state for state in members if totals[state] == entry.peak_bytes)
        assert entry.at_peak == by_role(script, first)
        highest = [by_role(script, state) for state in members]
        assert entry.role_peaks == {role: max(row[role] for row in highest) for role in ROLES}


@settings(max_examples=100, deadline=None)
@given(scripts())
def test_the_footprint_adds_up(script: Script) -> None:
    footprint = join(script.log, script.records).footprint
    assert sum(footprint.at_peak.values()) == footprint.peak_bytes
    assert all(footprint.role_peaks[role] >= footprint.at_peak[role] for role in ROLES)
    assert sum(footprint.workspace_at_peak.values()) == footprint.at_peak["workspace"]
    for entry in footprint.by_phase:
        assert sum(entry.at_peak.values()) == entry.peak_bytes
        assert all(entry.role_peaks[role] >= entry.at_peak[role] for role in ROLES)
    peak = next(
        entry
        for entry in footprint.by_phase
        if (entry.task, entry.phase) == (footprint.peak_task, footprint.peak_phase)
    )
    assert (peak.peak_bytes, peak.at_peak, peak.op) == (footprint.peak_bytes, footprint.at_peak, footprint.peak_op)


@settings(max_examples=200, deadline=None)
@given(scripts())
def test_what_outlives_a_phase_without_a_lasting_role_is_undeclared(script: Script) -> None:
    boundaries = [script.marks[span.start] for span in script.records.phases]
    if script.records.end is not None:
        boundaries.append(script.marks[script.records.end])
    expected = []
    for life in lives(script):
        first = next((state for state in boundaries if life.alive(state)), None)
        if first is not None and life.role(first) not in LASTING:
            expected.append((life.born, life.nbytes, life.role(first)))
    found = join(script.log, script.records).undeclared
    assert sorted((item.block.born, item.block.size_bytes, item.role) for item in found) == sorted(expected)
    sizes = [item.block.size_bytes for item in found]
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=200, deadline=None)
@given(scripts())
def test_what_a_phase_made_and_nobody_claims_is_found_when_a_backward_begins(script: Script) -> None:
    starts = [script.marks[span.start] for span in script.records.phases]
    backwards = [script.marks[mark] for mark in script.records.backwards]
    expected = [
        sum(
            life.nbytes
            for life in lives(script)
            if not life.looks
            and not life.saved
            and life.alive(state)
            and any(start < life.born for start in starts if start <= state)
            # made in the phase that is under way, not in an earlier one
            and not any(life.born <= start <= state for start in starts)
        )
        for state in backwards
    ]
    with patch.object(ledger_module, "HELD_MIN_BYTES", 0):
        held = join(script.log, script.records).footprint.held_into_backward
    assert sum(held.values()) == max(expected, default=0)


def test_only_large_blocks_are_said_to_be_held_into_a_backward() -> None:
    script = Script()
    script.allocate(0x10, 100_000, "aten::older")  # undeclared state, which is told elsewhere
    start = script.mark()
    script.allocate(0x20, 65_535, "aten::small")
    script.allocate(0x30, 65_536, "aten::large")
    script.allocate(0x40, 70_000, "aten::claimed")
    script.observe(0x40, "input")
    script.allocate(0x50, 80_000, "aten::large")
    script.records.backwards.append(script.mark())
    script.release(0x50)
    script.records.backwards.append(script.mark())
    script.phase(start)
    held = join(script.log, script.records).footprint.held_into_backward
    assert held == {"aten::large": 65_536 + 80_000}


@given(st.permutations(OBSERVABLE), st.integers(2, len(OBSERVABLE)))
def test_of_several_claims_in_one_look_the_first_wins(order: list[str], claims: int) -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 7)
    script.save(0x10)
    script.observe(0x10, *order[:claims])
    script.phase(start)
    winner = min(order[:claims], key=OBSERVABLE.index)
    assert at_peak(script) == {winner: 7}


@pytest.mark.parametrize("claimed", ["parameters", "module_buffers", "optimizer", "method_state", "replay"])
@pytest.mark.parametrize("passing", ["gradients", "input"])
def test_what_is_kept_is_no_gradient_and_no_input(claimed: str, passing: str) -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 7)
    script.observe(0x10, passing, claimed)
    script.phase(start)
    assert at_peak(script) == {claimed: 7}


def test_a_gradient_among_the_inputs_is_a_gradient() -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 7)
    script.observe(0x10, "input")
    script.observe(0x10, "gradients")
    script.phase(start)
    assert at_peak(script) == {"gradients": 7}


@pytest.mark.parametrize("role", ["gradients", "input"])
def test_what_is_declared_later_has_each_role_in_its_time(role: str) -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 5)
    script.observe(0x10, role)
    script.allocate(0x20, 1)
    script.observe(0x10, "method_state", role)  # a look sees both while a parameter still has it
    script.allocate(0x30, 1)
    script.observe(0x10, role)
    script.allocate(0x40, 1)
    script.phase(start)
    timeline = join(script.log, script.records).footprint.timeline.roles
    assert timeline[role] == [0, 5, 0, 0, 0]
    assert timeline["method_state"] == [0, 0, 5, 5, 5]


def test_a_gradient_that_is_kept_over_steps_is_method_state() -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 5)
    script.observe(0x10, "gradients")
    script.allocate(0x20, 1)
    script.observe(0x10, "method_state")
    script.release(0x20)
    script.phase(start)
    for _ in range(2):
        start = script.mark()
        script.observe(0x10, "method_state")
        script.records.declared.append((script.mark(), {"method_state": 5}))
        script.allocate(0x20, 2)
        script.release(0x20)
        script.phase(start)
    ledger = join(script.log, script.records)
    assert ledger.undeclared == []
    assert ledger.footprint.timeline.roles["gradients"] == [0, 5, 0, 0, 0, 0, 0, 0]
    assert ledger.footprint.timeline.roles["method_state"] == [0, 0, 5, 5, 5, 5, 5, 5]


def test_a_gradient_that_is_kept_without_a_word_is_undeclared() -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 5)
    script.observe(0x10, "gradients")
    script.phase(start)
    start = script.mark()
    script.allocate(0x20, 1)
    script.observe(0x10, "method_state")  # too late: it came into this phase as a gradient
    script.phase(start)
    (found,) = join(script.log, script.records).undeclared
    assert (found.role, found.block.size_bytes, found.phase) == ("gradients", 5, "step")


def test_a_claim_holds_for_the_whole_life_of_a_block_and_not_for_the_next_one_at_its_address() -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 5)
    script.allocate(0x20, 1)
    script.observe(0x10, "gradients")
    script.release(0x10)
    script.allocate(0x10, 4)
    script.phase(start)
    timeline = join(script.log, script.records).footprint.timeline.roles
    assert timeline["gradients"] == [0, 5, 5, 0, 0]
    assert timeline["workspace"] == [0, 0, 1, 1, 5]


def test_a_block_that_passes_from_one_kept_role_to_another_has_each_in_its_time() -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 5)
    script.observe(0x10, "parameters")
    script.allocate(0x20, 1)
    script.observe(0x10, "method_state")
    script.allocate(0x30, 1)
    script.phase(start)
    timeline = join(script.log, script.records).footprint.timeline.roles
    assert timeline["parameters"] == [0, 5, 0, 0]
    assert timeline["method_state"] == [0, 0, 5, 5]


def test_activations_become_workspace_when_autograd_lets_go_and_overlapping_saves_count_once() -> None:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 8)
    first, second = script.save(0x10), script.save(0x10)
    script.allocate(0x20, 1)
    first.end = script.mark()
    script.allocate(0x30, 1)
    second.end = script.mark()
    script.release(0x20)
    script.phase(start)
    timeline = join(script.log, script.records).footprint.timeline.roles
    assert timeline["activations"] == [0, 8, 8, 8, 0]
    assert timeline["workspace"] == [0, 0, 1, 2, 9]


def contradictory(**changes: Any) -> AllocationLog:
    """One block of 100 bytes that comes and goes; `changes` are made to its release."""
    events = [Event(0, 0x10, 100, 100, "aten::empty"), Event(1, 0x10, -100, 0, "")]
    return AllocationLog([events[0], replace(events[1], **changes)], {})


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (contradictory(size_bytes=100, total_bytes=200), r"0x10 is allocated twice without a release \(event 2\)"),
        (contradictory(address=0x20), r"0x20 is released but not allocated \(event 2\)"),
        (contradictory(size_bytes=-60, total_bytes=40), r"allocated with 100 B and released with 60 B \(event 2\)"),
        (contradictory(total_bytes=1024), r"event 2 .* running sum to 0 B where the allocator says 1,024 B"),
    ],
    ids=["allocated twice", "released unknown", "another size", "another total"],
)
def test_a_log_that_contradicts_itself_is_refused_with_its_numbers(log: AllocationLog, sentence: str) -> None:
    assert len(Blocks(contradictory()).all) == 1, "unchanged, the log is good"
    with pytest.raises(LedgerError, match=sentence):
        Blocks(log)


def one_block() -> Script:
    script = Script()
    start = script.mark()
    script.allocate(0x10, 1000)
    script.mark()
    script.phase(start)
    return script


@pytest.mark.parametrize("record", ["observation", "saved"])
def test_a_tensor_where_nothing_lives_is_refused_with_its_size(record: str) -> None:
    script = one_block()
    script.release(0x10)
    if record == "observation":
        script.records.observations.append(Observation(script.mark(), 0x10, 1000, "replay"))
    else:
        script.records.saved.append(Saved(script.mark(), None, 0x10, 1000))
    role = "replay" if record == "observation" else "activations"
    with pytest.raises(LedgerError, match=f"a {role} tensor of 1,000 B was observed where .* no live block"):
        join(script.log, script.records)


def test_a_tensor_of_another_size_than_its_block_is_refused_with_both() -> None:
    script = one_block()
    script.records.observations.append(Observation(1, 0x10, 999, "replay"))
    with pytest.raises(LedgerError, match="storage has 999 B but its block has 1,000 B"):
        join(script.log, script.records)


def test_declared_bytes_must_be_the_ledgers() -> None:
    script = one_block()
    script.observe(0x10, "replay")
    script.records.declared.append((script.mark(), {"replay": 1000, "method_state": 0}))
    assert join(script.log, script.records).footprint.at_peak["replay"] == 1000
    script.records.declared.append((script.mark(), {"replay": 1004}))
    with pytest.raises(
        LedgerError, match=r"replay are declared with 1,004 B but the ledger holds 1,000 B.*declare a copy"
    ):
        join(script.log, script.records)


def test_a_network_that_was_replaced_and_lives_on_is_explained() -> None:
    script = one_block()
    script.observe(0x10, "parameters")
    script.allocate(0x20, 300)
    script.observe(0x20, "parameters")
    script.records.declared.append((script.mark(), {"parameters": 300}))
    with pytest.raises(
        LedgerError, match=r"with 300 B but .* 1,300 B .* 1,000 B that were parameters .*memory_roles\(\)"
    ):
        join(script.log, script.records)


def test_phases_are_listed_in_the_order_of_a_task() -> None:
    script = Script()
    for number, name in enumerate(("evaluate", "of our own", "step", "before_task", "step")):
        start = script.mark()
        script.allocate(number, number + 1)
        script.observe(number, "replay")
        script.phase(start, name)
    phases = join(script.log, script.records).footprint.phases
    assert list(phases.items()) == [("before_task", 10), ("step", 15), ("evaluate", 1), ("of our own", 3)]


def test_a_recording_without_phases_is_refused() -> None:
    with pytest.raises(LedgerError, match="no phase was recorded"):
        join(AllocationLog([], {}), Records())


def test_a_peak_that_was_held_from_before_says_so() -> None:
    script = Script()
    script.allocate(0x10, 9)
    script.observe(0x10, "parameters")
    start = script.mark()
    script.phase(start, "evaluate")
    footprint = join(script.log, script.records).footprint
    assert (footprint.peak_bytes, footprint.peak_op) == (9, "(held from before)")


def long_script(steps: int) -> Script:
    script = Script()
    rng = np.random.default_rng(0)
    start = script.mark()
    for n in range(steps):
        script.allocate(n, int(rng.integers(1, 1000)))
        if n % 3 == 0:
            script.observe(n, "gradients")
        if n % 5 == 0:
            script.save(n)
        if n >= 50:
            script.release(n - 50)
    script.phase(start)
    return script


def test_a_long_timeline_is_sampled_at_its_highest_points_so_the_peak_is_in_it() -> None:
    script = long_script(3000)
    footprint = join(script.log, script.records).footprint
    sums = [sum(footprint.timeline.roles[role][n] for role in ROLES) for n in range(len(footprint.timeline.time_s))]
    assert len(sums) == TIMELINE_SAMPLES + 1
    assert max(sums) == footprint.peak_bytes == max(event.total_bytes for event in script.events)
    assert {n: footprint.timeline.roles[n][sums.index(max(sums))] for n in ROLES} == footprint.at_peak


def test_blocks_are_found_by_address_and_state() -> None:
    script = Script()
    for size in (3, 4):
        script.allocate(0x10, size)
        script.release(0x10)
    script.allocate(0x10, 5)
    blocks = Blocks(script.log)
    found = [blocks.find(0x10, state) for state in range(7)]
    assert [block and block.size_bytes for block in found] == [None, 3, None, 4, None, 5, 5]
    assert blocks.find(0x20, 1) is None
    assert isinstance(found[-1], Block)
    assert found[-1].dies is None


def test_what_a_coarse_clock_puts_at_one_instant_stays_in_torchs_order() -> None:
    from torch._C._profiler import _EventType

    from clmem.harness.memory.watching.recorder import MARK, LogRecorder

    def node(kind: Any, name: str = "", **extra: Any) -> Any:
        fields = SimpleNamespace(device=SimpleNamespace(type="cpu", index=None), **extra)
        return SimpleNamespace(start_time_ns=7, typed=(kind, fields), name=name, children=[], parent=None)

    def allocation(size: int, total: int) -> Any:
        return node(_EventType.Allocation, ptr=0x10, alloc_size=size, total_allocated=total)

    operator = node(_EventType.TorchOp, "aten::mm")
    operator.children = [allocation(8, 8), node(_EventType.TorchOp, MARK + "0"), allocation(-8, 0)]
    tree = [operator, allocation(4, 4)]
    recorder = LogRecorder()
    recorder._marks = 1
    results = SimpleNamespace(experimental_event_tree=lambda: tree)
    recorder._profile = SimpleNamespace(stop=lambda: None, profiler=SimpleNamespace(kineto_results=results))  # type: ignore[assignment]
    log = recorder.stop()
    assert [event.size_bytes for event in log.events] == [8, -8, 4]
    assert log.marks[0] == 1
