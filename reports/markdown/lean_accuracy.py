"""Whether methods carried out lean learn what they learn plainly: runs of one seed, in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from clmem.harness.specs.techniques import LEAN, PLAIN
from clmem.reports.data.grouping import Cell, Section
from clmem.reports.data.units import Statistic, signed
from clmem.reports.markdown.tables import accuracy_text, markdown_table

METRICS = {"class_il_accuracy": "class-IL", "task_il_accuracy": "task-IL"}


def lean_accuracy_table(section: Section) -> str:
    """Return the accuracies of every method that learnt both plainly and lean; empty where none did."""
    rows = []
    for plain, lean in _pairs(section):
        row = [plain.label]
        for metric in METRICS:
            row += [
                accuracy_text(plain, metric),
                accuracy_text(lean, metric),
                _shown(_differences(plain, lean, metric)),
            ]
        rows.append(row)
    headers = [f"{name} % {what}" for name in METRICS.values() for what in ("plain", "lean", "lean - plain")]
    return markdown_table(["method", *headers], rows)


def lean_accuracy_sentence(section: Section) -> str:
    """Say how far lean runs lie from plain ones of the same method and seed, over all of them."""
    parts = []
    for metric, name in METRICS.items():
        every = [one for plain, lean in _pairs(section) for one in _differences(plain, lean, metric)]
        statistic = Statistic.of(every)
        if statistic is not None and statistic.deviation is not None:
            error = statistic.deviation / math.sqrt(statistic.n)
            near = "within" if abs(statistic.mean) <= 2 * error else "**more than**"
            parts.append(f"{name} {_shown(every)} points over {statistic.n} pairs, {near} two standard errors of zero")
    return f"Lean less plain, in pairs of one method and one seed: {'; '.join(parts)}." if parts else ""


def _pairs(section: Section) -> Iterator[tuple[Cell, Cell]]:
    """Yield a method's plain cell and its lean one, with equal settings, where both have accuracies."""
    by_settings: dict[tuple[object, ...], dict[str, Cell]] = {}
    for cell in section.cells:
        if cell.accuracy:
            spec = cell.accuracy[0].spec
            key = (spec.method, *sorted(map(str, spec.config.items())), cell.length)
            by_settings.setdefault(key, {})[spec.execution] = cell
    for found in by_settings.values():
        if PLAIN in found and LEAN in found:
            yield found[PLAIN], found[LEAN]


def _differences(plain: Cell, lean: Cell, metric: str) -> list[float]:
    one, other = (
        {run.spec.seed: run.metrics[metric] for run in cell.accuracy if metric in run.metrics} for cell in (plain, lean)
    )
    return [other[seed] - one[seed] for seed in sorted(one.keys() & other.keys())]


def _shown(differences: list[float]) -> str:
    statistic = Statistic.of(differences)
    if statistic is None:
        return ""
    if statistic.deviation is None:
        return signed(100 * statistic.mean, 1)
    return f"{signed(100 * statistic.mean, 1)} ± {100 * statistic.deviation / math.sqrt(statistic.n):.1f}"
