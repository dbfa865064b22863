"""What a reviewer can quote: sentences made from the numbers of a claim's page, never typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.techniques import LEAN, PLAIN
from reports.claims.claim import Claim, Row
from reports.claims.measured import Bench, Place
from reports.claims.surface import smaller_rows, surface_sentences
from reports.claims.tables import flops_ratio, headline_ratio, recomputed, rival, within_tolerance
from reports.units import MIB, mib, plural

MEANINGS = {
    "released": "our implementation, holding what the authors' code holds",
    PLAIN: "the same steps as PyTorch carries them out",
    LEAN: "the same steps in less memory and less than twice the time, in neither paper (pruned channels removed or "
    "open weights stored alone, activations computed again, gradients applied as they appear; building the network, "
    "which is dense then, comes before)",
    "from-scratch": "plain, with a trunk that is trained in the first task, not pretrained",
}


def verdict(claim: Claim, benches: Sequence[Bench]) -> list[str]:
    """Return the sentences: what was claimed, what its own ledger gives, what was measured, where it is true."""
    sentences = [own_point(bench) for bench in benches]
    sentences += [claimed(claim), same_table(claim), accuracy(claim), ledger(claim), corrected(claim)]
    carrier = claim.row(claim.headline.smaller)
    for bench in benches:
        sentences += [
            words(bench),
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
    compared = _published_range(claim, [claim.row(name) for name in claim.against if name != smaller.id])
    if compared:
        labels = ", ".join(claim.row(name).label for name in claim.against if name != smaller.id)
        text += f" Over {smaller.label} its cells of {labels} give {compared[0][1]} to {compared[-1][1]}"
        rest = _published_range(
            claim, [row for row in claim.rows if row.id not in claim.against and row.id != smaller.id]
        )
        text += f", those of the other rows {rest[0][1]} to {rest[-1][1]}." if rest else "."
        if max(compared + rest)[0] > headline.value + 0.005:
            text += f" {headline.value:g}x is not its largest ratio."
    return text.strip()


def _published_range(claim: Claim, rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Return the ratios of some rows over the headline's smaller row, each with its words, the smallest first."""
    smaller = claim.row(claim.headline.smaller)
    found = [
        (ratio, f"{ratio:.2f}x ({row.label} on {shape.title})")
        for row in rows
        for dataset, shape in claim.datasets.items()
        if (ratio := _published_ratio(claim, row, smaller, dataset)) is not None
    ]
    return sorted(found)


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
        text += f" On {where} class-IL of {', '.join(better)} is above that of {smaller.label}"
        dense = [claim.row(name) for name in smaller_rows(claim) if claim.row(name).sparsity != smaller.sparsity]
        for row in dense:
            found = _accuracies(claim, row, smaller, "class_il")
            text += f"; that of {row.label} is {' and '.join(_percent(one) for one, _, _ in found)}" if found else ""
        text += "."
    return f"{text} No accuracy is measured under the claim's conditions."


def ledger(claim: Claim) -> str:
    """Say how many cells are recomputed from which class of formula."""
    memory, flops = within_tolerance(claim, "memory"), within_tolerance(claim, "flops")
    within = (
        f"{memory[0]} of {memory[1]} memory cells are recomputed within {claim.tolerance.memory:g} MB and "
        f"{flops[0]} of {flops[1]} FLOPs cells within {100 * claim.tolerance.flops:g} %"
    )
    kinds = Counter(row.memory.kind for row in claim.rows for name in claim.datasets if name in row.published)
    parts = [f"{kinds[kind]} {meaning} (class {kind})" for kind, meaning in claim.classes.items() if kinds[kind]]
    text = f"The published ledger: of its memory cells {'; '.join(parts)}. " if parts else "The published ledger: "
    text += f"{'So written, ' if parts else ''}{within}."
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
    if not shown:
        return f"{text}."
    rest = len(claim.fixes) - len(moving)
    return f"{text}; with one alone, {shown}." + (f" The other {rest} do not touch this pair." if rest else "")


