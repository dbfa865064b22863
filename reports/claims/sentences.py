"""What a reviewer can quote: sentences made from the numbers of a claim's page, never typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clmem.reports.claims import measured_sentences as found
from clmem.reports.claims.claim import Claim, Fix, Quantity, Row
from clmem.reports.claims.measurements import Measurements
from clmem.reports.claims.ratios_by_size import ratios_by_size_sentences, smaller_rows
from clmem.reports.claims.tables import headline_ratio, published_ratio, recomputed, within_tolerance
from clmem.reports.data.units import listed, plural


def verdict(claim: Claim, by_target: Sequence[Measurements], fixes: Sequence[Fix] = ()) -> list[str]:
    """Return the sentences: what was claimed, what its own arithmetic gives, what was measured, where it is true.

    fixes: corrections of the arithmetic that are applied together; all of them when none is given.
    """
    sentences = [
        text
        for measurements in by_target
        if (point := found.own_point(measurements))
        for text in (point, found.words(measurements))
    ]
    sentences += [claimed(claim), same_table(claim), accuracy(claim), ledger(claim), corrected(claim, fixes)]
    carrier = claim.row(claim.headline.smaller)
    for measurements in by_target:
        sentences += [
            *(found.measured(measurements, name) for name in measurements.executions_of(carrier)),
            found.across(measurements),
            *ratios_by_size_sentences(measurements),
            found.floor(measurements),
            found.flops(measurements),
            *found.learning(measurements),
        ]
    if not by_target:
        done = listed([f"`clmem run {name}`" for name in claim.suites])
        sentences.append(f"Nothing of this is measured here yet; {done} will do it.")
    return [sentence for sentence in sentences if sentence]


def claimed(claim: Claim) -> str:
    """Say what the headline divides, and that it was not measured where its source says so."""
    headline = claim.headline
    larger, smaller = claim.row(headline.larger), claim.row(headline.smaller)
    one, other = (_published(claim, row, headline.dataset) for row in (larger, smaller))
    if one is None or other is None:
        return ""
    return (
        f"{headline.value:g}x is {one:g} MB ({larger.label}) over {other:g} MB ({smaller.label}) on "
        f"{claim.datasets[headline.dataset].title}; {claim.source}."
    )


def same_table(claim: Claim) -> str:
    """Say what the same table gives elsewhere: the same pair on other data, pairs of equal sparsity, the extremes."""
    headline = claim.headline
    smaller, larger = claim.row(headline.smaller), claim.row(headline.larger)
    parts = []
    for name, dataset in claim.datasets.items():
        ratio = published_ratio(claim, larger, smaller, name)
        if name != headline.dataset and ratio is not None:
            parts.append(f"{ratio:.2f}x for the same pair on {dataset.title}")
    dense = [claim.row(name) for name in smaller_rows(claim) if claim.row(name).sparsity != smaller.sparsity]
    for row in dense:
        for rival_row in (claim.row(name) for name in claim.against):
            if rival_row.sparsity == row.sparsity:
                ratios = [(published_ratio(claim, rival_row, row, name), name) for name in claim.datasets]
                shown = [f"{ratio:.2f}x on {claim.datasets[name].title}" for ratio, name in ratios if ratio is not None]
                parts.append(f"for {rival_row.label} over {row.label} {' and '.join(shown)}")
    text = f"The same table gives {', '.join(parts)}." if parts else ""
    compared = _published_range(claim, [claim.row(name) for name in claim.against if name != smaller.id])
    if compared:
        labels = listed([claim.row(name).label for name in claim.against if name != smaller.id])
        text += f" Over {smaller.label} its cells of {labels} give {_range(compared)}"
        rest = _published_range(
            claim, [row for row in claim.rows if row.id not in claim.against and row.id != smaller.id]
        )
        text += f", those of the other rows {_range(rest)}." if rest else "."
        if max(compared + rest)[0] > headline.value + 0.005:
            text += f" {headline.value:g}x is not the table's largest."
    return text.strip()


def _range(ratios: Sequence[tuple[float, str]]) -> str:
    (low, first), (high, last) = ratios[0], ratios[-1]
    return f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{first} to {last}"


def _published_range(claim: Claim, rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Return the ratios of some rows over the headline's smaller row, each with its words, the smallest first."""
    smaller = claim.row(claim.headline.smaller)
    found = [
        (ratio, f"{ratio:.2f}x ({row.label} on {shape.title})")
        for row in rows
        for dataset, shape in claim.datasets.items()
        if (ratio := published_ratio(claim, row, smaller, dataset)) is not None
    ]
    return sorted(found)


