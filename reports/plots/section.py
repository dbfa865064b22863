"""The plots of a section, as PNG; matplotlib is imported only when one is drawn.

Every role has one colour in all plots (Okabe and Ito's palette, which colour-blind readers can tell apart).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clmem.harness.results.record import Footprint, RunResult
from clmem.harness.text import file_name
from clmem.reports.data.executions import executions_of, without_steps_between
from clmem.reports.data.grouping import Cell, Section
from clmem.reports.data.units import MIB, Statistic, mib
from clmem.reports.plots.figures import new_figure, plot_style, save_figure
from clmem.reports.plots.labels import place_labels, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLE_COLOURS = {
    "parameters": "#0072B2",
    "module_buffers": "#56B4E9",
    "optimizer": "#CC79A7",
    "gradients": "#E69F00",
    "method_state": "#009E73",
    "replay": "#F0E442",
    "input": "#000000",
    "activations": "#D55E00",
    "workspace": "#A0A0A0",
    "rounding": "#D8D8D8",
}
STACK = (
    "parameters",
    "module_buffers",
    "optimizer",
    "method_state",
    "replay",
    "input",
    "gradients",
    "activations",
    "workspace",
    "rounding",
)
"""The order in which roles are stacked: what stays first, what comes and goes last, so that edges stay level."""
POINT_COLOUR = "#0072B2"
POINT_FACE = "#A6D0EC"
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
LABEL_CHARACTERS = 34
MOST_NAMED = 38
"""Phases that a plot of a run's course has room to name."""
LONGEST_STEM = 200
"""Characters of a file's name before its ending; file systems take 255, and files are written under a longer one."""

Kind = Literal["roles", "execution", "accuracy", "timeline", "process"]


@dataclass(frozen=True)
class Plot:
    """One drawn plot."""

    kind: Kind
    caption: str
    png: Path


