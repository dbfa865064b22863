"""Putting text into plots so that no label covers another, or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

POINT_RADIUS = 5.0
"""Half the size of a point with some air around it, in typographic points."""
NEAR = 12.0
"""A label no further than this from its point, in typographic points, needs no line to it."""


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return positions (0..1, rising) moved as little as a simple pass can so that neighbours are `gap` apart.

    Where they cannot all fit between 0 and 1 the gap shrinks evenly.
    """
    if len(positions) < 2:
        return list(positions)
    gap = min(gap, 1.0 / (len(positions) - 1))
    moved = [max(0.0, positions[0])]
    for position in positions[1:]:
        moved.append(max(position, moved[-1] + gap))
    # what was pushed beyond the end comes back, pushing the ones before it
    limit = 1.0
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def place_labels(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    errors: Sequence[float],
    labels: Sequence[str],
    spans: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Label points (data coordinates, error bars of +-errors), each where it covers the least, nearest first.

    spans: level lines to keep free as well, each from one x to another (rising) at a y. Labels that end up away from
    their point get a thin line to it. Call it after limits and sizes are final.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    pixels = figure.dpi / 72.0
    frame = axes.get_window_extent()
    taken: list[Bbox] = []
    for across, up, error in zip(x, y, errors, strict=True):
        low, high = axes.transData.transform([(across, up - error), (across, up + error)])
        radius = POINT_RADIUS * pixels
        taken.append(Bbox.from_extents(low[0] - radius, low[1] - radius, high[0] + radius, high[1] + radius))
    for start, end, up in spans:
        (left, level), (right, _) = axes.transData.transform([(start, up), (end, up)])
        radius = POINT_RADIUS * pixels
        taken.append(Bbox.from_extents(left - radius, level - radius, right + radius, level + radius))
    for across, up, label in zip(x, y, labels, strict=True):
        text = axes.annotate(label, (across, up), (0, 0), textcoords="offset points", fontsize=9, linespacing=0.95)
        size = text.get_window_extent()
        anchor = axes.transData.transform((across, up))
        best: tuple[float, float, tuple[float, float], Bbox] | None = None
        for distance, offset in _candidates(size.width / pixels, size.height / pixels):
            left, bottom = anchor[0] + offset[0] * pixels, anchor[1] + offset[1] * pixels
            box = Bbox.from_bounds(left, bottom, size.width, size.height)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, frame)
            if best is None or cost < best[0]:
                best = (cost, distance, offset, box)
            if cost == 0.0:
                break
        assert best is not None
        _, distance, (left, bottom), box = best
        text.set_position((left, bottom))
        taken.append(box.padded(1.5 * pixels))
        if distance > NEAR:
            centre = (left + size.width / pixels / 2, bottom + size.height / pixels / 2)
            arrow = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.7, "shrinkB": 4}
            axes.annotate("", (across, up), centre, textcoords="offset points", arrowprops=arrow, zorder=1)


def _candidates(width: float, height: float) -> list[tuple[float, tuple[float, float]]]:
    """Return (distance, offset of the text's lower left corner) in points, the nearest first, right side preferred."""
    found = []
    for distance in (8.0, 11.0, 16.0, 24.0, 34.0, 46.0, 60.0):
        for degrees in (0, 30, -30, 180, 150, -150, 60, -60, 120, -120, 90, -90):
            dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            left = distance * dx + (0 if dx > 0.3 else -width if dx < -0.3 else -width / 2)
            bottom = distance * dy + (0 if dy > 0.3 else -height if dy < -0.3 else -height / 2)
            found.append((distance, (left, bottom)))
    return found


def _overlap(one: Bbox, other: Bbox) -> float:
    """Return the area two boxes share, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))


def _outside(box: Bbox, frame: Bbox) -> float:
    """Return the area of a box that lies outside the frame, in square pixels."""
    return box.width * box.height - _overlap(box, frame)
