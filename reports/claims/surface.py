"""The claimed ratio as a surface: over data sets, rows compared, batch sizes and numbers of remembered samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.claims.claim import Claim
from reports.claims.measured import Bench
from reports.tables import markdown_table


@dataclass(frozen=True)
class Line:
    """The ratio of two rows on one data set over batch sizes, in plain execution.

    whole_batch: as many samples are remembered, and replayed, as a batch has, not as many as the claim says.
    ratios: by batch size; None where either row was not measured.
    """

    dataset: str
    larger: str
    smaller: str
    whole_batch: bool
    ratios: Mapping[int, float | None]

    @property
    def known(self) -> dict[int, float]:
        """Return the ratios that were measured, by batch size."""
        return {batch: ratio for batch, ratio in self.ratios.items() if ratio is not None}


def surface(bench: Bench) -> list[Line]:
    """Return the ratio of each compared row over the headline's smaller row and its dense one, in the claim's order."""
    claim = bench.claim
    batches = batch_sizes(bench)
    return [
        Line(
            name,
            larger,
            smaller,
            whole,
            {batch: _ratio(bench, name, larger, smaller, batch, whole) for batch in batches},
        )
        for name in claim.datasets
        for smaller in smaller_rows(claim)
        for larger in claim.against
        for whole in ((False, True) if claim.row(larger).replays else (False,))
    ]


def batch_sizes(bench: Bench) -> list[int]:
    """Return every batch size at which anything was measured."""
    return sorted({place.batch_size for place in (*bench.runs, *bench.failed)})


def smaller_rows(claim: Claim) -> list[str]:
    """Return the headline's smaller row and those of the same title, e.g. its dense one."""
    title = claim.row(claim.headline.smaller).title
    return [row.id for row in claim.rows if row.title == title]


def surface_table(bench: Bench) -> str:
    """Return every line of the surface; ratios that reach the claimed one are bold."""
    claim = bench.claim
    batches = batch_sizes(bench)
    headers = ["data set", "larger", f"over {claim.row(claim.headline.smaller).title}", "remembered"]
    rows = []
    for line in surface(bench):
        shown = {batch: f"{ratio:.2f}" for batch, ratio in line.known.items()}
        shown |= {batch: f"**{shown[batch]}**" for batch, ratio in line.known.items() if ratio >= claim.headline.value}
        remembered = "a batch" if line.whole_batch else str(claim.conditions.replay_size)
        labels = [claim.datasets[line.dataset].title, claim.row(line.larger).label, claim.row(line.smaller).label]
        rows.append([*labels, remembered, *(shown.get(batch, "not measured") for batch in batches)])
    return markdown_table([*headers, *(f"batch {batch}" for batch in batches)], rows, left=4)


def surface_sentences(bench: Bench) -> list[str]:
    """Say where the claimed ratio is reached: by the headline's own pair first, then by any pair of the surface."""
    claim, headline = bench.claim, bench.claim.headline
    lines = surface(bench)
    pair = [line for line in lines if (line.larger, line.smaller) == (headline.larger, headline.smaller)]
    labels = " over ".join(claim.row(name).label for name in (headline.larger, headline.smaller))
    start = f"Over batch sizes on {bench.target}, plain,"
    if not any(line.known for line in pair):
        return [f"Not measured on {bench.target}: the ratio of {labels} over batch sizes."]
    own = _reached(claim, pair, f"{start} {labels} reaches {headline.value:g}x")
    if claim.row(headline.smaller).sparsity:
        own += " Plain execution holds the zeros: this is what frozen layers and replays save, not sparsity."
    others = [line for line in lines if line not in pair]
    counts = []
    for larger in claim.against:
        ratios = [ratio for line in others if line.larger == larger for ratio in line.known.values()]
        if ratios:
            hits = sum(ratio >= headline.value for ratio in ratios)
            counts.append(f"{claim.row(larger).label} in {hits} of {len(ratios)} (at most {max(ratios):.2f}x)")
    if not counts:
        return [own]
    below = " or ".join(claim.row(name).label for name in smaller_rows(claim))
    return [own, f"{start} other pairs reach {headline.value:g}x over {below}: {', '.join(counts)}."]


def _reached(claim: Claim, lines: Sequence[Line], start: str) -> str:
    """Say in how many of the measured combinations of one pair's lines the claimed ratio is reached, and in which."""
    size = claim.conditions.replay_size
    counts, shown = [], []
    for whole, what in ((False, f"with {size} samples remembered"), (True, "with as many as the batch has")):
        chosen = [line for line in lines if line.whole_batch == whole]
        hits = 0
        for line in chosen:
            batches = [batch for batch, ratio in line.known.items() if ratio >= claim.headline.value]
            hits += len(batches)
            if batches:
                how = "remembering a batch" if whole else f"remembering {size}"
                shown.append(f"on {claim.datasets[line.dataset].title} {how} at batch {', '.join(map(str, batches))}")
        known = sum(len(line.known) for line in chosen)
        if known:
            counts.append(f"in {hits} of {known} measured combinations {what}")
    text = f"{start} {' and '.join(counts)}"
    return f"{text}: {'; '.join(shown)}." if shown else f"{text}."


def _ratio(bench: Bench, dataset: str, larger: str, smaller: str, batch_size: int, whole_batch: bool) -> float | None:
    remembered = batch_size if whole_batch else bench.claim.conditions.replay_size
    one, other = (bench.place(dataset, row, "plain", batch_size, remembered) for row in (larger, smaller))
    return bench.ratio(one, other)
