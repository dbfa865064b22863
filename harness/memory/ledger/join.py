"""The ledger join: allocator log x role records = which role every byte has, at every instant.

Pure arithmetic on plain data; `observer` produces the records, `recorder` the log. The invariants of the method are
asserted here: the log's running sum, one live block per observation, declared bytes equal to ledger bytes, and roles
that sum to the allocator's peak.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from clmem.harness.errors import LedgerError
from clmem.harness.memory.ledger.claims import KEPT_ROLES, Claim, roles_in_time
from clmem.harness.memory.ledger.libraries import CUBLAS, library_of
from clmem.harness.memory.ledger.log import AllocationLog, Block, Blocks
from clmem.harness.results.record import PHASES, ROLES, Footprint, PhaseFootprint, Timeline

TIMELINE_SAMPLES = 400
HELD_MIN_BYTES = 2**16

Roles = npt.NDArray[np.int64]

Fixed = dict[int, list[tuple[int, str]]]
"""By id of block: its roles and the state from which each holds; the first holds from birth."""


@dataclass(frozen=True, slots=True)
class Observation:
    """At this mark the block at this address was seen to have this role.

    It has it for its whole life, unless it is kept from then on (a gradient that is declared as method state), or
    passes from one kept role to another (the parameters of a column that is frozen). `claims` decides.
    """

    mark: int
    address: int
    nbytes: int
    role: str


@dataclass(slots=True)
class Saved:
    """The block was saved for backward from mark `start` to mark `end` (None: until it is freed)."""

    start: int
    end: int | None
    address: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """One phase of one task, from mark to mark."""

    task: int
    name: str
    start: int
    end: int


@dataclass
class Records:
    """Everything that was observed. declared: (mark, {role: bytes}) as read from the tensors themselves.

    backwards: marks at which a backward began. end: the mark after the last phase, when it was reached. elsewhere:
    declared bytes that lie on another device than the one whose log this belongs to, by role, at their highest.
    """

    phases: list[PhaseSpan] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    declared: list[tuple[int, Mapping[str, int]]] = field(default_factory=list)
    backwards: list[int] = field(default_factory=list)
    end: int | None = None
    elsewhere: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Undeclared:
    """A block that lived into a phase without a role that may."""

    task: int
    phase: str
    role: str
    block: Block


@dataclass(frozen=True)
class Ledger:
    """The footprint, and what was found alive between phases without being declared, largest first."""

    footprint: Footprint
    undeclared: list[Undeclared]


def phase_peaks(log: AllocationLog, phases: Iterable[PhaseSpan]) -> list[tuple[int, str, int]]:
    """Return (task, phase, peak bytes) from the log alone, merging the spans of one phase of one task."""
    totals = _totals(log)
    peaks: dict[tuple[int, str], int] = {}
    for span in phases:
        peak = int(totals[log.marks[span.start] : log.marks[span.end] + 1].max())
        peaks[span.task, span.name] = max(peak, peaks.get((span.task, span.name), 0))
    return [(task, name, peak) for (task, name), peak in peaks.items()]


def join(log: AllocationLog, records: Records) -> Ledger:
    """Give every block its role and sum up. Raises LedgerError when an invariant does not hold."""
    if not records.phases:
        raise LedgerError("no phase was recorded, so there is nothing to attribute; bracket the work with phase(...)")
    blocks = Blocks(log)
    fixed = _fixed_roles(log, blocks, records.observations)
    saved = _saved_states(log, blocks, records.saved)
    roles = _sweep(len(log.events), blocks, fixed, saved)
    totals = _totals(log)
    if not np.array_equal(roles.sum(axis=1), totals):
        state = int(np.flatnonzero(roles.sum(axis=1) != totals)[0])
        raise LedgerError(
            f"roles sum to {roles[state].sum():,} B where the allocator holds {totals[state]:,} B (state {state})"
        )
    _check_declared(log, roles, records)
    by_phase = _by_phase(log, roles, totals, records.phases)
    peak = max(by_phase, key=lambda entry: entry.peak_bytes)
    state = _peak_state(log, totals, [s for s in records.phases if (s.task, s.name) == (peak.task, peak.phase)])
    role_of = {id(block): _role_at(block, state, fixed, saved) for block in blocks.all if block.alive(state)}
    scratch: Counter[str] = Counter()
    libraries: Counter[str] = Counter()
    own = {id(block): name for block in blocks.all if id(block) not in fixed and (name := library_of(log, block))}
    for block in blocks.all:
        if role_of.get(id(block)) == "workspace":
            scratch[block.event.op] += block.requested_bytes
            if id(block) in own:
                libraries[own[id(block)]] += block.requested_bytes
    others = totals - _held([block for block in blocks.all if id(block) in own], len(log.events))
    names = dict.fromkeys(entry.phase for entry in by_phase)
    footprint = Footprint(
        peak_bytes=peak.peak_bytes,
        peak_task=peak.task,
        peak_phase=peak.phase,
        peak_op=peak.op,
        at_peak=peak.at_peak,
        role_peaks={role: max(entry.role_peaks[role] for entry in by_phase) for role in ROLES},
        phases={
            name: max(entry.peak_bytes for entry in by_phase if entry.phase == name)
            for name in sorted(names, key=lambda name: PHASES.index(name) if name in PHASES else len(PHASES))
        },
        by_phase=by_phase,
        timeline=_timeline(log, roles, totals, records.phases),
        workspace_at_peak=dict(scratch.most_common()),
        library_workspace_at_peak=dict(libraries.most_common()),
        without_libraries_bytes=max(
            int(others[log.marks[span.start] : log.marks[span.end] + 1].max()) for span in records.phases
        ),
        held_into_backward=_held_into_backward(log, blocks, {*fixed, *saved}, records),
        on_host=records.elsewhere,
        marks=log.marked_by,
    )
    return Ledger(footprint, _undeclared(log, blocks, fixed, saved, records))


def _held(blocks: list[Block], events: int) -> Roles:
    """Return how many bytes of some blocks are alive in each state."""
    change: Roles = np.zeros(events + 2, dtype=np.int64)
    for block in blocks:
        change[block.born] += block.size_bytes
        change[events + 1 if block.dies is None else block.dies] -= block.size_bytes
    return change.cumsum()[: events + 1]


def undeclared_sentence(method: str, undeclared: list[Undeclared]) -> str:
    """Say what a method keeps without declaring it: how much, where the largest was found and what allocated it."""
    total = sum(item.block.size_bytes for item in undeclared)
    largest = undeclared[0]
    event = largest.block.event
    where = f"at {event.site}" if event.site else f"by {event.op}"
    return (
        f"method {method!r} keeps {total:,} B in {len(undeclared)} block(s) across steps without declaring them; the "
        f"largest ({largest.block.size_bytes:,} B, found at the start of {largest.phase} of task {largest.task}) was "
        f"allocated {where}: declare it in memory_roles(), or drop it"
    )


def _totals(log: AllocationLog) -> Roles:
    return np.array([0, *(event.total_bytes for event in log.events)], dtype=np.int64)


def _locate(log: AllocationLog, blocks: Blocks, mark: int, address: int, nbytes: int, role: str) -> Block:
    block = blocks.find(address, log.marks[mark])
    if block is None:
        raise LedgerError(
            f"a {role} tensor of {nbytes:,} B was observed where the allocator's log has no live block; it was not "
            "allocated by torch on this device (numpy or foreign memory?): copy it into a torch tensor"
        )
    if block.requested_bytes != nbytes:
        raise LedgerError(f"a {role} tensor's storage has {nbytes:,} B but its block has {block.requested_bytes:,} B")
    return block


def _fixed_roles(log: AllocationLog, blocks: Blocks, observations: list[Observation]) -> Fixed:
    """Return the roles of every observed block."""
    claims: dict[int, list[Claim]] = {}
    for seen in observations:
        block = _locate(log, blocks, seen.mark, seen.address, seen.nbytes, seen.role)
        claims.setdefault(id(block), []).append(Claim(seen.mark, log.marks[seen.mark], seen.role))
    return {key: roles_in_time(of_block) for key, of_block in claims.items()}


def _role_in(changes: list[tuple[int, str]], state: int) -> str:
    return next(role for since, role in reversed(changes) if since <= state)


def _saved_states(log: AllocationLog, blocks: Blocks, saved: list[Saved]) -> dict[int, list[tuple[int, int]]]:
    """Return {id of block: disjoint (first, last) states, both included, in which it is saved for backward}."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for record in saved:
        block = _locate(log, blocks, record.start, record.address, record.nbytes, "activations")
        last = len(log.events) if block.dies is None else block.dies - 1
        if record.end is not None:
            last = min(last, log.marks[record.end])
        spans.setdefault(id(block), []).append((log.marks[record.start], last))
    for key, ranges in spans.items():
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        spans[key] = merged
    return spans


