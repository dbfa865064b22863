"""What must agree in the memory of one result: sums of roles, highest values, lengths, and the two passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise

from clmem.harness.errors import UsageError
from clmem.harness.results.record import PHASES, ROLES, Allocator, Footprint, PhaseFootprint, Process, RunResult
from clmem.harness.specs.targets import allocator_of
from clmem.harness.text import clean

MOST_MARKS = 2000
"""Beginnings of phases in a short schedule; a plot of more takes minutes."""

LEAST_OF_BASELINE = 0.9
"""The part of its baseline that a process's peak is at least: the kernel counts pages per core, and late."""

MOST_OF_PEAK = 2.0
"""How many times the process's peak its curve reaches at most. The curve also has the imports, before the kernel's mark
is set back; published curves reach 1.0003."""

OBSERVED = re.compile(r"(\w+) of task (\d{1,19}) ", re.ASCII)
"""How a check begins that names a phase which peaked elsewhere when observed."""


def memory_faults(result: RunResult) -> Iterator[str]:
    """Yield in a few words what disagrees in a result's footprint, allocator and process, each with both values."""
    if result.footprint is not None:
        yield from _footprint(result.footprint)
    if result.allocator is not None:
        yield from _allocator(result.allocator, result.spec.target)
    yield from _observer(result)
    yield from _same_phases(result)
    if result.process is not None:
        yield from _process(result.process)
        if result.spec.weights is None:  # reading them holds them twice, before the kernel's mark is set back
            yield from _curve(result.process)


def _footprint(footprint: Footprint) -> Iterator[str]:
    peak, entries = footprint.peak_bytes, footprint.by_phase
    yield from _roles("footprint", footprint.at_peak, footprint.role_peaks, peak)
    for entry in entries:
        where = f"footprint.by_phase, task {entry.task} {entry.phase}"
        yield from _roles(where, entry.at_peak, entry.role_peaks, entry.peak_bytes)
    highest_roles: dict[str, int] = {}
    for role, size in chain.from_iterable(entry.role_peaks.items() for entry in entries):
        highest_roles[role] = max(size, highest_roles.get(role, 0))
    for role in chain(highest_roles, footprint.role_peaks):
        said, size = footprint.role_peaks.get(role, 0), highest_roles.get(role, 0)
        if said != size:
            yield f"footprint.role_peaks says {said:,} for {role} but footprint.by_phase has {size:,} at most"
    yield from _highest("footprint", peak, [((entry.task, entry.phase), entry.peak_bytes) for entry in entries])
    for phase in dict.fromkeys([*footprint.phases, *(entry.phase for entry in entries)]):
        highest = max((entry.peak_bytes for entry in entries if entry.phase == phase), default=0)
        size = footprint.phases.get(phase, 0)
        if size != highest:
            yield f"footprint.phases says {size:,} for {phase} but footprint.by_phase has {highest:,} at most"
    yield from _owner(footprint)
    workspace, operations = footprint.at_peak.get("workspace", 0), sum(footprint.workspace_at_peak.values())
    if workspace != operations:
        yield f"footprint.at_peak has {workspace:,} of workspace but workspace_at_peak sums to {operations:,}"
    libraries = sum(footprint.library_workspace_at_peak.values())
    if libraries > workspace:
        yield f"footprint.library_workspace_at_peak sums to {libraries:,}, more than the {workspace:,} of workspace"
    if footprint.without_libraries_bytes is not None and footprint.without_libraries_bytes > peak:
        yield f"footprint.without_libraries_bytes is {footprint.without_libraries_bytes:,}, above the peak of {peak:,}"
    yield from _timeline(footprint)


def _owner(footprint: Footprint) -> Iterator[str]:
    """Find the phase whose peak is the run's."""
    peak, task, phase = footprint.peak_bytes, footprint.peak_task, footprint.peak_phase
    owners = [
        entry for entry in footprint.by_phase if (entry.task, entry.phase, entry.peak_bytes) == (task, phase, peak)
    ]
    if not owners:
        yield f"the footprint's peak of {peak:,} is said to be that of task {task} {phase}, which by_phase does not say"
        return
    owner: PhaseFootprint = owners[0]
    if owner.op != footprint.peak_op:
        yield f"footprint.peak_op is {footprint.peak_op!r} but by_phase says {owner.op!r} of that peak"
    if owner.at_peak != footprint.at_peak:
        yield f"footprint.at_peak differs from what by_phase says of task {task} {phase}, which reached the peak"


def _roles(where: str, at_peak: Mapping[str, int], role_peaks: Mapping[str, int], peak: int) -> Iterator[str]:
    unknown = next((role for role in (*at_peak, *role_peaks) if role not in ROLES), None)
    if unknown is not None:
        yield f"{where} has the role {clean(unknown, 40)!r}, which clmem does not know"
    if not at_peak:
        yield f"{where} names no roles at its peak of {peak:,}"
    if sum(at_peak.values()) != peak:
        yield f"{where} has a peak of {peak:,} but its roles sum to {sum(at_peak.values()):,}"
    for role, size in at_peak.items():
        if size > role_peaks.get(role, 0):
            yield f"{where} has {size:,} of {role} at the peak but says that it is {role_peaks.get(role, 0):,} at most"


