"""The markdown tables of one section. Every number is measured; empty means not measured, a dash not defined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from clmem.harness.results.record import PHASES, ROLES, Footprint
from clmem.reports.data.grouping import Cell, Section
from clmem.reports.data.units import UNDEFINED, Statistic, count, mib, share
from clmem.reports.markdown.markup import cell_text, code

ACCURACY_COLUMNS = (
    ("class_il_accuracy", "ACC class-IL %"),
    ("task_il_accuracy", "ACC task-IL %"),
    ("class_il_forgetting_max_previous", "forgetting_max_previous class-IL %"),
    ("task_il_forgetting_max_previous", "forgetting_max_previous task-IL %"),
)
KNOWN = 6
"""Columns of the process level that every target has."""
MOST_ROWS = 5000
"""Of one table; what a reader is not helped by is only counted."""
WORKSPACE_ROWS = 5
"""Operations shown per method in the workspace table; the rest is summed into one row."""


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, last: str = "right") -> str:
    """Return a GitHub-flavoured table: the first `left` columns aligned left, the others (numbers) right.

    last: how the last column is aligned where it is not among the first. Cells and headers are escaped, all but those
    that are `Markdown`. Empty without rows.
    """
    if not rows:
        return ""
    # "pipe" is tabulate's github format with the alignment written into the rule, where a code host reads it
    align = ["left"] * left + ["right"] * (len(headers) - left - 1) + [last] * (len(headers) > left)
    safe = [[cell_text(value) for value in row] for row in (headers, *rows[:MOST_ROWS])]
    if len(rows) > MOST_ROWS:
        safe.append([f"{len(rows) - MOST_ROWS:,} more rows", *([""] * (len(headers) - 1))])
    return tabulate(safe[1:], headers=safe[0], tablefmt="pipe", disable_numparse=True, colalign=align)


def headline_table(section: Section) -> str:
    """Return one row per method: tensor and process peaks, accuracy, forgetting, seeds, status."""
    later = later_differs(section)
    headers = ["method", "tensor peak MiB", *(["tensor peak in later tasks MiB"] if later else [])]
    headers += ["process peak MiB", "process peak of the full stream MiB"]
    headers += [header for _, header in ACCURACY_COLUMNS] + ["seeds", "status"]
    rows = []
    for cell in section.cells:
        row = [cell.label, mib(cell.tensor_peak_bytes), *([mib(cell.later_peak_bytes)] if later else [])]
        row += [mib(cell.process_peak_bytes("pinned")), mib(cell.process_peak_bytes("default"))]
        row += [accuracy_text(cell, name) for name, _ in ACCURACY_COLUMNS]
        rows.append([*row, count(len(cell.accuracy) or None), cell.status()])
    return markdown_table(headers, rows, last="left")


def later_differs(section: Section) -> bool:
    """Tell whether any method's tensor peak belongs to its first task only."""
    return any(cell.falls_later for cell in section.cells)


def accuracy_text(cell: Cell, metric: str) -> str:
    """Return a metric as percent with ± over seeds; a dash where not defined, empty where nothing was learnt."""
    if not cell.has_accuracy():
        return ""
    statistic = cell.metric(metric)
    if statistic is None:
        return UNDEFINED
    # fewer values than the seeds column says must be visible next to the number itself
    return statistic.percent() + (f" (n = {statistic.n})" if statistic.n != len(cell.accuracy) else "")


def shown_roles(footprints: Iterable[Footprint]) -> list[str]:
    """Return the roles that a table of these has: every one, but rounding only where an allocator rounded."""
    rounded = any(footprint.role_peaks.get("rounding") for footprint in footprints)
    return [role for role in ROLES if rounded or role != "rounding"]


def _shown(section: Section) -> list[str]:
    return shown_roles(footprint for _, _, footprint in section.measured)


def role_table(section: Section) -> str:
    """Return bytes by role at the peak in MiB; the total is the peak, in MiB and in bytes."""
    rows, shown = [], _shown(section)
    for cell, _, footprint in section.measured:
        roles = [mib(footprint.at_peak.get(role, 0)) for role in shown]
        total = sum(footprint.at_peak.values())
        rows.append([cell.label, *roles, mib(total), count(total)])
    return markdown_table(["method", *shown, "total MiB", "total bytes"], rows)


def role_bytes_table(section: Section) -> str:
    """Return the same in bytes, with the sum check and the observer delta of each method."""
    rows, shown = [], _shown(section)
    for cell, _, footprint in section.measured:
        roles = [count(footprint.at_peak.get(role, 0)) for role in shown]
        total = sum(footprint.at_peak.values())
        residual = total - footprint.peak_bytes
        rows.append([cell.label, *roles, count(total), count(residual), count(cell.observer_delta_bytes)])
    headers = ["method", *shown, "sum of roles", "sum of roles - allocator peak", "observer delta"]
    return markdown_table(headers, rows)


def role_peak_table(section: Section) -> str:
    """Return each role's own highest value in MiB: these need not coincide, so they have no total."""
    shown = _shown(section)
    rows = [
        [cell.label, *(mib(footprint.role_peaks.get(role, 0)) for role in shown)]
        for cell, _, footprint in section.measured
    ]
    return markdown_table(["method", *shown], rows)


