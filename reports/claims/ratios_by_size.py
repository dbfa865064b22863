"""The claimed ratio as a surface: over data sets, rows compared, batch sizes and numbers of remembered samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clmem.reports.claims.claim import Claim
from clmem.reports.claims.measurements import NOT_MEASURED, Measurements
from clmem.reports.data.units import listed
from clmem.reports.markdown.markup import Markdown
from clmem.reports.markdown.tables import markdown_table


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


def ratios_by_size(measurements: Measurements) -> list[Line]:
    """Return the ratio of each compared row over the headline's smaller row and its dense one, in the claim's order."""
    claim = measurements.claim
    batches = batch_sizes(measurements)
    return [
        Line(
            name,
            larger,
            smaller,
            whole,
            {batch: _ratio(measurements, name, larger, smaller, batch, whole) for batch in batches},
        )
        for name in claim.datasets
        for smaller in smaller_rows(claim)
        for larger in claim.against
        for whole in ((False, True) if claim.row(larger).replays else (False,))
    ]


def batch_sizes(measurements: Measurements) -> list[int]:
    """Return every batch size at which anything was measured."""
    return sorted({place.batch_size for place in (*measurements.runs, *measurements.failed)})


def smaller_rows(claim: Claim) -> list[str]:
    """Return the headline's smaller row and those of the same title, e.g. its dense one."""
    title = claim.row(claim.headline.smaller).title
    return [row.id for row in claim.rows if row.title == title]


def ratios_by_size_table(measurements: Measurements) -> str:
    """Return every line of the surface; ratios that reach the claimed one are bold."""
    claim = measurements.claim
    batches = batch_sizes(measurements)
    headers = ["data set", "larger", f"over {claim.row(claim.headline.smaller).title}", "remembered"]
    rows = []
    for line in ratios_by_size(measurements):
        shown = {batch: f"{ratio:.2f}" for batch, ratio in line.known.items()}
        shown |= {
            batch: Markdown(f"**{shown[batch]}**")
            for batch, ratio in line.known.items()
            if ratio >= claim.headline.value
        }
        remembered = "a batch" if line.whole_batch else str(claim.conditions.replay_size)
        labels = [claim.datasets[line.dataset].title, claim.row(line.larger).label, claim.row(line.smaller).label]
        rows.append([*labels, remembered, *(shown.get(batch, NOT_MEASURED) for batch in batches)])
    return markdown_table([*headers, *(f"batch {batch}" for batch in batches)], rows, left=4)


def ratios_by_size_sentences(measurements: Measurements) -> list[str]:
    """Say where the claimed ratio is reached: by the headline's own pair first, then by every other pair."""
    claim, headline = measurements.claim, measurements.claim.headline
    pairs: dict[tuple[str, str], list[Line]] = {}
    for line in ratios_by_size(measurements):
        if line.known:
            pairs.setdefault((line.larger, line.smaller), []).append(line)
    own = pairs.pop((headline.larger, headline.smaller), [])
    labels = " over ".join(claim.row(name).label for name in (headline.larger, headline.smaller))
    if not own:
        return [f"Not measured on {measurements.target}: the ratio of {labels} over batch sizes."]
    sizes = sorted({batch for lines in (own, *pairs.values()) for line in lines for batch in line.known})
    over = f"At batch {sizes[0]}" if len(sizes) == 1 else f"At batches of {sizes[0]} to {sizes[-1]}"
    start = f"{over} on {measurements.target}, plain,"
    text = f"{start} {labels} reaches {headline.value:g}x in {_counts(own, headline.value)} measured combinations"
    text += f"{_where(claim, own)}."
    for name in smaller_rows(claim):
        dense = pairs.get((headline.larger, name), [])
        if name != headline.smaller and dense:
            text += (
                f" Plain execution stores zeros too; over {claim.row(name).label}, which has none, it is reached in "
            )
            text += f"{_counts(dense, headline.value)}."
    return [text, *_other_pairs(claim, pairs, start)]


def _other_pairs(claim: Claim, pairs: Mapping[tuple[str, str], list[Line]], start: str) -> list[str]:
    """Say where pairs reach the claimed ratio; those that reach it in the same combinations are named together."""
    value = claim.headline.value
    never: dict[str, dict[str, list[Line]]] = {}
    together: dict[str, dict[str, list[Line]]] = {}
    for (larger, smaller), lines in pairs.items():
        where = _where(claim, lines)
        if where:
            named = f"{claim.row(larger).label} over {claim.row(smaller).label}"
            together.setdefault(where, {})[named] = lines
        else:
            never.setdefault(larger, {})[smaller] = lines
    parts = [
        f"{listed(list(named))} in {_each(list(named.values()), value)}{where}" for where, named in together.items()
    ]
    for larger, below in never.items():
        lines = [line for found in below.values() for line in found]
        named = f"{claim.row(larger).label} over {' or '.join(claim.row(name).label for name in below)}"
        parts.append(f"{named} in {_counts(lines, value)} (at most {_most(lines)})")
    return [f"{start} other pairs reach {value:g}x so: {'; '.join(parts)}."] if parts else []


def _each(pairs: Sequence[Sequence[Line]], value: float) -> str:
    counts = " or ".join(sorted({_counts(lines, value) for lines in pairs}))
    most = _most([line for lines in pairs for line in lines])
    return f"{counts}{' each' if len(pairs) > 1 else ''} (at most {most})"


def _most(lines: Sequence[Line]) -> str:
    return f"{max(ratio for line in lines for ratio in line.known.values()):.2f}x"


def _counts(lines: Sequence[Line], value: float) -> str:
    known = [ratio for line in lines for ratio in line.known.values()]
    return f"{sum(ratio >= value for ratio in known)} of {len(known)}"


def _where(claim: Claim, lines: Sequence[Line]) -> str:
    """Return ": " and the combinations in which some lines reach the claimed ratio, or nothing."""
    shown = []
    for line in lines:
        batches = [batch for batch, ratio in line.known.items() if ratio >= claim.headline.value]
        if batches:
            many = "as many samples as a batch has" if line.whole_batch else f"{claim.conditions.replay_size} samples"
            sizes = f"batch {batches[0]}" if len(batches) == 1 else f"batches {listed(list(map(str, batches)))}"
            shown.append(f"on {claim.datasets[line.dataset].title} remembering {many} at {sizes}")
    return f": {', '.join(shown)}" if shown else ""


def _ratio(
    measurements: Measurements, dataset: str, larger: str, smaller: str, batch_size: int, whole_batch: bool
) -> float | None:
    remembered = batch_size if whole_batch else measurements.claim.conditions.replay_size
    one, other = (measurements.place(dataset, row, "plain", batch_size, remembered) for row in (larger, smaller))
    return measurements.ratio(one, other)
