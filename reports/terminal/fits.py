"""What `clmem fit` shows: the answer, what it was held against, and the curve of predictions around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clmem.harness.results.record import RunResult
from clmem.harness.specs.targets import allocator_of
from clmem.reports.data.predictions import LIKE_ANOTHER_CARD
from clmem.reports.data.units import count, mib
from clmem.reports.terminal.runs import buffer_text, text_table, wrap

if TYPE_CHECKING:
    from clmem.harness.answers.fit import Fit

NAMES = {"batch": "batch", "side": "image side"}


def fit_table(fit: Fit, measured: RunResult | None, *, uses_buffer: bool = True) -> str:
    """Return the answer and the curve as text of at most 80 columns.

    measured: the confirmation, if there was one. uses_buffer: as in `measure_table`.
    """
    spec, budget = fit.spec, fit.budget
    on_cpu = allocator_of(spec.target) == "cpu"
    other = spec.stream_title if fit.axis == "batch" else f"batch {spec.batch_size}"
    buffer = buffer_text(spec) if uses_buffer else ""
    lines = [
        wrap(f"{spec.method} ({spec.execution}), {spec.network} (width {spec.width}), {other}{buffer}"),
        wrap(f"budget {budget.name}: {budget.title}"),
        wrap(_deducted(fit, on_cpu)),
    ]
    if not on_cpu and _beside(fit):
        lines.append(wrap(f"with context and process: must stay within {mib(fit.limit_bytes + _beside(fit))} MiB"))
    if budget.note:
        lines.append(wrap(budget.note))
    if not on_cpu:
        lines.append(wrap(f"{LIKE_ANOTHER_CARD}, and left out where they do not fit"))
    lines += ["", _curve(fit, on_cpu), "", wrap(answer(fit))]
    if measured is not None:
        lines.append(wrap(_confirmed(fit, measured)))
    return "\n".join(lines)


def answer(fit: Fit) -> str:
    """Return the answer in one sentence."""
    name = NAMES[fit.axis]
    if fit.largest is None:
        return f"Predicted: not even the smallest {name} fits."
    if fit.capped and fit.largest.size == fit.images:
        return f"Predicted: {name} {fit.largest.size} fits, and the smallest task has no more images."
    if fit.capped:
        return f"Predicted: {name} {fit.largest.size} fits, and larger ones were not tried."
    return f"Predicted: {name} {fit.largest.size} is the largest that fits."


def _deducted(fit: Fit, on_cpu: bool) -> str:
    used = ("system",) if on_cpu else tuple(fit.budget.deductions)
    taken = [f"{name} {mib(fit.budget.deductions[name])}" for name in used if name in fit.budget.deductions]
    less = f"{mib(fit.budget.total_bytes)} MiB" + (f", less {', '.join(taken)}" if taken else "")
    if on_cpu:
        return f"{less}: {mib(fit.limit_bytes)} MiB for the process, whose own part is {mib(fit.own_bytes)} (measured)"
    return f"{less}: {mib(fit.limit_bytes)} MiB for what torch reserves"


def _curve(fit: Fit, on_cpu: bool) -> str:
    rows = []
    for point in fit.points:
        fits = "yes" if point.fits(fit.limit_bytes) else "no"
        peak, needed = (mib(size) or "more" for size in (point.peak_bytes, point.needed_bytes))
        rows.append([str(point.size), peak, needed, fits])
    headers = [NAMES[fit.axis], "tensor peak MiB", "process MiB" if on_cpu else "reserved MiB", "fits"]
    beside = _beside(fit)
    if not on_cpu and beside:
        headers.insert(3, "with context and process")
        for row, point in zip(rows, fit.points, strict=True):
            row.insert(3, mib(None if point.needed_bytes is None else point.needed_bytes + beside) or "more")
    return text_table(headers, rows)


def _beside(fit: Fit) -> int:
    """Return the bytes of the CUDA context and of the process itself, which lie in a board's memory too."""
    return sum(fit.budget.deductions.get(name, 0) for name in ("context", "process"))


def _confirmed(fit: Fit, measured: RunResult) -> str:
    if measured.status != "ok":
        return f"Measured, budget emulated: {measured.status}: {measured.reason}"
    peak = None if measured.allocator is None else measured.allocator.peak_bytes
    process = None if measured.process is None else measured.process.peak_bytes
    parts = [f"tensor peak {mib(peak)} MiB ({count(peak)} B)", f"process peak {mib(process)} MiB"]
    return f"Measured, budget emulated: {', '.join(parts)}"


def fit_json(fit: Fit, measured: RunResult | None) -> dict[str, Any]:
    """Return the same, ready for JSON: sizes in bytes."""
    points = [
        {
            "size": point.size,
            "predicted_peak_bytes": point.peak_bytes,
            "predicted_needed_bytes": point.needed_bytes,
            "fits": point.fits(fit.limit_bytes),
        }
        for point in fit.points
    ]
    return {
        "method": fit.spec.method,
        "target": fit.spec.target,
        "execution": fit.spec.execution,
        "vary": fit.axis,
        "budget": fit.budget.name,
        "budget_bytes": fit.budget.total_bytes,
        "deductions": dict(fit.budget.deductions),
        "limit_bytes": fit.limit_bytes,
        "process_own_bytes": fit.own_bytes or None,
        "largest": None if fit.largest is None else fit.largest.size,
        "capped": fit.capped,
        "assumed": LIKE_ANOTHER_CARD if allocator_of(fit.spec.target) == "cuda" else None,
        "points": points,
        "measured": None if measured is None else measured.model_dump(mode="json", by_alias=True),
    }