def _sweep(events: int, blocks: Blocks, fixed: Fixed, saved: dict[int, list[tuple[int, int]]]) -> Roles:
    """Return live bytes [states, roles]."""
    change: Roles = np.zeros((events + 2, len(ROLES)), dtype=np.int64)
    activations, workspace, rounding = map(ROLES.index, ("activations", "workspace", "rounding"))
    for block in blocks.all:
        end = events + 1 if block.dies is None else block.dies
        change[block.born, rounding] += block.size_bytes - block.requested_bytes
        change[end, rounding] -= block.size_bytes - block.requested_bytes
        changes = fixed.get(id(block), [(0, "workspace")])
        starts = [block.born, *(state for state, _ in changes[1:])]
        for (_, role), start, stop in zip(changes, starts, [*starts[1:], end], strict=True):
            change[start, ROLES.index(role)] += block.requested_bytes
            change[stop, ROLES.index(role)] -= block.requested_bytes
        if id(block) not in fixed:
            for first, last in saved.get(id(block), ()):
                for column, sign in ((activations, 1), (workspace, -1)):
                    change[first, column] += sign * block.requested_bytes
                    change[last + 1, column] -= sign * block.requested_bytes
    return change.cumsum(axis=0)[: events + 1]


def _role_at(block: Block, state: int, fixed: Fixed, saved: dict[int, list[tuple[int, int]]]) -> str:
    if id(block) in fixed:
        return _role_in(fixed[id(block)], state)
    held = any(first <= state <= last for first, last in saved.get(id(block), ()))
    return "activations" if held else "workspace"


