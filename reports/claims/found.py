"""Sentences made of what was measured of a claim's rows."""

from __future__ import annotations

from clmem.harness.specs.techniques import LEAN, PLAIN
from clmem.reports.claims.measured import Bench, Place
from clmem.reports.claims.tables import flops_ratio, published_ratio, recomputed, rival
from clmem.reports.tables import accuracy_text
from clmem.reports.units import MIB, listed, mib

RELEASED = "released"
MEANINGS = {
    RELEASED: "our implementation with the settings and the state of the authors' code",
    PLAIN: "our implementation as PyTorch carries it out",
    LEAN: "what plain computes, in less memory by techniques that are ours (pruned channels removed or open weights "
    "stored alone, activations computed again, gradients applied as they appear; the network is built before, whole)",
}


def own_point(bench: Bench) -> str:
    """Say what the claimed ratio is measured as under the claim's own conditions, in every execution."""
    claim, headline = bench.claim, bench.claim.headline
    larger, smaller = claim.row(headline.larger), claim.row(headline.smaller)
    parts = [
        f"{ratio} {name}"
        for name in bench.executions_of(smaller)
        if (ratio := _both_levels(bench, headline.dataset, name))
    ]
    if not parts:
        return ""
    conditions = claim.conditions
    text = (
        f"{headline.word.capitalize()}: {headline.value:g}x less memory for {smaller.label} than for {larger.label}, "
        f"on {claim.datasets[headline.dataset].title} at batch {conditions.batch_size} with {conditions.replay_size} "
        f"samples remembered. Measured there on {bench.target}{_images(bench)}, the tensor peaks of the two (in "
        f"brackets their whole processes) have the ratio {listed(parts)}."
    )
    sizes = []
    for row in (larger, smaller):
        peak = bench.peak_bytes(bench.place(headline.dataset, row.id, RELEASED))
        published = recomputed(claim, row, "memory", headline.dataset)[0]
        if peak is not None and published is not None:
            sizes.append(f"{peak / MIB / published:.2f}x")
    if len(sizes) == 2:
        text += f" As released the two hold {' and '.join(sizes)} what the table says there."
    for name, dataset in claim.datasets.items():
        published = published_ratio(claim, larger, smaller, name)
        first = next((one for one in bench.executions_of(smaller) if _both_levels(bench, name, one)), None)
        if name != headline.dataset and published is not None and first is not None:
            text += f" On {dataset.title}, where the table gives {published:.2f}x, it is "
            text += f"{_both_levels(bench, name, first)} {first}."
    return text


def _both_levels(bench: Bench, dataset: str, execution: str) -> str:
    """Return the headline's ratio in an execution as e.g. "5.98x (2.11x)", empty where it was not measured."""
    headline = bench.claim.headline
    smaller = bench.place(dataset, headline.smaller, execution)
    larger = rival(bench, headline.larger, smaller)
    tensor, process = bench.ratio(larger, smaller), bench.ratio(larger, smaller, "process")
    return "" if tensor is None else f"{tensor:.2f}x" + ("" if process is None else f" ({process:.2f}x)")


def _images(bench: Bench) -> str:
    """Say that images are synthetic where all of them are."""
    streams = {run.spec.stream for run in bench.runs.values()}
    every = bool(streams) and all(stream.startswith("synthetic-") for stream in streams)
    return " with synthetic images of that shape" if every else ""


def words(bench: Bench) -> str:
    """Say what the words mean that the measured sentences are made of."""
    claim = bench.claim
    smaller = claim.row(claim.headline.smaller)
    meanings = {**MEANINGS, **claim.executions}
    meant = [f"{name} is {meanings[name]}" for name in bench.executions_of(smaller) if name in meanings]
    if smaller.sparsity:
        meant.append(f"{smaller.sparsity:g} in a name is the part of the weights that is to be zero")
    return (
        f"Here {'; '.join(meant)}. A tensor peak is the allocator's, in training and evaluation; a whole process is "
        "its resident memory, interpreter and libraries included."
    )


def measured(bench: Bench, execution: str) -> str:
    """Say what the headline's two rows hold in one execution on every data set, and their ratio."""
    claim = bench.claim
    parts = []
    for name, dataset in claim.datasets.items():
        smaller = bench.place(name, claim.headline.smaller, execution)
        larger = rival(bench, claim.headline.larger, smaller)
        ratio = _both_levels(bench, name, execution)
        if ratio:
            one, other = mib(bench.peak_bytes(larger)), mib(bench.peak_bytes(smaller))
            as_run = "" if larger.execution == execution else f" ({larger.execution})"
            parts.append(f"{one}{as_run} and {other} MiB on {dataset.title}, a ratio of {ratio}")
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
            usual = RELEASED if RELEASED in row.measured else PLAIN
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


def learning(bench: Bench) -> list[str]:
    """Say how the headline's rows learn on the streams on which accuracy was measured, none of them the claim's."""
    claim = bench.claim
    sentences = []
    for section in bench.learnt:
        cells = {row.id: cell for row, cell in bench.learners(section)}
        pair = [cells.get(claim.headline.larger), cells.get(claim.headline.smaller)]
        one, other = pair
        if one is None or other is None:
            continue
        parts = [
            f"{name} {accuracy_text(one, metric)} against {accuracy_text(other, metric)}"
            for metric, name in (("class_il_accuracy", "class-IL"), ("task_il_accuracy", "task-IL"))
        ]
        labels = " against ".join(claim.row(name).label for name in (claim.headline.larger, claim.headline.smaller))
        seeds = " and ".join(str(number) for number in dict.fromkeys((len(one.accuracy), len(other.accuracy))))
        rows = [claim.row(name) for name in (claim.headline.larger, claim.headline.smaller)]
        noted = "".join(f"; {row.label} {row.learnt_as}" for row in rows if row.learnt_as)
        sentences.append(
            f"Measured accuracy, not under the claim's conditions but on {section.setting.title}{noted}; mean and "
            f"deviation over {seeds} seeds: {labels}, in percent: {', '.join(parts)}."
        )
    return sentences


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
            if name in MEANINGS
            if (ratio := flops_ratio(bench, claim.headline.dataset, row, name)[1]) is not None
        ]
        if published is not None and counted:
            parts.append(f"{row.label} {published:.2f} (counted: {', '.join(counted)})")
    title = claim.datasets[claim.headline.dataset].title
    if not parts:
        return ""
    return (
        f"Published FLOPs of a run on {title}, over those of {first.label}, and beside them those counted in one step "
        f"of the last task, over {first.label}'s plain step: {' and '.join(parts)}. Dense kernels multiply zeros too, "
        "and they are counted; so is what lean computes again."
    )
