"""The largest batch, or the largest image, that a method learns with inside a budget: by prediction.

Memory grows all but linearly with the batch and with the area of the images, so a straight line through two predictions
says where to look next, and where both took the same blocks in the same order, so does what the allocator makes of
blocks on that line. Every answer is a prediction that fits beside the next one that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from clmem.harness.answers.prediction import Recorded, predict, record, result_of
from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.learning.registry import method_class
from clmem.harness.memory.ledger.libraries import CUDNN
from clmem.harness.memory.ledger.log import AllocationLog, between
from clmem.harness.memory.predicting.caching import OutOfReservedError, cached
from clmem.harness.networks.registry import architecture
from clmem.harness.runs.checks import OneValueError, check_spec
from clmem.harness.runs.job import Job
from clmem.harness.runs.processes import Workers
from clmem.harness.specs.budgets import Budget, budget
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources
from clmem.harness.specs.targets import allocator_of
from clmem.harness.specs.techniques import PLAIN, techniques
from clmem.harness.streams import open_stream

Axis = Literal["batch", "side"]

LARGEST = {"batch": 65_536, "side": 1024}
LARGEST_IN_SLICES = 128
"""Batches that are carried out a few images at a time are predicted so too, and that takes longer with each."""
FIRST = {"batch": (16, 32), "side": (32, 64)}
"""The sizes through whose predictions a straight line is laid."""
TIMEOUT_S = 300
LOOK_AHEAD = 8
"""Numbers behind one that fits among which a larger one may fit again."""


@dataclass(frozen=True)
class Point:
    """One prediction. needed_bytes: what is held against the limit (the tensor peak and the process on the CPU, the
    reserved segments on CUDA), None where CUDA's allocator ran out. peak_bytes: the tensor peak, None likewise.
    """

    size: int
    peak_bytes: int | None
    needed_bytes: int | None

    def fits(self, limit_bytes: int) -> bool:
        """Say whether it stays within a limit."""
        return self.needed_bytes is not None and self.needed_bytes <= limit_bytes


@dataclass(frozen=True)
class Fit:
    """What fits. largest: None when not even the smallest does that a method can learn with.

    points: every prediction made, by size. own_bytes: what a process takes on the CPU beside its tensors, measured; on
    a board it is one of the budget's deductions. capped: whether the search ended at its own bound or at the data's and
    not at the budget's. images: how many the smallest task has, where the batch varies.
    """

    spec: RunSpec
    axis: Axis
    budget: Budget
    limit_bytes: int
    own_bytes: int
    largest: Point | None
    points: list[Point]
    capped: bool
    images: int | None


def fit(
    spec: RunSpec, axis: Axis, sources: Sources = NOWHERE, on_point: Callable[[Point], None] = lambda _: None
) -> Fit:
    """Return the largest batch or image side of a run that stays within its budget, all else as the spec says.

    A replay method replays as many samples as the spec says, at any batch. Near CUDA's limit it is how blocks lie that
    decides, so beyond the first size that does not fit a larger one may: a few are looked at, where that can be told
    from two predictions. Raises UsageError for a spec without a
    budget or without the images to vary, and for what cannot be predicted.
    """
    if spec.budget is None:
        raise UsageError("fit needs a budget to stay within; give --budget (see `clmem list budgets`)")
    if axis == "side" and not spec.stream.startswith("synthetic-"):
        raise UsageError(f"{spec.stream!r} has images of one size; give a synthetic stream to vary their side")
    allowed = budget(spec.budget)
    on_cpu = allocator_of(spec.target) == "cpu"
    limit = allowed.limit_bytes(spec.target)
    own = own_process_bytes(spec, sources) if on_cpu else 0
    step = 1 if axis == "batch" else architecture(spec.network).side_step
    tried: dict[int, Point] = {}
    too_small: dict[int, OneValueError] = {}
    logs: dict[int, AllocationLog] = {}

    def at(number: int) -> Point:
        size = number * step
        if number not in tried:
            wanted = sized(spec, axis, size)
            check_spec(wanted, sources, here=False)
            recorded = record(wanted, sources)
            if not on_cpu and len(logs) < 2:
                logs[number] = recorded.log
            tried[number] = _point(wanted, recorded, size, None if on_cpu else limit, own)
            on_point(tried[number])
        return tried[number]

    def fits(number: int) -> bool:
        """Say whether the search goes on to larger numbers: this one stays within the limit, or is too small to run."""
        try:
            return at(number).fits(limit)
        except OneValueError as error:
            too_small[number] = error
            return True

    most = LARGEST[axis] // step
    chosen = techniques(spec.execution, method_class(spec.method).lean)
    if axis == "batch" and chosen.in_slices:
        most = LARGEST_IN_SLICES
    images = _smallest_task(spec, sources) if axis == "batch" else None
    most = most if images is None else min(most, images)
    small, large = (size // step for size in FIRST[axis])
    if large > most:
        small, large = max(1, most // 2), most
    first = [number for number in (small, large) if fits(number)]
    bad = min((number for number in tried if number not in first), default=most + 1)
    simulated = _simulated(logs, limit, bad, area=axis == "side") if len(logs) == len(first) == 2 else None

    def crossing() -> int | None:
        return simulated or _crossing(tried, limit, own, area=axis == "side")

    good = _search(fits, crossing, max(first, default=0), bad)
    if not tried:
        raise too_small[good]
    return Fit(
        spec=spec,
        axis=axis,
        budget=allowed,
        limit_bytes=limit,
        own_bytes=own,
        largest=tried.get(good),
        points=[tried[number] for number in sorted(tried)],
        capped=good == most,
        images=images,
    )


def _smallest_task(spec: RunSpec, sources: Sources) -> int:
    stream = open_stream(
        spec.stream,
        seed=spec.seed,
        batch_size=1,
        epochs=1,
        data_root=sources.data_root,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
    )
    return min(stream.train_task(t).num_samples for t in range(stream.num_train_tasks))


def own_process_bytes(spec: RunSpec, sources: Sources = NOWHERE) -> int:
    """Return what a process of this method takes beside its tensors: libraries and interpreter, measured by running it
    on the narrowest network. Raises ClmemError where that run fails.
    """
    width = architecture(spec.network).narrowest(1)
    narrow = spec.model_copy(update={"width": width, "budget": None, "execution": PLAIN, "weights": None})
    tensors = predict(narrow, sources).footprint
    outcome = Workers(threads=1).run(Job(spec=narrow, what="process", sources=sources), TIMEOUT_S, lambda fields: None)
    if tensors is None or outcome.status != "ok" or outcome.process_peak_bytes is None:
        raise ClmemError(f"the size of a process could not be measured: {outcome.status}: {outcome.reason}")
    return outcome.process_peak_bytes - tensors.peak_bytes


def _crossing(tried: Mapping[int, Point], limit: int, own: int, *, area: bool) -> int | None:
    """Return the number at which a straight line through the smallest and the largest known prediction crosses the
    limit, None where no line can be laid. tried: predictions by number.

    The first line follows what is held against the limit, later ones the tensors: an allocator that comes near its
    limit gives back what it only kept, so tensors decide there.
    """
    power = 2 if area else 1
    known = [
        (number, number**power, point.needed_bytes, point.peak_bytes)
        for number, point in sorted(tried.items())
        if point.needed_bytes is not None and point.peak_bytes is not None
    ]
    if len(known) < 2:
        return None
    (_, low, *less), (largest, high, *more) = known[0], known[-1]
    which, room = (0, limit) if len(tried) == 2 else (1, limit - own)
    rise = more[which] - less[which]
    if rise <= 0:
        return 8 * largest
    return int(max(high + (room - more[which]) * (high - low) / rise, 0) ** (1 / power))


def _simulated(logs: Mapping[int, AllocationLog], limit: int, bad: int, *, area: bool) -> int | None:
    """Return the largest number below `bad` whose blocks CUDA's allocator could serve, taken to lie on a line.

    Near the limit what fits depends on how blocks lie: some numbers behind the first that does not fit are tried too.
    logs: those of two numbers that fit. None where they did not take the same blocks in the same order.
    """
    power = 2 if area else 1
    (low, one), (high, other) = sorted(logs.items())
    if between(one, other, 0.5) is None:
        return None

    def fits(number: int) -> bool:
        log = between(one, other, (number**power - low**power) / (high**power - low**power))
        assert log is not None
        try:
            cached(log, limit, dispensable=CUDNN)
        except OutOfReservedError:
            return False
        return True

    found = _search(fits, lambda: None, high, bad)
    return max(
        number for number in range(found, min(found + LOOK_AHEAD, bad - 1) + 1) if number == found or fits(number)
    )


def _search(fits: Callable[[int], bool], crossing: Callable[[], int | None], good: int, bad: int) -> int:
    """Return the largest number that fits, known to lie from `good` on and below `bad`.

    crossing: a guess, asked for again after every number that fits; None where nothing can be said. While all fit, the
    guesses are followed in strides that at least double; from the first that does not, back in such strides; then by
    halving.
    """
    guess, stride, missed = crossing(), 1, False
    probe = (good + bad) // 2 if guess is None else guess
    while bad - good > 1:
        probe = min(max(probe, good + 1), bad - 1)
        if fits(probe):
            good = probe
            probe = (good + bad) // 2 if missed else max(crossing() or 0, good + stride)
        else:
            bad, missed = probe, True
            probe = max(bad - stride, (good + bad) // 2)
        stride *= 2
    return good


def _point(spec: RunSpec, recorded: Recorded, size: int, limit: int | None, own: int) -> Point:
    try:
        footprint = result_of(spec, recorded, limit).footprint
    except OutOfReservedError:
        return Point(size, None, None)
    assert footprint is not None
    held = footprint.peak_bytes if footprint.reserved_bytes is None else footprint.reserved_bytes
    return Point(size, footprint.peak_bytes, held + own)


def sized(spec: RunSpec, axis: Axis, size: int) -> RunSpec:
    """Return the spec with that batch or that side of images."""
    return spec.model_copy(update={"batch_size" if axis == "batch" else "image_size": size})
