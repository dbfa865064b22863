"""What a reviewer can quote: sentences made from the numbers of a claim's page, never typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.techniques import PLAIN
from reports.claims.claim import Claim, Row
from reports.claims.measured import Bench, Place
from reports.claims.surface import smaller_rows, surface_sentences
from reports.claims.tables import flops_ratio, headline_ratio, recomputed, rival, within_tolerance
from reports.units import mib, plural


def verdict(claim: Claim, benches: Sequence[Bench]) -> list[str]:
    """Return the sentences: what was claimed, what its own ledger gives, what was measured, where it is true."""
    sentences = [claimed(claim), same_table(claim), accuracy(claim), ledger(claim), corrected(claim)]
    carrier = claim.row(claim.headline.smaller)
    for bench in benches:
        sentences += [
            own_point(bench),
            *(measured(bench, name) for name in bench.executions_of(carrier)),
            across(bench),
        ]
        sentences += [*surface_sentences(bench), floor(bench), flops(bench)]
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


def same_table(claim: Claim) -> str:
    """Say what the same table gives elsewhere: the same pair on other data, pairs of equal sparsity, the extremes."""
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
    text = f"The same table gives {', '.join(parts)}." if parts else ""
    found = [
        (ratio, f"{ratio:.2f}x ({claim.row(name).label} on {shape.title})")
        for name in claim.against
        for dataset, shape in claim.datasets.items()
        if name != smaller.id and (ratio := _published_ratio(claim, claim.row(name), smaller, dataset)) is not None
    ]
    if len(found) > 1:
        text += f" Its ratios over {smaller.label} go from {min(found)[1]} to {max(found)[1]}."
    return text.strip()


def accuracy(claim: Claim) -> str:
    """Say how the headline's rows learn by the claim's own accuracies, and which compared rows learn better."""
    smaller, larger = claim.row(claim.headline.smaller), claim.row(claim.headline.larger)
    text = ""
    for metric, name in (("class_il", "class-IL"), ("task_il", "task-IL")):
        pairs = _accuracies(claim, larger, smaller, metric)
        if pairs:
            shown = [f"{_percent(one)} against {_percent(own)} on {title}" for one, own, title in pairs]
            text += f"{';' if text else ''} {name} {' and '.join(shown)}"
    if not text:
        return ""
    text = f"Published accuracy of {larger.label} against {smaller.label}, in percent:{text}."
    better = []
    for row in map(claim.row, claim.against):
        known = _accuracies(claim, row, smaller, "class_il")
        if row.id != larger.id and known and all(one[0] > own[0] for one, own, _ in known):
            better.append(f"{row.label} ({' and '.join(_percent(one) for one, _, _ in known)})")
    if better:
        where = " and ".join(shape.title for shape in claim.datasets.values())
        text += f" On {where} class-IL of {', '.join(better)} is above that of {smaller.label}."
    return f"{text} No accuracy is measured under the claim's conditions."


def ledger(claim: Claim) -> str:
    """Say how many cells are recomputed from which class of formula."""
    memory, flops = within_tolerance(claim, "memory"), within_tolerance(claim, "flops")
    text = (
        f"The published ledger: {memory[0]} of {memory[1]} memory cells are recomputed within "
        f"{claim.tolerance.memory:g} MB and {flops[0]} of {flops[1]} FLOPs cells within "
        f"{100 * claim.tolerance.flops:g} %"
    )
    kinds = Counter(row.memory.kind for row in claim.rows for name in claim.datasets if name in row.published)
    parts = [f"{kinds[kind]} {meaning} (class {kind})" for kind, meaning in claim.classes.items() if kinds[kind]]
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
    text = f"With all {plural(len(claim.fixes), 'correction')} the recomputed {before:.2f}x becomes {together:.2f}x"
    shown = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in moving.items())
    return f"{text}; with one alone, {shown}." if shown else f"{text}."


def own_point(bench: Bench) -> str:
    """Say what the claimed ratio is measured as under the claim's own conditions, in every execution."""
    claim, headline = bench.claim, bench.claim.headline
    larger, smaller = claim.row(headline.larger), claim.row(headline.smaller)
    parts = []
    for name in bench.executions_of(smaller):
        place = bench.place(headline.dataset, smaller.id, name)
        ratio = bench.ratio(rival(bench, larger.id, place), place)
        if ratio is not None:
            parts.append(f"{ratio:.2f}x {name}")
    conditions = claim.conditions
    return (
        f"Measured on {bench.target} at the claim's own point ({claim.datasets[headline.dataset].title}, batch "
        f"{conditions.batch_size}, {conditions.replay_size} remembered): {larger.label} over {smaller.label}, claimed "
        f"{headline.value:g}x, is {', '.join(parts)}."
        if parts
        else ""
    )


