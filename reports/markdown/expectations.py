"""What the field expects of these methods, each statement held against the section's own numbers.

A statement that does not hold is printed like one that does: it is a finding, or a fault, and the reader decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clmem.reports.data.grouping import Cell, Section
from clmem.reports.data.units import Statistic, mib, plural, signed
from clmem.reports.markdown.markup import Markdown
from clmem.reports.markdown.tables import markdown_table

SHARE_MARGIN = 0.05
"""How far, as a fraction, an accuracy may lie from one task's share and still be about it."""

FEWEST_SEEDS = 3
"""Paired seeds without which two methods are not compared."""

PROCESSOR = ("device", "vectors")
"""What of an environment says on which processor a run learnt: on another one sums round in another order."""

Found = tuple[str, bool | None]
"""The numbers as text, and whether they are as expected; None where the seeds cannot tell."""
OUTCOMES = {True: "holds", False: Markdown("**does not hold**"), None: "not shown"}


@dataclass(frozen=True)
class Statement:
    """An expectation of some methods. check: their cells -> what was found, None where something is not measured."""

    text: str
    methods: tuple[str, ...]
    check: Callable[..., Found | None]


def expectations_table(section: Section) -> str:
    """Return one row per statement that the section can tell about; empty when there is none."""
    rows = [[text, found, OUTCOMES[holds]] for text, found, holds in _findings(section)]
    return markdown_table(["expected", "found", ""], rows, left=3)


def expectations_sentence(section: Section) -> str:
    """Say how many of the statements hold, and how many these numbers neither show nor refute."""
    outcomes = [holds for _, _, holds in _findings(section)]
    if not outcomes:
        return ""
    number = outcomes.count(True)
    text = f"{number} of {plural(len(outcomes), 'expectation')} {'holds' if number == 1 else 'hold'}."
    open_ = outcomes.count(None)
    if not open_:
        return text
    return (
        f"{text} {open_} {'is' if open_ == 1 else 'are'} not shown, because the difference over paired seeds is within "
        f"two standard errors of zero, or because there are fewer than {FEWEST_SEEDS} seeds."
    )


def _findings(section: Section) -> Iterator[tuple[str, str, bool | None]]:
    by_method: dict[str, list[Cell]] = {}
    for cell in (cell for cell in section.cells if cell.is_plain):  # of methods, not of how they are carried out
        by_method.setdefault(cell.method, []).append(cell)
    single = {method: cells[0] for method, cells in by_method.items() if len(cells) == 1}
    for statement in STATEMENTS:
        if all(method in single for method in statement.methods):
            found = statement.check(*(single[method] for method in statement.methods))
            if found is not None:
                yield statement.text, *found
    if "joint" in single:
        for scenario, name in (("class_il", "class-IL"), ("task_il", "task-IL")):
            found = _best(single["joint"], section, f"{scenario}_accuracy")
            if found is not None:
                yield f"joint has the highest accuracy, {name}", *found


def _best(joint: Cell, section: Section, metric: str) -> Found | None:
    own = joint.metric(metric)
    others = [(value, cell) for cell in section.cells if cell is not joint and (value := cell.metric(metric))]
    if own is None or not others:
        return None
    best, cell = max(others, key=lambda other: other[0].mean)
    difference, larger = _difference(joint, cell, metric)
    return f"{own.percent()} %, next {cell.label} {best.percent()} %{difference}", larger


def _difference(one: Cell, other: Cell, metric: str) -> tuple[str, bool | None]:
    """Return by how much the one's metric is larger, as text, and whether it is.

    Runs of one seed share stream and first weights, so differences are taken seed by seed: their mean, its standard
    error, and how many pairs learnt on two processors. None where the mean is within two standard errors of zero, and
    where fewer than three seeds can say.
    """
    first, second = ({run.spec.seed: run for run in cell.accuracy if metric in run.metrics} for cell in (one, other))
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    statistic = Statistic.of([mine.metrics[metric] - theirs.metrics[metric] for mine, theirs in pairs])
    if statistic is None or statistic.deviation is None:
        return "", None
    error = statistic.deviation / math.sqrt(statistic.n)
    apart = sum(
        any(mine.environment.get(key) != theirs.environment.get(key) for key in PROCESSOR) for mine, theirs in pairs
    )
    where = f", {apart} of them on two processors" if apart else ""
    text = f" ({signed(100 * statistic.mean, 1)} ± {100 * error:.1f} over {statistic.n} seeds{where})"
    shown = statistic.n >= FEWEST_SEEDS and abs(statistic.mean) > 2 * error
    return text, statistic.mean > 0 if shown else None


