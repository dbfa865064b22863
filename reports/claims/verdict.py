"""What a reviewer can quote: sentences made from the numbers of a claim's page, never typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from reports.claims.claim import Claim, Row
from reports.claims.measured import Bench, Place
from reports.claims.tables import (
    batch_sizes,
    headline_ratio,
    recomputed,
    rival,
    smaller_rows,
    surface_ratio,
    within_tolerance,
)
from reports.units import mib, plural


def verdict(claim: Claim, benches: Sequence[Bench]) -> list[str]:
    """Return the sentences: what was claimed, what its own ledger gives, what was measured, where it is true."""
    sentences = [claimed(claim), like_for_like(claim), ledger(claim), corrected(claim), accuracy(claim)]
    for bench in benches:
        sentences += [measured(bench, name) for name in bench.executions]
        sentences += [across(bench), surface(bench), floor(bench)]
    if not benches:
        done = " and ".join(f"`clmem run {name}`" for name in claim.suites)
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
        f"Claimed: {headline.value:g}x. It is {one:g} MB ({larger.label}) over {other:g} MB ({smaller.label}) on "
        f"{claim.datasets[headline.dataset].title}; {claim.source}."
    )


def like_for_like(claim: Claim) -> str:
    """Say what the same table gives for the same pair on other data sets, and for pairs of equal sparsity."""
    headline = claim.headline
    smaller, larger = claim.row(headline.smaller), claim.row(headline.larger)
    parts = []
    for name, dataset in claim.datasets.items():
        ratio = _published_ratio(claim, larger, smaller, name)
        if name != headline.dataset and ratio is not None:
            parts.append(f"{ratio:.2f}x for the same pair on {dataset.title}")
    dense = [claim.row(name) for name in smaller_rows(claim) if claim.row(name).sparsity != smaller.sparsity]
    for row in dense:
        for rival_row in (claim.row(name) for name in claim.against):
            if rival_row.sparsity == row.sparsity:
                ratios = [(_published_ratio(claim, rival_row, row, name), name) for name in claim.datasets]
                shown = [f"{ratio:.2f}x on {claim.datasets[name].title}" for ratio, name in ratios if ratio is not None]
                parts.append(f"for {rival_row.label} over {row.label} {' and '.join(shown)}")
    return f"The same table gives {', '.join(parts)}." if parts else ""


def ledger(claim: Claim) -> str:
    """Say how many cells are recomputed from which class of formula."""
    memory, flops = within_tolerance(claim, "memory"), within_tolerance(claim, "flops")
    text = (
        f"The published ledger: {memory[0]} of {memory[1]} memory cells are recomputed within "
        f"{claim.tolerance.memory:g} MB and {flops[0]} of {flops[1]} FLOPs cells within "
        f"{100 * claim.tolerance.flops:g} %"
    )
    kinds = Counter(row.memory.kind for row in claim.rows for name in claim.datasets if name in row.published)
    parts = [f"{kinds[kind]} are {meaning} (class {kind})" for kind, meaning in claim.classes.items() if kinds[kind]]
    text += f". Of the memory cells {'; '.join(parts)}." if parts else "."
    kind = claim.row(claim.headline.smaller).memory.kind
    if kind and kind == list(claim.classes)[-1] and len(claim.classes) > 1:
        text += f" The headline's denominator is of class {kind}."
    return text


def corrected(claim: Claim) -> str:
    """Say what the headline becomes when everything that the ledger leaves out is counted."""
    if not claim.fixes:
        return ""
    ratios = {fix.id: headline_ratio(claim, [fix]) for fix in claim.fixes}
    before = headline_ratio(claim)
    moving = {name: ratio for name, ratio in ratios.items() if abs(ratio - before) >= 0.005}
    together = headline_ratio(claim, claim.fixes)
    text = f"With all {plural(len(claim.fixes), 'correction')} the same ledger gives {together:.2f}x"
    shown = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in moving.items())
    return f"{text}; alone, {shown}." if shown else f"{text}."


def accuracy(claim: Claim) -> str:
    """Say which compared rows learn better, by the claim's own accuracies, than the row that carries the headline."""
    smaller = claim.row(claim.headline.smaller)
    better = []
    for row in claim.rows:
        pairs = [(row.published.get(name), smaller.published.get(name)) for name in claim.datasets]
        known = [(one.class_il, own.class_il) for one, own in pairs if one and own and one.class_il and own.class_il]
        if row.id in claim.against and known and all(one[0] > own[0] for one, own in known):
            numbers = " and ".join(f"{one[0]:g}±{one[1]:g} to {own[0]:g}±{own[1]:g}" for one, own in known)
            better.append(f"{row.label} ({numbers})")
    datasets = " and ".join(shape.title for shape in claim.datasets.values())
    return (
        f"{smaller.label}, which carries the headline, is below {', '.join(better)} in published class-IL accuracy "
        f"on {datasets}, in percent."
        if better
        else ""
    )