def draw_section(whole: Section, folder: Path, progress: Callable[[str], None] | None = None) -> list[Plot]:
    """Draw every plot for which a section has numbers into `folder` (made if missing); return them in order.

    progress: called with the caption of each plot before it is drawn, which takes about a second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    section = without_steps_between(whole)
    slug = section.setting.slug
    plots: list[Plot] = []

    def draw(kind: Kind, name: str, caption: str, make: Callable[[], Figure]) -> None:
        if progress is not None:
            progress(caption)
        with plot_style():
            stem = f"{slug}-{file_name(name)}"
            stem = stem if len(stem) <= LONGEST_STEM else file_name(stem)
            plots.append(Plot(kind, caption, save_figure(make(), folder / f"{stem}.png")))

    if section.measured:
        draw("roles", "roles", "Bytes by role at the peak of each method", partial(roles_figure, section))
    if executions_of(whole):
        caption = "Bytes by role at the peak of each method, plainly and with one technique after the other"
        draw("execution", "execution", caption, partial(execution_figure, whole))
    if accuracy_points(section):
        draw("accuracy", "accuracy", "Accuracy against tensor peak", partial(accuracy_figure, section))
    for number, (cell, run, footprint) in enumerate(section.measured):
        if len(footprint.timeline.time_s) > 1:
            name = f"timeline-{cell.method}" + _repeat_suffix(section, number)
            caption = f"Live bytes by role over time, {cell.label}"
            draw("timeline", name, caption, partial(timeline_figure, run, cell.label))
    if process_curves(section):
        draw("process", "process", "Resident memory of each process over time", partial(process_figure, section))
    return plots


def roles_figure(section: Section) -> Figure:
    """Return stacked horizontal bars: one bar per method, largest peak on top, one colour per role, in MiB."""
    measured = section.measured
    bars = [(float(row), cell.label, footprint) for row, (cell, _, footprint) in enumerate(measured)]
    figure, _ = _stacked_bars(bars)
    return figure


def execution_figure(section: Section) -> Figure:
    """Return stacked horizontal bars in MiB, a group for each method: as released, plain, step by step to lean."""
    bars: list[tuple[float, str, Footprint]] = []
    heads: list[tuple[float, str]] = []
    row = 0.0
    for executions in executions_of(section):
        heads.append((row, executions.label))
        bars += [(row + 1 + number, way.added, way.footprint) for number, way in enumerate(executions.ways)]
        row += len(executions.ways) + 1.4
    figure, axes = _stacked_bars(bars)
    for position, label in heads:
        axes.annotate(
            label, (0, position + 0.1), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontweight="bold",
        )  # fmt: skip
    return figure


def _stacked_bars(bars: Sequence[tuple[float, str, Footprint]]) -> tuple[Figure, Axes]:
    """Return one stacked bar by role (MiB) for each (position from the top, label, footprint), with its total."""
    last = max(row for row, _, _ in bars)
    figure, axes = _figure(8.0, 1.86 + 0.36 * last)
    rows = [row for row, _, _ in bars]
    left = [0.0] * len(bars)
    for role in (role for role in STACK if any(footprint.at_peak.get(role) for _, _, footprint in bars)):
        widths = [footprint.at_peak.get(role, 0) / MIB for _, _, footprint in bars]
        axes.barh(rows, widths, left=left, height=0.72, color=ROLE_COLOURS[role], label=role.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
        if role == "workspace":
            _hatch_libraries(axes, bars, left)
    for end, (row, _, footprint) in zip(left, bars, strict=True):
        axes.annotate(mib(footprint.peak_bytes), (end, row), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, [_short(label) for _, label, _ in bars])
    axes.set_ylim(last + 0.6, -0.6)
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_xlabel("live at the peak (MiB)")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
    return figure, axes


def _hatch_libraries(axes: Axes, bars: Sequence[tuple[float, str, Footprint]], ends: Sequence[float]) -> None:
    """Hatch what libraries took of each workspace, whose bar ends there."""
    taken = [sum(footprint.library_workspace_at_peak.values()) / MIB for _, _, footprint in bars]
    if any(taken):
        starts = [end - width for end, width in zip(ends, taken, strict=True)]
        axes.barh(
            [row for row, _, _ in bars], taken, left=starts, height=0.72, color=ROLE_COLOURS["workspace"],
            hatch="////", edgecolor="white", linewidth=0, label="of it libraries'",
        )  # fmt: skip


def accuracy_points(section: Section) -> list[tuple[Cell, Statistic]]:
    """Return the cells that have both an accuracy and a tensor peak: class-IL where any has it, else task-IL."""
    for metric in ("class_il_accuracy", "task_il_accuracy"):
        found = [
            (cell, statistic)
            for cell in section.cells
            if cell.tensor_peak_bytes is not None and (statistic := cell.metric(metric)) is not None
        ]
        if found:
            return found
    return []


def accuracy_figure(section: Section) -> Figure:
    """Return accuracy (%, error bars: sample standard deviation over seeds) against tensor peak (MiB).

    Joint runs, which learn all tasks at once, are hollow diamonds. A method that holds less after its first task has a
    second, hollow point at its peak over the later tasks, joined to the first, which carries the label.
    """
    points = accuracy_points(section)
    class_il = any(cell.metric("class_il_accuracy") for cell, _ in points)
    figure, axes = _figure(8.0, 5.0)
    x = [(cell.tensor_peak_bytes or 0) / MIB for cell, _ in points]
    y = [100 * statistic.mean for _, statistic in points]
    errors = [100 * (statistic.deviation or 0.0) for _, statistic in points]
    axes.errorbar(x, y, yerr=errors, fmt="none", ecolor="#333333", elinewidth=1.2, capsize=3, zorder=4)
    for (cell, _), across, up in zip(points, x, y, strict=True):
        face, marker = ("white", "D") if cell.joint else (POINT_FACE, "o")
        axes.scatter(
            [across], [up], s=42, marker=marker, facecolor=face, edgecolor=POINT_COLOUR, linewidth=1.5, zorder=3
        )
    fallen = [
        ((cell.later_peak_bytes or 0) / MIB, across, up)
        for (cell, _), across, up in zip(points, x, y, strict=True)
        if cell.falls_later
    ]
    for later, across, up in fallen:
        axes.plot([later, across], [up, up], color=POINT_COLOUR, linewidth=0.8, zorder=2)
        axes.scatter([later], [up], s=42, facecolor="white", edgecolor=POINT_COLOUR, linewidth=1.5, zorder=3)
    low = min(up - error for up, error in zip(y, errors, strict=True))
    high = max(up + error for up, error in zip(y, errors, strict=True))
    margin = max(1.0, 0.12 * (high - low))
    axes.set_xlim(0, 1.2 * max(x))
    axes.set_ylim(max(0.0, low - margin), min(102.0, high + margin))
    axes.set_xlabel("tensor peak (MiB)")
    axes.set_ylabel(f"{'class-IL' if class_il else 'task-IL'} accuracy (%)")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    if fallen:
        _explain_hollow_points(figure)
    # settings go on a second line: a narrow label finds room near its point
    labels = [
        (_short(cell.label) + (" (all tasks at once)" if cell.joint else "")).replace(" (", "\n(", 1)
        for cell, _ in points
    ]
    place_labels(axes, x, y, errors, labels, fallen)
    return figure


def _explain_hollow_points(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    faces = ((POINT_FACE, "peak over all tasks"), ("white", "peak over the later tasks, where it is lower"))
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6.5, markerfacecolor=face, markeredgecolor=POINT_COLOUR)
        for face, _ in faces
    ]
    figure.legend(handles, [text for _, text in faces], loc="outside upper left", ncols=2, frameon=False)


def timeline_figure(result: RunResult, title: str) -> Figure:
    """Return live bytes by role (MiB, stacked) over time (s), with a mark where each phase starts.

    Raises ValueError for a result without a footprint.
    """
    if result.footprint is None:
        raise ValueError(f"{result.run_id} has no footprint to draw")
    timeline = result.footprint.timeline
    figure, axes = _figure(8.0, 5.2)
    present = [role for role in STACK if any(timeline.roles.get(role, []))]
    stacks = [[size / MIB for size in timeline.roles[role]] for role in present]
    colours = [ROLE_COLOURS[role] for role in present]
    names = [role.replace("_", " ") for role in present]
    axes.stackplot(timeline.time_s, stacks, colors=colours, labels=names, step="post", linewidth=0)
    totals = [sum(sizes) for sizes in zip(*stacks, strict=True)]
    highest = max([*totals, result.footprint.peak_bytes / MIB])
    axes.axhline(result.footprint.peak_bytes / MIB, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)))
    marked = [time for time, _ in timeline.marks]
    axes.set_xlim(min([timeline.time_s[0], *marked]), max([timeline.time_s[-1], *marked]))
    axes.set_ylim(0, 1.06 * highest)
    axes.set_xlabel("time since the first phase (s)")
    axes.set_ylabel("live (MiB)")
    _mark_phases(axes, timeline.marks)
    text = f"{_short(title)}: peak {mib(result.footprint.peak_bytes)} MiB (dashed)"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)
    return figure


def _mark_phases(axes: Axes, marks: Sequence[tuple[float, str]]) -> None:
    """Draw a line where each phase starts, its name above the plot; names of short phases are moved apart.

    Of more phases than have room for a name, every n-th is drawn.
    """
    from matplotlib.lines import Line2D

    if not marks:
        return
    marks = marks[:: math.ceil(len(marks) / MOST_NAMED)]
    first, last = axes.get_xlim()
    starts = [(time - first) / (last - first) for time, _ in marks]
    for start, position, (time, name) in zip(starts, spread(starts, gap=0.026), marks, strict=True):
        axes.axvline(time, color="white", linewidth=0.8)
        # a plain line: clipping an annotation's arrow to its text dominated the drawing time
        across, up, where = [start, position], [1.0, 1.05], axes.transAxes
        axes.add_line(Line2D(across, up, transform=where, color="#888888", linewidth=0.7, clip_on=False))
        shown = name.replace("_", " ")
        axes.text(position, 1.06, shown, transform=where, rotation=90, ha="center", va="bottom", fontsize=8.5)


def process_curves(section: Section) -> list[tuple[str, list[tuple[float, int]]]]:
    """Return each method's label and its memory run's resident memory over time (s, bytes), where it was sampled."""
    runs = [(cell.label, cell.memory) for cell in section.cells if cell.memory is not None]
    return [(label, run.process.curve) for label, run in runs if run.process is not None and run.process.curve]


def process_figure(section: Section) -> Figure:
    """Return resident memory (MiB) over time (s), one line per method: imports first, then the short schedule."""
    curves = process_curves(section)
    # about a hundred characters fit side by side, the samples of the lines included
    columns = 100 // (max(len(_short(label)) for label, _ in curves) + 9)
    figure, axes = _figure(8.0, 3.4 + 0.2 * -(-len(curves) // columns))
    for number, (label, curve) in enumerate(curves):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        style = LINE_STYLES[number // len(LINE_COLOURS) % len(LINE_STYLES)]
        sizes = [size / MIB for _, size in curve]
        axes.plot([time for time, _ in curve], sizes, style, color=colour, linewidth=1.1, label=_short(label))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time since the process began (s)")
    axes.set_ylabel("resident (MiB)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, frameon=False)
    return figure


def _figure(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    figure, (axes,) = new_figure(width_inches, height_inches)
    return figure, axes


def _repeat_suffix(section: Section, number: int) -> str:
    """Return "-2" for the second cell of the same method, so that no two plots share a file."""
    methods = [cell.method for cell, _, _ in section.measured]
    same = methods[:number].count(methods[number])
    return f"-{same + 1}" if same else ""


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"