def own_point(bench: Bench) -> str:
    """Say what the claimed ratio is measured as under the claim's own conditions, in every execution."""
    claim, headline = bench.claim, bench.claim.headline
    larger, smaller = claim.row(headline.larger), claim.row(headline.smaller)
    parts = []
    for name in bench.executions_of(smaller):
        place = bench.place(headline.dataset, smaller.id, name)
        other = rival(bench, larger.id, place)
        ratio = bench.ratio(other, place)
        if ratio is not None:
            process = bench.ratio(other, place, "process") if name == "released" else None
            noted = "" if process is None else f" ({process:.2f}x for the whole process)"
            noted += "" if other.execution == place.execution else f" ({larger.label} {other.execution})"
            parts.append(f"{ratio:.2f}x {name}{noted}")
    if not parts:
        return ""
    conditions = claim.conditions
    text = (
        f"Measured on {bench.target}{_images(bench)} at the claim's own point "
        f"({claim.datasets[headline.dataset].title}, batch {conditions.batch_size}, {conditions.replay_size} "
        f"remembered): the tensor peak of {larger.label} over that of {smaller.label}, claimed {headline.value:g}x, is "
        f"{', '.join(parts)}."
    )
    sizes = []
    for row in (larger, smaller):
        peak = bench.peak_bytes(bench.place(headline.dataset, row.id, "released"))
        published = _published(claim, row, headline.dataset)
        if peak is not None and published is not None:
            sizes.append(f"{peak / MIB / published:.2f}x")
    return (
        f"{text} As released the two peaks are {' and '.join(sizes)} the published cells." if len(sizes) == 2 else text
    )


def _images(bench: Bench) -> str:
    """Say that images are synthetic where all of them are."""
    streams = {run.spec.stream for run in bench.runs.values()}
    every = bool(streams) and all(stream.startswith("synthetic-") for stream in streams)
    return " with synthetic images of each data set's shape" if every else ""


def words(bench: Bench) -> str:
    """Say what the words mean that the measured sentences are made of."""
    claim = bench.claim
    smaller = claim.row(claim.headline.smaller)
    meant = [f"{name} is {MEANINGS[name]}" for name in bench.executions_of(smaller) if name in MEANINGS]
    if smaller.sparsity:
        meant.insert(0, f"{smaller.sparsity:g} says that {100 * smaller.sparsity:.0f} % of the weights are zero")
    text = f"In what follows, {'; '.join(meant)}. " if meant else ""
    return text + (
        "What rows hold is the tensor peak in training and evaluation; the whole process is its resident memory, "
        "interpreter and libraries included."
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
    """Say what others' peaks, lean and as run, are over that of the headline's smaller row carried out lean."""
    claim = bench.claim
    smaller = claim.row(claim.headline.smaller)
    equal, unequal = [], []
    for name, dataset in claim.datasets.items():
        own = bench.place(name, smaller.id, LEAN)
        both, one = [], []
        for row in map(claim.row, claim.against):
            usual = "released" if "released" in row.measured else PLAIN
            found = [bench.ratio(bench.place(name, row.id, execution), own) for execution in (LEAN, usual)]
            if None not in found:
                both.append(f"{row.label} {found[0]:.2f}x")
                one.append(f"{row.label} {usual} {found[1]:.2f}x")
        if both:
            equal.append(f"on {dataset.title} ({mib(bench.peak_bytes(own))} MiB) {', '.join(both)}")
            unequal.append(f"on {dataset.title} {', '.join(one)}")
    if not equal:
        return ""
    return (
        f"Over {smaller.label}, all carried out lean: {'; '.join(equal)}. With {smaller.label} alone carried out lean, "
        f"which does not compare like with like: {'; '.join(unequal)}."
    )


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
        text = (
            f"{peak / weights:.2f}x below {row.label} run plainly on {dataset.title} ({mib(weights)} of {mib(peak)} MiB"
        )
        lean = bench.peak_bytes(bench.place(name, row.id, LEAN))
        parts.append(text + (")" if lean is None else f"; {lean / weights:.2f}x below it carried out lean)"))
    if not parts:
        return ""
    return (
        f"A method that keeps every weight in float32 can be at most {' and '.join(parts)}, at batch "
        f"{claim.conditions.batch_size}."
    )


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
            if name != "from-scratch"
            if (ratio := flops_ratio(bench, claim.headline.dataset, row, name)[1]) is not None
        ]
        if published is not None and counted:
            parts.append(f"{row.label} {published:.2f} (counted: {', '.join(counted)})")
    title = claim.datasets[claim.headline.dataset].title
    if not parts:
        return ""
    return (
        f"Published FLOPs of a run on {title}, over those of {first.label}, and beside them those counted in one step "
        f"of the last task, over {first.label}'s plain step: {' and '.join(parts)}."
    )


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
