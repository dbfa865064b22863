"""Sentences made of what was measured of a claim's rows."""

from __future__ import annotations

from clmem.harness.specs.techniques import LEAN, PLAIN
from clmem.reports.claims.measurements import Measurements, Place
from clmem.reports.claims.tables import flops_ratio, published_ratio, recomputed, rival
from clmem.reports.data.executions import RELEASED
from clmem.reports.data.units import MIB, listed, mib
from clmem.reports.markdown.tables import accuracy_text

MEANINGS = {
    RELEASED: "our implementation with the settings and the state of the authors' code",
    PLAIN: "our implementation as PyTorch carries it out",
    LEAN: "what plain computes, in less memory by techniques that are ours (pruned channels removed or open weights "
    "stored alone, activations computed again, gradients applied as they appear; the network is built before, whole)",
}


def own_point(measurements: Measurements) -> str:
    """Say what the claimed ratio is measured as under the claim's own conditions, in every execution."""
    claim, headline = measurements.claim, measurements.claim.headline
    larger, smaller = claim.row(headline.larger), claim.row(headline.smaller)
    parts = [
        f"{ratio} {name}"
        for name in measurements.executions_of(smaller)
        if (ratio := _both_levels(measurements, headline.dataset, name))
    ]
    if not parts:
        return ""
    conditions = claim.conditions
    text = (
        f"{headline.word.capitalize()}: {headline.value:g}x less memory for {smaller.label} than for {larger.label}, "
        f"on {claim.datasets[headline.dataset].title} at batch {conditions.batch_size} with {conditions.replay_size} "
        f"samples remembered. Measured there on {measurements.target}{_images(measurements)}, the tensor peaks of the "
        f"two (in brackets their whole processes) have the ratio {listed(parts)}."
    )
    sizes = []
    for row in (larger, smaller):
        peak = measurements.peak_bytes(measurements.place(headline.dataset, row.id, RELEASED))
        published = recomputed(claim, row, "memory", headline.dataset)[0]
        if peak is not None and published is not None:
            sizes.append(f"{peak / MIB / published:.2f}x")
    if len(sizes) == 2:
        text += f" As released the two hold {' and '.join(sizes)} what the table says there."
    for name, dataset in claim.datasets.items():
        published = published_ratio(claim, larger, smaller, name)
        first = next(
            (one for one in measurements.executions_of(smaller) if _both_levels(measurements, name, one)), None
        )
        if name != headline.dataset and published is not None and first is not None:
            text += f" On {dataset.title}, where the table gives {published:.2f}x, it is "
            text += f"{_both_levels(measurements, name, first)} {first}."
    return text


def _both_levels(measurements: Measurements, dataset: str, execution: str) -> str:
    """Return the headline's ratio in an execution as e.g. "5.98x (2.11x)", empty where it was not measured."""
    headline = measurements.claim.headline
    smaller = measurements.place(dataset, headline.smaller, execution)
    larger = rival(measurements, headline.larger, smaller)
    tensor, process = measurements.ratio(larger, smaller), measurements.ratio(larger, smaller, "process")
    return "" if tensor is None else f"{tensor:.2f}x" + ("" if process is None else f" ({process:.2f}x)")


def _images(measurements: Measurements) -> str:
    """Say that images are synthetic where all of them are."""
    streams = {run.spec.stream for run in measurements.runs.values()}
    every = bool(streams) and all(stream.startswith("synthetic-") for stream in streams)
    return " with synthetic images of that shape" if every else ""


def words(measurements: Measurements) -> str:
    """Say what the words mean that the measured sentences are made of."""
    claim = measurements.claim
    smaller = claim.row(claim.headline.smaller)
    meanings = {**MEANINGS, **claim.executions}
    meant = [f"{name} is {meanings[name]}" for name in measurements.executions_of(smaller) if name in meanings]
    if smaller.sparsity:
        meant.append(f"{smaller.sparsity:g} in a name is the part of the weights that is to be zero")
    return (
        f"Here {'; '.join(meant)}. A tensor peak is the allocator's, in training and evaluation; a whole process is "
        "its resident memory, interpreter and libraries included."
    )