def measured(bench: Bench, execution: str) -> str:
    """Say what the headline's two rows hold in one execution on every data set, and their ratio at both levels."""
    claim = bench.claim
    parts = []
    for name, dataset in claim.datasets.items():
        if execution not in claim.row(claim.headline.smaller).measured:
            continue
        smaller = bench.place(name, claim.headline.smaller, execution)
        larger = rival(bench, claim.headline.larger, smaller)
        ratio = bench.ratio(larger, smaller)
        if ratio is None:
            continue
        one, other = mib(bench.peak_bytes(larger)), mib(bench.peak_bytes(smaller))
        text = f"{one} and {other} MiB on {dataset.title}, {ratio:.2f}x"
        process = bench.ratio(larger, smaller, "process")
        parts.append(text if process is None else f"{text} ({process:.2f}x for the whole process)")
    if not parts:
        return f"Not measured on {bench.target}: the headline's rows in execution `{execution}`."
    larger_row, smaller_row = claim.row(claim.headline.larger), claim.row(claim.headline.smaller)
    return (
        f"Measured on {bench.target}, {execution}: {larger_row.label} and {smaller_row.label} hold {'; '.join(parts)}."
    )


def across(bench: Bench) -> str:
    """Say how far the headline's smaller row, carried out lean, is below others as they are run, and lean too."""
    claim = bench.claim
    smaller = claim.row(claim.headline.smaller)
    parts = []
    for name, dataset in claim.datasets.items():
        own = bench.place(name, smaller.id, "lean")
        ratios = []
        for row in map(claim.row, claim.against):
            usual = "released" if "released" in row.measured else "plain"
            found = [bench.ratio(bench.place(name, row.id, execution), own) for execution in (usual, "lean")]
            if None not in found:
                ratios.append(f"{row.label} {found[0]:.2f}x as it is run ({usual}) and {found[1]:.2f}x lean")
        if ratios:
            parts.append(f"on {dataset.title} ({mib(bench.peak_bytes(own))} MiB) {', '.join(ratios)}")
    if not parts:
        return ""
    text = f"{smaller.label} carried out lean is smaller than others: {'; '.join(parts)}."
    return f"{text} Of each two the second compares equals."


def surface(bench: Bench) -> str:
    """Say where, over batch sizes, data sets, replay sizes and rivals, the claimed ratio is reached."""
    claim = bench.claim
    value = claim.headline.value
    known = 0
    reached: dict[tuple[str, str, str, str], list[int]] = {}
    for name, dataset in claim.datasets.items():
        for smaller in smaller_rows(claim):
            for larger in claim.against:
                for whole in (False, True) if claim.row(larger).replays else (False,):
                    for batch in batch_sizes(bench):
                        ratio = surface_ratio(bench, name, larger, smaller, batch, whole)
                        if ratio is None:
                            continue
                        known += 1
                        if ratio >= value:
                            how = "replaying a batch" if whole else ""
                            key = (claim.row(larger).label, claim.row(smaller).label, dataset.title, how)
                            reached.setdefault(key, []).append(batch)
    if not known:
        return f"Not measured on {bench.target}: any ratio over batch sizes."
    total = sum(map(len, reached.values()))
    text = f"On {bench.target} {value:g}x is reached in {total} of {known} measured combinations"
    text += " of rows, data set, batch and replay size"
    shown = [
        f"{' or '.join(larger)} over {' or '.join(smaller)} on {dataset}{f' {how}' if how else ''} at batch "
        f"{', '.join(map(str, batches))}"
        for larger, smaller, dataset, how, batches in _together(reached)
    ]
    return f"{text}: {'; '.join(shown)}." if shown else f"{text}."


def _together(
    reached: Mapping[tuple[str, str, str, str], list[int]],
) -> Iterator[tuple[list[str], list[str], str, str, list[int]]]:
    """Yield larger rows, smaller rows, data set, replay and batches: rows with the same batches together."""
    by_smaller: dict[tuple[str, str, tuple[int, ...]], dict[str, list[str]]] = {}
    for (label, smaller, dataset, how), found in reached.items():
        by_smaller.setdefault((dataset, how, tuple(found)), {}).setdefault(smaller, []).append(label)
    for (dataset, how, batches), rows in by_smaller.items():
        merged: dict[tuple[str, ...], list[str]] = {}
        for smaller, larger in rows.items():
            merged.setdefault(tuple(larger), []).append(smaller)
        for larger_labels, smaller_labels in merged.items():
            yield list(larger_labels), smaller_labels, dataset, how, list(batches)


def floor(bench: Bench) -> str:
    """Say how far below the first compared row any method can be that keeps all of the network's weights."""
    claim = bench.claim
    row = claim.row(claim.against[0])
    parts = []
    for name, dataset in claim.datasets.items():
        place: Place = bench.place(name, row.id, "plain")
        run = bench.runs.get(place)
        peak = bench.peak_bytes(place)
        if run is None or run.footprint is None or peak is None:
            continue
        weights = run.footprint.at_peak.get("parameters", 0)
        parts.append(f"{peak / weights:.2f}x below {row.label} on {dataset.title} ({mib(weights)} of {mib(peak)} MiB)")
    return f"A method that keeps every weight in float32 can be at most {' and '.join(parts)}." if parts else ""


def _published(claim: Claim, row: Row, dataset: str) -> float | None:
    return recomputed(claim, row, "memory", dataset)[0]


def _published_ratio(claim: Claim, larger: Row, smaller: Row, dataset: str) -> float | None:
    one, other = _published(claim, larger, dataset), _published(claim, smaller, dataset)
    return None if one is None or other is None else one / other