def _compared(metric: str, larger: bool) -> Callable[[Cell, Cell], Found | None]:
    """Expect the first cell's metric to be larger, or smaller, than the second's."""

    def check(one: Cell, other: Cell) -> Found | None:
        first, second = one.metric(metric), other.metric(metric)
        if first is None or second is None:
            return None
        difference, is_larger = _difference(one, other, metric)
        holds = is_larger if is_larger is None else is_larger == larger
        return f"{first.percent()} % and {second.percent()} %{difference}", holds

    return check


def _clearly_above(one: Cell, other: Cell) -> Found | None:
    first, second = one.metric("class_il_accuracy"), other.metric("class_il_accuracy")
    if first is None or second is None or first.deviation is None or second.deviation is None:
        return None  # one seed says nothing about "clearly"
    clear = first.mean - second.mean > first.deviation + second.deviation
    return f"{first.percent()} % and {second.percent()} %", clear


def _one_tasks_share(cell: Cell) -> Found | None:
    accuracy = cell.metric("class_il_accuracy")
    if accuracy is None:
        return None
    matrix = next(run.accuracy.class_il for run in cell.accuracy if run.accuracy and run.accuracy.class_il)
    share = 1 / len(matrix[0])
    return f"{accuracy.percent()} %, the share is {100 * share:.0f} %", abs(accuracy.mean - share) <= SHARE_MARGIN


def _forgets_nothing(cell: Cell) -> Found | None:
    lost = [run.metrics.get("task_il_forgetting_first") for run in cell.accuracy]
    known = [value for value in lost if value is not None]
    if not known:
        return None
    return f"{Statistic.of(known).percent()} %", not any(known)  # type: ignore[union-attr]


def _falling_peaks(*cells: Cell) -> Found | None:
    peaks = [cell.later_peak_bytes for cell in cells]
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return None
    shown = [mib(peak) for peak in known]
    text = f"{', '.join(shown)} MiB"
    if len(set(shown)) < len(shown):  # what is rounded away decides
        text = f"{', '.join(f'{peak:,}' for peak in known)} B"
    return text, known == sorted(set(known), reverse=True)


def _sgd_and_buffer(fdr: Cell, sgd: Cell) -> Found | None:
    if fdr.memory is None or fdr.memory.footprint is None or sgd.tensor_peak_bytes is None:
        return None
    spec = fdr.memory.spec
    if spec.replay_size >= spec.batch_size:  # then its second step, on as many replayed images, is the larger one
        return None
    difference = (fdr.tensor_peak_bytes or 0) - sgd.tensor_peak_bytes
    held = fdr.memory.footprint.at_peak.get("replay", 0)
    return f"{difference:,} B more, of which {held:,} B replay", difference == held


STATEMENTS = (
    Statement("derpp holds more than er, er more than sgd", ("derpp", "er", "sgd"), _falling_peaks),
    Statement("sgd holds more than lightcl with its trunk frozen", ("sgd", "lightcl"), _falling_peaks),
    Statement("lightcl's regulariser costs memory: more than tail-sgd", ("lightcl", "tail-sgd"), _falling_peaks),
    Statement("masks cost memory: lightcl-sparse more than lightcl", ("lightcl-sparse", "lightcl"), _falling_peaks),
    Statement("masks cost memory: sparcl-er more than er", ("sparcl-er", "er"), _falling_peaks),
    Statement("fdr's peak is sgd's plus its buffer", ("fdr", "sgd"), _sgd_and_buffer),
    Statement("sgd's class-IL accuracy is about one task's share (5 points)", ("sgd",), _one_tasks_share),
    Statement(
        "er clearly above sgd, class-IL (by more than both deviations)",
        ("er", "sgd"),
        _clearly_above,
    ),
    Statement(
        "derpp clearly above sgd, class-IL (by more than both deviations)",
        ("derpp", "sgd"),
        _clearly_above,
    ),
    Statement("ewc above sgd, task-IL", ("ewc", "sgd"), _compared("task_il_accuracy", larger=True)),
    Statement("pnn forgets nothing at all, task-IL", ("pnn",), _forgets_nothing),
    Statement(
        "lightcl forgets less than tail-sgd, task-IL",
        ("lightcl", "tail-sgd"),
        _compared("task_il_forgetting_max_previous", larger=False),
    ),
)