def measured(measurements: Measurements, execution: str) -> str:
    """Say what the headline's two rows hold in one execution on every data set, and their ratio."""
    claim = measurements.claim
    parts = []
    for name, dataset in claim.datasets.items():
        smaller = measurements.place(name, claim.headline.smaller, execution)
        larger = rival(measurements, claim.headline.larger, smaller)
        ratio = _both_levels(measurements, name, execution)
        if ratio:
            one, other = mib(measurements.peak_bytes(larger)), mib(measurements.peak_bytes(smaller))
            as_run = "" if larger.execution == execution else f" ({larger.execution})"
            parts.append(f"{one}{as_run} and {other} MiB on {dataset.title}, a ratio of {ratio}")
    if not parts:
        return f"Not measured on {measurements.target}: the headline's rows in execution `{execution}`."
    larger_row, smaller_row = claim.row(claim.headline.larger), claim.row(claim.headline.smaller)
    pair = f"{larger_row.label} and {smaller_row.label}"
    return f"Measured on {measurements.target}, {execution}: {pair} hold {'; '.join(parts)}."


def across(measurements: Measurements) -> str:
    """Say what others' peaks, lean and as run, are over that of the headline's smaller row carried out lean."""
    claim = measurements.claim
    smaller = claim.row(claim.headline.smaller)
    equal, unequal = [], []
    for name, dataset in claim.datasets.items():
        own = measurements.place(name, smaller.id, LEAN)
        both, one = [], []
        for row in map(claim.row, claim.against):
            usual = RELEASED if RELEASED in row.measured else PLAIN
            found = [
                measurements.ratio(measurements.place(name, row.id, execution), own) for execution in (LEAN, usual)
            ]
            if None not in found:
                both.append(f"{row.label} {found[0]:.2f}x")
                one.append(f"{row.label} {usual} {found[1]:.2f}x")
        if both:
            equal.append(f"on {dataset.title} ({mib(measurements.peak_bytes(own))} MiB) {', '.join(both)}")
            unequal.append(f"on {dataset.title} {', '.join(one)}")
    if not equal:
        return ""
    return (
        f"Over {smaller.label}, all carried out lean: {'; '.join(equal)}. With {smaller.label} alone carried out lean, "
        f"which does not compare like with like: {'; '.join(unequal)}."
    )


def learning(measurements: Measurements) -> list[str]:
    """Say how the headline's rows learn on the streams on which accuracy was measured, none of them the claim's."""
    claim = measurements.claim
    sentences = []
    for section in measurements.learnt:
        cells = {row.id: cell for row, cell in measurements.learners(section)}
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


def floor(measurements: Measurements) -> str:
    """Say how far below the first compared row any method can be that keeps all of the network's weights."""
    claim = measurements.claim
    row = claim.row(claim.against[0])
    parts = []
    for name, dataset in claim.datasets.items():
        place: Place = measurements.place(name, row.id, PLAIN)
        run = measurements.runs.get(place)
        peak = measurements.peak_bytes(place)
        if run is None or run.footprint is None or peak is None:
            continue
        weights = run.footprint.at_peak.get("parameters", 0)
        text = (
            f"{peak / weights:.2f}x below {row.label} run plainly on {dataset.title} ({mib(weights)} of {mib(peak)} MiB"
        )
        lean = measurements.peak_bytes(measurements.place(name, row.id, LEAN))
        parts.append(text + (")" if lean is None else f"; {lean / weights:.2f}x below it carried out lean)"))
    if not parts:
        return ""
    return (
        f"A method that keeps every weight in float32 can be at most {' and '.join(parts)}, at batch "
        f"{claim.conditions.batch_size}."
    )


def flops(measurements: Measurements) -> str:
    """Say what the headline's rows cost by the published FLOPs and by those that were counted, over the first row's."""
    claim = measurements.claim
    first = claim.row(claim.against[0])
    parts = []
    for row in (claim.row(claim.headline.larger), claim.row(claim.headline.smaller)):
        published, _ = flops_ratio(measurements, claim.headline.dataset, row, PLAIN)
        counted = [
            f"{ratio:.2f} {name}"
            for name in measurements.executions_of(row)
            if name in MEANINGS
            if (ratio := flops_ratio(measurements, claim.headline.dataset, row, name)[1]) is not None
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
