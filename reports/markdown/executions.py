"""One method carried out in several ways: its bytes in each, and what lean execution leaves of the plain peak."""

from __future__ import annotations

from clmem.reports.data.executions import executions_of
from clmem.reports.data.grouping import Section
from clmem.reports.data.units import count, mib, share
from clmem.reports.markdown.markup import plain
from clmem.reports.markdown.tables import markdown_table, shown_roles


def execution_table(section: Section) -> str:
    """Return bytes by role at the peak in MiB for every method and execution; empty where all ran in one way only."""
    rows, found = [], executions_of(section)
    shown = shown_roles(way.footprint for executions in found for way in executions.ways)
    for executions in found:
        plain = executions.plain
        for way in executions.ways:
            roles = [mib(way.footprint.at_peak.get(role, 0)) for role in shown]
            part = "" if plain is None else share(way.peak_bytes, plain.peak_bytes)
            rows.append([executions.label, way.added, *roles, mib(way.peak_bytes), count(way.peak_bytes), part])
    return markdown_table(["method", "execution", *shown, "total MiB", "total bytes", "of plain"], rows, left=2)


def execution_sentence(section: Section) -> str:
    """Say how far lean execution reduces the tensor peak, where it gains least and where most."""
    known = [
        (executions.lean.peak_bytes / executions.plain.peak_bytes, executions.label)
        for executions in executions_of(section)
        if executions.lean is not None and executions.plain is not None and executions.plain.peak_bytes
    ]
    if not known:
        return "No method was measured both plainly and lean."
    (least, most) = max(known), min(known)
    if least == most:
        return f"Lean, {plain(most[1])} holds {100 * most[0]:.0f} % of its plain peak."
    return (
        f"Lean, a method holds between {100 * most[0]:.0f} % ({plain(most[1])}) and "
        f"{100 * least[0]:.0f} % ({plain(least[1])}) of its plain peak."
    )