def _check_declared(log: AllocationLog, roles: Roles, records: Records) -> None:
    for mark, expected in records.declared:
        for role, nbytes in expected.items():
            held = int(roles[log.marks[mark], ROLES.index(role)])
            if held != nbytes:
                began = max(
                    (span for span in records.phases if span.start <= mark), key=lambda s: s.start, default=None
                )
                where = "" if began is None else f" in {began.name} of task {began.task}"
                raise LedgerError(
                    f"{role} are declared with {nbytes:,} B but the ledger holds {held:,} B of them{where}: "
                    + _what_to_do(role, held - nbytes)
                )


def _what_to_do(role: str, surplus_bytes: int) -> str:
    """Say what is behind books that do not balance, and what a method's author can do."""
    if surplus_bytes > 0:
        return (
            f"{surplus_bytes:,} B that were {role} before are still alive and not declared now; drop them, or declare "
            "them in memory_roles() (the first network stays in `context.network` where `self.network` is replaced)"
        )
    return f"{-surplus_bytes:,} B have another role, in which they were seen first; declare a copy, tensor.clone()"


def _peak_state(log: AllocationLog, totals: Roles, spans: list[PhaseSpan]) -> int:
    """Return the first state of highest total within the spans."""
    best = log.marks[spans[0].start]
    for span in spans:
        first = log.marks[span.start]
        state = first + int(totals[first : log.marks[span.end] + 1].argmax())
        if totals[state] > totals[best]:
            best = state
    return best