def phase_table(section: Section) -> str:
    """Return the peak of each phase in MiB over all tasks, and which task, phase and operation owned the peak."""
    rows = []
    for cell, _, footprint in section.measured:
        peaks = [mib(footprint.phases.get(phase)) for phase in PHASES]
        owner = [f"task {footprint.peak_task}, {footprint.peak_phase}", code(footprint.peak_op)]
        rows.append([cell.label, *owner, *peaks])
    return markdown_table(["method", "peak reached in", "by operation", *PHASES], rows, left=3)


def task_table(section: Section) -> str:
    """Return the peak of every phase of every task in MiB, with nothing instrumented."""
    rows = []
    for cell in section.cells:
        allocator = cell.memory.allocator if cell.memory is not None else None
        peaks = {(task, phase): peak for task, phase, peak in allocator.by_phase} if allocator is not None else {}
        for task in sorted({task for task, _ in peaks}):
            rows.append([cell.label, count(task), *(mib(peaks.get((task, phase))) for phase in PHASES)])
    return markdown_table(["method", "task", *PHASES], rows)


def workspace_table(section: Section) -> str:
    """Return the operations that own the workspace at the peak, largest first, with their share of it."""
    rows = []
    for cell, _, footprint in section.measured:
        operations = sorted(footprint.workspace_at_peak.items(), key=lambda item: (-item[1], item[0]))
        whole = sum(footprint.workspace_at_peak.values())
        shown: list[tuple[str, int]] = [(code(name), size) for name, size in operations[:WORKSPACE_ROWS]]
        rest = operations[WORKSPACE_ROWS:]
        if rest:
            shown.append((f"{len(rest)} more", sum(size for _, size in rest)))
        rows += [[cell.label, name, mib(size), count(size), share(size, whole)] for name, size in shown]
    return markdown_table(["method", "operation", "MiB", "bytes", "share of the workspace"], rows, left=2)


def library_table(section: Section) -> str:
    """Return the peak beside what libraries took of it for themselves, and the peak without, in MiB; older results do
    not know. Empty where no result knows.
    """
    known = [found for found in section.measured if found[2].without_libraries_bytes is not None]
    names = sorted({name for _, _, footprint in known for name in footprint.library_workspace_at_peak})
    rows = [
        [
            cell.label,
            mib(footprint.peak_bytes),
            *(mib(footprint.library_workspace_at_peak.get(name, 0)) for name in names),
            mib(footprint.at_peak.get("workspace", 0) - sum(footprint.library_workspace_at_peak.values())),
            mib(footprint.without_libraries_bytes),
        ]
        for cell, _, footprint in known
    ]
    headers = ["method", "peak", *(f"of it {name}" for name in names), "other workspace", "peak without libraries"]
    return markdown_table(headers, rows) if rows else ""


def process_table(section: Section) -> str:
    """Return the process level: the baseline before the network is built, the peak, and what lies between, in MiB; on
    CUDA also what NVML counts on the device, on a Jetson what the board's memory lost.
    """
    rows = []
    for cell in section.cells:
        for run in (cell.memory, *cell.accuracy):
            if run is not None and run.process is not None:
                process = run.process
                what = f"full stream, seed {run.spec.seed}" if run.spec.measure == "accuracy" else "short schedule"
                above = process.peak_bytes - process.baseline_bytes
                numbers = [mib(process.baseline_bytes), mib(process.peak_bytes), mib(above)]
                numbers.append(mib(process.device_peak_bytes))
                board = process.unified
                numbers.append(mib(board.peak_bytes - board.before_bytes if board is not None else None))
                peak = f"{process.malloc}, peak includes imports" if process.peak_includes_imports else process.malloc
                rows.append([cell.label, what, peak, *numbers])
    headers = ["method", "run", "malloc", "baseline MiB", "peak MiB", "above baseline MiB"]
    headers += ["on the device MiB", "of the board's memory MiB"]
    known = [column for column in range(len(headers)) if column < KNOWN or any(row[column] for row in rows)]
    return markdown_table([headers[column] for column in known], [[row[c] for c in known] for row in rows], left=3)


def caching_table(section: Section) -> str:
    """Return what CUDA's caching allocator counted at its own peaks, in MiB; empty where none was asked."""
    rows = []
    for cell in section.cells:
        counted = None if cell.memory is None else cell.memory.allocator
        if counted is not None and counted.reserved_bytes is not None:
            sizes = (counted.requested_bytes, counted.peak_bytes, counted.active_bytes, counted.reserved_bytes)
            rows.append([cell.label, *(mib(size) for size in sizes), count(counted.retries)])
    headers = ["method", "requested MiB", "allocated MiB", "active MiB", "reserved MiB", "retries"]
    return markdown_table(headers, rows) if rows else ""


def time_table(section: Section) -> str:
    """Return floating-point operations of a steady step, and seconds inside the full stream's phases, over seeds."""
    rows = []
    for cell in section.cells:
        flops = next((run.flops_per_step for run in cell.runs if run.flops_per_step is not None), None)
        seconds = Statistic.of([sum(run.phase_s.values()) for run in cell.accuracy if run.phase_s])
        if flops is not None or seconds is not None:
            shown = "" if seconds is None else f"{seconds.mean:,.1f}"
            rows.append([cell.label, "" if flops is None else f"{flops / 1e9:,.2f}", shown])
    return markdown_table(["method", "GFLOP per step", "phases of the full stream s"], rows)