def phase_faults(where: str, phase: str) -> Iterator[str]:
    """Yield that a phase is none of those that every run has."""
    if phase not in PHASES:
        yield f"{where} has the phase {clean(phase, 40)!r}, which clmem does not know"


def _highest(name: str, peak: int, by_phase: Iterable[tuple[tuple[int, str], int]]) -> Iterator[str]:
    """Hold a peak against those of all phases, each of which is named once."""
    peaks: dict[tuple[int, str], int] = {}
    for (task, phase), size in by_phase:
        yield from phase_faults(f"{name}.by_phase", phase)
        if (task, phase) in peaks:
            yield f"{name}.by_phase has task {task} {phase} more than once"
        peaks[task, phase] = size
    if not peaks:
        yield f"{name}.by_phase names no phase"
    elif max(peaks.values()) != peak:
        yield f"{name}.peak_bytes is {peak:,} but the highest of {name}.by_phase is {max(peaks.values()):,}"


def _timeline(footprint: Footprint) -> Iterator[str]:
    timeline = footprint.timeline
    samples = len(timeline.time_s)
    for role, sizes in timeline.roles.items():
        if role not in ROLES:
            yield f"footprint.timeline has the role {clean(role, 40)!r}, which clmem does not know"
        if len(sizes) != samples:
            yield f"footprint.timeline has {samples:,} times but {len(sizes):,} sizes of {role}"
    for name, times in (("time_s", timeline.time_s), ("marks", [time for time, _ in timeline.marks])):
        for earlier, later in pairwise(times):
            if later < earlier:
                yield f"footprint.timeline.{name} falls from {earlier} s to {later} s"
    if len(timeline.marks) > MOST_MARKS:  # a phase may have begun many times
        yield f"footprint.timeline has {len(timeline.marks):,} marks, more than the {MOST_MARKS:,} of any schedule"
    highest = max(map(sum, zip(*timeline.roles.values(), strict=False)), default=0)
    if highest > footprint.peak_bytes:
        yield f"footprint.timeline rises to {highest:,} but footprint.peak_bytes is {footprint.peak_bytes:,}"


def _allocator(allocator: Allocator, target: str) -> Iterator[str]:
    try:
        if allocator.kind != allocator_of(target):
            yield f"allocator.kind is {allocator.kind!r} but the spec's target is {target!r}"
    except UsageError as error:
        yield str(error)
    yield from _highest(
        "allocator", allocator.peak_bytes, [((task, phase), size) for task, phase, size in allocator.by_phase]
    )
    # what each counts holds what the one before counts, at every moment
    names = ("requested_bytes", "peak_bytes", "active_bytes", "reserved_bytes")
    known = [(name, size) for name in names if (size := getattr(allocator, name)) is not None]
    for (less, size), (more, other) in pairwise(known):
        if size > other:
            yield f"allocator.{less} is {size:,} but allocator.{more}, which holds it, is {other:,}"


def _observer(result: RunResult) -> Iterator[str]:
    recorded = result.observer_delta_bytes
    if recorded is None:
        return
    if result.footprint is None or result.allocator is None:
        yield f"observer_delta_bytes is {recorded:,} but one of the two peaks that it compares is missing"
        return
    delta = result.footprint.peak_bytes - result.allocator.peak_bytes
    if delta != recorded:
        yield f"observer_delta_bytes is {recorded:,} but the two peaks differ by {delta:,}"


def _same_phases(result: RunResult) -> Iterator[str]:
    """Find a phase that peaked elsewhere when observed although no check says so."""
    if result.status != "ok" or result.footprint is None or result.allocator is None:
        return
    attributed = {(entry.task, entry.phase): entry.peak_bytes for entry in result.footprint.by_phase}
    admitted = {(int(begin[2]), begin[1]) for begin in filter(None, map(OBSERVED.match, result.checks))}
    for task, phase, peak in result.allocator.by_phase:
        observed = attributed.get((task, phase))
        if observed != peak and (task, phase) not in admitted:
            shown = "lacks it" if observed is None else f"has {observed:,}"
            yield (
                f"allocator.by_phase has {peak:,} for task {task} {phase} but footprint.by_phase {shown}, "
                "and its checks do not say so"
            )


def _process(process: Process) -> Iterator[str]:
    if process.peak_bytes < LEAST_OF_BASELINE * process.baseline_bytes:
        yield f"process.peak_bytes is {process.peak_bytes:,} but the process began with {process.baseline_bytes:,}"
    board = process.unified
    if board is not None and not board.before_bytes <= board.peak_bytes <= board.total_bytes:
        yield (
            f"process.unified has {board.before_bytes:,} before, {board.peak_bytes:,} at most and "
            f"{board.total_bytes:,} in all, which do not rise"
        )


def _curve(process: Process) -> Iterator[str]:
    highest = max((held for _, held in process.curve), default=0)
    if highest > MOST_OF_PEAK * process.peak_bytes:
        yield f"process.curve rises to {highest:,} but process.peak_bytes is {process.peak_bytes:,}"