def measured(bench: Bench, execution: str) -> str:
    """Say what the headline's two rows hold in one execution on every data set, and their ratio at both levels."""
    claim = bench.claim
    parts = []
    for name, dataset in claim.datasets.items():
        smaller = bench.place(name, claim.headline.smaller, execution)
        larger = rival(bench, claim.headline.larger, smaller)
        ratio = bench.ratio(larger, smaller)
        if ratio is None:
            continue
        one, other = mib(bench.peak_bytes(larger)), mib(bench.peak_bytes(smaller))
        as_run = "" if larger.execution == execution else f" ({larger.execution})"
        text = f"{one}{as_run} and {other} MiB on {dataset.title}, {ratio:.2f}x"
        process = bench.ratio(larger, smaller, "process")
        parts.append(text if process is None else f"{text} ({process:.2f}x for the whole process)")
    if not parts:
        return f"Not measured on {bench.target}: the headline's rows in execution `{execution}`."
    larger_row, smaller_row = claim.row(claim.headline.larger), claim.row(claim.headline.smaller)
    return (
        f"Measured on {bench.target}, {execution}: {larger_row.label} and {smaller_row.label} hold {'; '.join(parts)}."
    )


def across(bench: Bench) -> str:
    """Say what others' peaks, as run and lean, are over that of the headline's smaller row carried out lean."""
    claim = bench.claim
    smaller = claim.row(claim.headline.smaller)
    parts = []
    for name, dataset in claim.datasets.items():
        own = bench.place(name, smaller.id, "lean")
        ratios = []
        for row in map(claim.row, claim.against):
            usual = "released" if "released" in row.measured else PLAIN
            found = [bench.ratio(bench.place(name, row.id, execution), own) for execution in (usual, "lean")]
            if None not in found:
                ratios.append(f"{row.label} {found[0]:.2f}x {usual} and {found[1]:.2f}x lean")
        if ratios:
            parts.append(f"on {dataset.title} ({mib(bench.peak_bytes(own))} MiB) {', '.join(ratios)}")
    if not parts:
        return ""
    text = f"Peaks of others over that of {smaller.label} carried out lean: {'; '.join(parts)}."
    return f"{text} Of each two ratios only the second has both rows carried out lean."


def floor(bench: Bench) -> str:
    """Say how far below the first compared row any method can be that keeps all of the network's weights."""
    claim = bench.claim
    row = claim.row(claim.against[0])
    parts = []
    for name, dataset in claim.datasets.items():
        place: Place = bench.place(name, row.id, PLAIN)
        run = bench.runs.get(place)
        peak = bench.peak_bytes(place)
        if run is None or run.footprint is None or peak is None:
            continue
        weights = run.footprint.at_peak.get("parameters", 0)
        parts.append(f"{peak / weights:.2f}x below {row.label} on {dataset.title} ({mib(weights)} of {mib(peak)} MiB)")
    return f"A method that keeps every weight in float32 can be at most {' and '.join(parts)}." if parts else ""


def flops(bench: Bench) -> str:
    """Say what the headline's rows cost by the published FLOPs and by those that were counted, over the first row's."""
    claim = bench.claim
    first = claim.row(claim.against[0])
    parts = []
    for row in (claim.row(claim.headline.larger), claim.row(claim.headline.smaller)):
        published, _ = flops_ratio(bench, claim.headline.dataset, row, PLAIN)
        counted = [
            f"{ratio:.2f} {name}"
            for name in bench.executions_of(row)
            if (ratio := flops_ratio(bench, claim.headline.dataset, row, name)[1]) is not None
        ]
        if published is not None and counted:
            parts.append(f"{row.label} {published:.2f} (counted in a step: {', '.join(counted)})")
    title = claim.datasets[claim.headline.dataset].title
    return f"Published FLOPs on {title}, over those of {first.label}: {' and '.join(parts)}." if parts else ""


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


def _published_ratio(claim: Claim, larger: Row, smaller: Row, dataset: str) -> float | None:
    one, other = _published(claim, larger, dataset), _published(claim, smaller, dataset)
    return None if one is None or other is None else one / other