def _by_phase(log: AllocationLog, roles: Roles, totals: Roles, spans: list[PhaseSpan]) -> list[PhaseFootprint]:
    grouped: dict[tuple[int, str], list[PhaseSpan]] = {}
    for span in spans:
        grouped.setdefault((span.task, span.name), []).append(span)
    entries = []
    for (task, name), members in grouped.items():
        state = _peak_state(log, totals, members)
        began = any(log.marks[span.start] == state for span in members)
        highest = np.max(
            [roles[log.marks[span.start] : log.marks[span.end] + 1].max(axis=0) for span in members], axis=0
        )
        entries.append(
            PhaseFootprint(
                task=task,
                phase=name,
                peak_bytes=int(totals[state]),
                op="(held from before)" if began else log.events[state - 1].op,
                at_peak=_by_role(roles[state]),
                role_peaks=_by_role(highest),
            )
        )
    return entries


def _by_role(row: Roles) -> dict[str, int]:
    return {role: int(value) for role, value in zip(ROLES, row, strict=True)}


def _undeclared(
    log: AllocationLog,
    blocks: Blocks,
    fixed: Fixed,
    saved: dict[int, list[tuple[int, int]]],
    records: Records,
) -> list[Undeclared]:
    """Find the blocks that are alive between phases without a role that may outlive one."""
    boundaries = [(span.task, span.name, span.start) for span in records.phases]
    if records.end is not None:
        boundaries.append((records.phases[-1].task, "the end", records.end))
    boundaries.sort(key=lambda boundary: log.marks[boundary[2]])
    states = [log.marks[mark] for _, _, mark in boundaries]
    found = []
    for block in blocks.all:
        first = bisect.bisect_left(states, block.born)
        if first == len(states) or not block.alive(states[first]):
            continue
        role = _role_at(block, states[first], fixed, saved)
        if role not in KEPT_ROLES and block.event.op != CUBLAS:  # which torch keeps
            task, phase, _ = boundaries[first]
            found.append(Undeclared(task, phase, role, block))
    return sorted(found, key=lambda item: -item.block.size_bytes)


def _held_into_backward(log: AllocationLog, blocks: Blocks, claimed: set[int], records: Records) -> dict[str, int]:
    """Sum, by operation, the large unclaimed blocks that a phase made before a backward and still has when it begins.

    Of several backwards, the one that holds most. Logits, losses and first gradients are such blocks too, but small.
    """
    starts = sorted(log.marks[span.start] for span in records.phases)
    suspects = [
        block
        for block in blocks.all
        if id(block) not in claimed and block.size_bytes >= HELD_MIN_BYTES and block.event.op != CUBLAS
    ]
    most: Counter[str] = Counter()
    for state in {log.marks[mark] for mark in records.backwards}:
        phase_start = starts[bisect.bisect_right(starts, state) - 1]
        held: Counter[str] = Counter()
        for block in suspects:
            if block.born > phase_start and block.alive(state):  # older ones are undeclared state
                held[block.event.op] += block.size_bytes
        most = max(most, held, key=Counter.total)
    return dict(most.most_common())


def _timeline(log: AllocationLog, roles: Roles, totals: Roles, spans: list[PhaseSpan]) -> Timeline:
    """Sample the run: its first state, then the highest state in each of at most TIMELINE_SAMPLES stretches."""
    first, last = log.marks[spans[0].start], log.marks[spans[-1].end]
    times = [event.time_ns for event in log.events] or [0]
    edges = np.unique(np.linspace(first, last + 1, min(TIMELINE_SAMPLES, last + 1 - first) + 1).astype(np.int64))
    states = sorted({first, *(int(a + totals[a:b].argmax()) for a, b in pairwise(edges))})

    def seconds(state: int) -> float:
        return round((times[max(state - 1, 0)] - times[max(first - 1, 0)]) / 1e9, 6)

    return Timeline(
        time_s=[seconds(state) for state in states],
        roles={role: [int(roles[state, column]) for state in states] for column, role in enumerate(ROLES)},
        marks=[(seconds(log.marks[span.start]), f"task {span.task} {span.name}") for span in spans],
    )