def accuracy(claim: Claim) -> str:
    """Say how the headline's rows learn by the claim's own accuracies, and which other rows learn better."""
    smaller, larger = claim.row(claim.headline.smaller), claim.row(claim.headline.larger)
    rivals = [row for row in claim.rows if row.id != smaller.id]
    pairs, better = [], []
    for metric, kind in (("class_il", "class-IL"), ("task_il", "task-IL")):
        for one, own, title in _accuracies(claim, larger, smaller, metric):
            pairs.append(f"{kind} {_percent(one)} against {_percent(own)} on {title}")
            above = [
                f"{row.label} ({_percent(theirs)})"
                for row in rivals
                for theirs, _, where in _accuracies(claim, row, smaller, metric)
                if where == title and theirs[0] > own[0]
            ]
            better.append(f"{kind} on {title} {listed(above) if above else 'none'}")
    if not pairs:
        return ""
    return (
        f"Published accuracy of {larger.label} against {smaller.label}, in percent: {'; '.join(pairs)}. Of all other "
        f"rows those better than {smaller.label} on average are: {'; '.join(better)}."
    )


def ledger(claim: Claim) -> str:
    """Say how many cells are recomputed from which class of formula."""
    memory, flops = within_tolerance(claim, "memory"), within_tolerance(claim, "flops")
    counts = {"memory cells": _kinds(claim, "memory"), "FLOPs cells": _kinds(claim, "flops")}
    parts = []
    for kind, meaning in claim.classes.items():
        cells = listed([f"{count[kind]} {what}" for what, count in counts.items() if count[kind]])
        parts.append(f"{cells} {meaning} (class {kind})")
    text = (
        f"The paper's own arithmetic: {memory[0]} of {memory[1]} memory cells are recomputed within "
        f"{claim.tolerance.memory:g} MB and {flops[0]} of {flops[1]} FLOPs cells within "
        f"{100 * claim.tolerance.flops:g} %. {'; '.join(parts)}."
    )
    kind = claim.row(claim.headline.smaller).memory.kind
    if kind and kind == list(claim.classes)[-1] and len(claim.classes) > 1:
        text += f" The headline's denominator is of class {kind}."
    return text


def _kinds(claim: Claim, quantity: Quantity) -> Counter[str]:
    """Count the published cells of one quantity by class."""
    return Counter(row.formula(quantity).kind for row in claim.rows for name in claim.datasets if name in row.published)


def corrected(claim: Claim, chosen: Sequence[Fix] = ()) -> str:
    """Say what the headline becomes when what the arithmetic leaves out is counted: all of it, or what is chosen."""
    if not claim.fixes:
        return ""
    chosen = list(chosen) or claim.fixes
    before, together = headline_ratio(claim), headline_ratio(claim, chosen)
    named = plural(len(chosen), "correction")
    named = f"all {named}" if len(chosen) == len(claim.fixes) else f"{named} ({', '.join(fix.id for fix in chosen)})"
    text = f"With {named} the recomputed {before:.2f}x becomes {together:.2f}x."
    if len(chosen) == 1:
        return text
    alone = {fix.id: headline_ratio(claim, [fix]) for fix in chosen}
    moving = {name: ratio for name, ratio in alone.items() if abs(ratio - before) >= 0.005}
    shown = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in moving.items())
    text += f" With one alone it becomes: {shown}." if shown else ""
    rest = len(chosen) - len(moving)
    if not (shown and rest):
        return text
    others = "The other one" if rest == 1 else f"Each of the other {rest}"
    return f"{text} {others} alone changes it by less than 0.01x."


def _accuracies(
    claim: Claim, row: Row, other: Row, metric: str
) -> list[tuple[tuple[float, float], tuple[float, float], str]]:
    """Return (accuracy and deviation of each row, the data set's title) where both are published."""
    found = []
    for name, shape in claim.datasets.items():
        first, second = (getattr(one.published.get(name), metric, None) for one in (row, other))
        if first is not None and second is not None:
            found.append((first, second, shape.title))
    return found


def _percent(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f}±{value[1]:.2f}"


def _published(claim: Claim, row: Row, dataset: str) -> float | None:
    return recomputed(claim, row, "memory", dataset)[0]
