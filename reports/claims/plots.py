"""The two plots of a claim's page: the claimed ratio over batch sizes, and one row from the published cell to ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clmem.harness.text import file_name
from clmem.reports.claims.claim import Claim, Fix, FormulaLedger
from clmem.reports.claims.measurements import Measurements
from clmem.reports.claims.ratios_by_size import Line, batch_sizes, ratios_by_size
from clmem.reports.claims.tables import CHANGE, published_ratio, recomputed
from clmem.reports.data.executions import RELEASED
from clmem.reports.data.units import MIB, signed
from clmem.reports.plots.figures import new_figure, plot_style, save_figure
from clmem.reports.plots.section import LINE_COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED, CORRECTION, REST, MEASURED = "#56B4E9", "#E69F00", "#A0A0A0", "#0072B2"


def draw_claim(claim: Claim, by_target: Sequence[Measurements], folder: Path) -> list[tuple[str, str]]:
    """Draw every plot for which there are numbers into a folder (made if missing); return captions and file names."""
    drawn: list[tuple[str, str]] = []

    def draw(name: str, caption: str, figure: Figure) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(figure, folder / f"{name}.png")
        drawn.append((caption, name))

    with plot_style():
        for measurements in by_target:
            if drawn_lines(measurements):
                name = file_name(f"{claim.name}-{measurements.target}-ratio")
                draw(
                    name,
                    f"The claimed ratio over batch sizes, measured on {measurements.target}",
                    ratios_by_size_figure(measurements),
                )
            execution = waterfall_execution(measurements)
            if execution is not None:
                name = file_name(f"{claim.name}-{measurements.target}-waterfall")
                label = claim.row(claim.waterfall).label
                caption = f"{label}: from the published cell to what is measured on {measurements.target}, {execution}"
                draw(name, caption, waterfall_figure(measurements, execution))
    return drawn


def drawn_lines(measurements: Measurements) -> list[Line]:
    """Return the lines over the headline's smaller row of which two points are known."""
    smaller = measurements.claim.headline.smaller
    return [line for line in ratios_by_size(measurements) if line.smaller == smaller and len(line.known) > 1]


def ratios_by_size_figure(measurements: Measurements) -> Figure:
    """Return one panel per data set: the peak of each compared row over that of the headline's, over batch sizes."""
    claim = measurements.claim
    lines = drawn_lines(measurements)
    figure, panels = new_figure(9.0, 4.6, panels=len(claim.datasets))
    highest = max(ratio for line in lines for ratio in line.known.values())
    for axes, (name, dataset) in zip(panels, claim.datasets.items(), strict=True):
        for line in lines:
            if line.dataset != name:
                continue
            number = claim.against.index(line.larger)
            remembered = "a batch" if line.whole_batch else claim.conditions.replay_size
            row = claim.row(line.larger)
            axes.plot(
                list(line.known),
                list(line.known.values()),
                LINE_STYLES[int(line.whole_batch)],
                linewidth=1.2 + 0.65 * (len(claim.against) - 1 - number),  # lines on each other are seen
                marker="o",
                markersize=3.5 + 1.5 * (len(claim.against) - 1 - number),
                color=LINE_COLOURS[number % len(LINE_COLOURS)],
                label=f"{row.label} ({remembered} remembered)" if row.replays else row.label,
            )
        label = f"{claim.headline.word}: {claim.headline.value:g}x"
        axes.axhline(claim.headline.value, color="#444444", linewidth=0.9, linestyle=":", label=label)
        published = published_ratio(claim, claim.row(claim.headline.larger), claim.row(claim.headline.smaller), name)
        if published is not None:
            label = f"published: {claim.row(claim.headline.larger).label}"
            at = claim.conditions.batch_size
            axes.plot([at], [published], linestyle="none", marker="*", markersize=13, color="#222222", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batch_sizes(measurements), [str(batch) for batch in batch_sizes(measurements)])
        axes.minorticks_off()
        axes.set_ylim(0, 1.08 * max(highest, claim.headline.value))
        axes.set_title(dataset.title, fontsize=10.5)
        axes.set_xlabel("batch size")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    smaller = claim.row(claim.headline.smaller).label
    panels[0].set_ylabel(f"tensor peak / that of {smaller}\n(plain, measured on {measurements.target})")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=3, frameon=False)
    return figure


def waterfall_execution(measurements: Measurements) -> str | None:
    """Return the execution whose peak ends the waterfall: `released` where it is measured, else the first that is."""
    claim = measurements.claim
    names = sorted(claim.row(claim.waterfall).measured, key=lambda name: name != RELEASED)
    places = {name: measurements.place(claim.headline.dataset, claim.waterfall, name) for name in names}
    return next((name for name, place in places.items() if measurements.peak_bytes(place) is not None), None)


def waterfall_steps(measurements: Measurements, execution: str) -> list[tuple[str, float]]:
    """Return the published cell, what each correction adds after those before it, what is left, and the measured peak.

    In MB, on the headline's data set; the first and the last are totals, the others differences.
    """
    claim, dataset = measurements.claim, measurements.claim.headline.dataset
    row = claim.row(claim.waterfall)
    published, value, _ = recomputed(claim, row, "memory", dataset)
    total = value if published is None else published
    steps = [("published", total)]
    applied: list[Fix] = []
    for fix in claim.fixes:
        applied.append(fix)
        new = FormulaLedger(claim, dataset, tuple(applied)).value(row, "memory")
        if abs(new - total) > CHANGE:
            steps.append((fix.id, new - total))
            total = new
    measured = (measurements.peak_bytes(measurements.place(dataset, row.id, execution)) or 0) / MIB
    return [
        *steps,
        ("difference to measured", measured - total),
        (f"measured on {measurements.target}, {execution}", measured),
    ]


def waterfall_figure(measurements: Measurements, execution: str) -> Figure:
    """Return horizontal bars from the published cell over each correction to the measured peak, in MiB."""
    from matplotlib.patches import Rectangle

    claim = measurements.claim
    steps = waterfall_steps(measurements, execution)
    figure, (axes,) = new_figure(8.0, 1.2 + 0.42 * len(steps))
    left = 0.0
    last = len(steps) - 1
    for number, (_, size) in enumerate(steps):
        whole = number in (0, last)
        colour = {0: PUBLISHED, last: MEASURED, last - 1: REST}.get(number, CORRECTION)
        start = 0.0 if whole else left
        axes.barh(number, size, left=start, height=0.68, color=colour)
        end = max(start, start + size)
        axes.annotate(
            f"{size:.1f}" if whole else signed(size, 1), (end, number), (4, 0), textcoords="offset points", va="center"
        )
        if not whole:
            axes.plot([left, left], [number - 0.66, number - 0.34], color="#888888", linewidth=0.7)
        left = size if whole else left + size
    kind = claim.row(claim.waterfall).memory.kind
    names = [name for name, _ in steps]
    names[0] += f" (class {kind})" if kind else ""
    axes.set_yticks(range(len(steps)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * max(axes.get_xlim()[1], 1.0))
    axes.set_xlabel(f"{claim.row(claim.waterfall).label} on {claim.datasets[claim.headline.dataset].title} (MiB)")
    axes.tick_params(axis="y", length=0)
    kinds = {"published": PUBLISHED, "correction": CORRECTION, "difference": REST, "measured": MEASURED}
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in kinds.values()]
    figure.legend(handles, list(kinds), loc="outside upper left", ncols=4, frameon=False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return figure
