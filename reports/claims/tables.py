"""The tables of a claim's page. Published, recomputed and measured numbers have columns of their own."""

from __future__ import annotations

from collections.abc import Sequence

from clmem.harness.specs.techniques import PLAIN
from clmem.reports.claims.claim import Claim, Fix, FormulaLedger, Quantity, Row
from clmem.reports.claims.measurements import NOT_MEASURED, Level, Measurements, Place
from clmem.reports.data.grouping import Section
from clmem.reports.data.units import UNDEFINED, count, mib, signed
from clmem.reports.markdown.markup import Markdown, code, harmless
from clmem.reports.markdown.tables import ACCURACY_COLUMNS, accuracy_text, markdown_table, shown_roles

CHANGE = 0.05
"""MB below which a correction has left a cell alone."""


def recomputed_table(claim: Claim, quantity: Quantity) -> str:
    """Return every cell as published, recomputed, and the error of that: MB, or percent of the FLOPs."""
    headers = ["row", "class", "formula"]
    for dataset in claim.datasets.values():
        unit = "MB" if quantity == "memory" else f"{dataset.flops_unit:.0e} FLOPs".replace("e+", "e")
        headers += [f"{dataset.title}, published {unit}", "recomputed", "error" + ("" if unit == "MB" else " %")]
    rows = []
    for row in claim.rows:
        own = row.formula(quantity)
        cells = [row.label, own.kind, code(str(own.formula))]
        for name in claim.datasets:
            published, value, error = recomputed(claim, row, quantity, name)
            digits = 1 if quantity == "memory" else 2
            cells += [_number(published, 1), _number(value, digits), _error(error, quantity)]
        rows.append(cells)
    return markdown_table(headers, rows, left=3)


def recomputed(claim: Claim, row: Row, quantity: Quantity, dataset: str) -> tuple[float | None, float, float | None]:
    """Return one cell as published and recomputed, in the published unit, and the error: in MB, or as a fraction."""
    unit = 1.0 if quantity == "memory" else claim.datasets[dataset].flops_unit
    value = FormulaLedger(claim, dataset).value(row, quantity) / unit
    cells = row.published.get(dataset)
    published = None if cells is None else getattr(cells, quantity)
    if published is None:
        return None, value, None
    return published, value, value - published if quantity == "memory" else value / published - 1


def published_ratio(claim: Claim, larger: Row, smaller: Row, dataset: str) -> float | None:
    """Return the ratio of two published memory cells, None where either is not published."""
    one, other = (recomputed(claim, row, "memory", dataset)[0] for row in (larger, smaller))
    return None if one is None or other is None else one / other


def within_tolerance(claim: Claim, quantity: Quantity) -> tuple[int, int]:
    """Return how many published cells are hit, and how many there are."""
    limit = getattr(claim.tolerance, quantity) + 1e-9
    errors = [recomputed(claim, row, quantity, name)[2] for row in claim.rows for name in claim.datasets]
    known = [error for error in errors if error is not None]
    return sum(abs(error) <= limit for error in known), len(known)


def headline_ratio(claim: Claim, fixes: Sequence[Fix] = ()) -> float:
    """Return the claimed ratio by the paper's own arithmetic with some corrections."""
    ledger = FormulaLedger(claim, claim.headline.dataset, tuple(fixes))
    larger, smaller = (claim.row(name) for name in (claim.headline.larger, claim.headline.smaller))
    return ledger.value(larger, "memory") / ledger.value(smaller, "memory")


def fixes_table(claim: Claim) -> str:
    """Return what each correction does by itself, and what all of them do: the rows that change, and the headline."""
    ratio = f"{claim.row(claim.headline.larger).label} / {claim.row(claim.headline.smaller).label}"
    titles = [shape.title for shape in claim.datasets.values()]
    headers = ["correction", "what the paper's arithmetic leaves out", *titles, ratio]
    rows = []
    for fix in claim.fixes:
        cells = [_changes(claim, name, (fix,)) or "no change" for name in claim.datasets]
        rows.append([code(fix.id), Markdown(harmless(fix.text)), *cells, f"{headline_ratio(claim, [fix]):.2f}"])
    rows.append(["all", "", *(["see below"] * len(claim.datasets)), f"{headline_ratio(claim, claim.fixes):.2f}"])
    return markdown_table(headers, rows, left=2 + len(claim.datasets))


def _changes(claim: Claim, dataset: str, fixes: tuple[Fix, ...]) -> str:
    before, after = FormulaLedger(claim, dataset), FormulaLedger(claim, dataset, fixes)
    changed: dict[str, list[str]] = {}
    for row in claim.rows:
        old, new = before.value(row, "memory"), after.value(row, "memory")
        if abs(new - old) > CHANGE:
            changed.setdefault(f"{old:.1f} → {new:.1f}", []).append(row.label)
    return "; ".join(f"{', '.join(labels)} {change}" for change, labels in changed.items())


def corrected_table(claim: Claim, fixes: Sequence[Fix]) -> str:
    """Return every memory cell as published and by the arithmetic with the corrections given, in MB."""
    headers = ["row"]
    for dataset in claim.datasets.values():
        headers += [f"{dataset.title}, published MB", "corrected MB"]
    rows = []
    for row in claim.rows:
        cells = [row.label]
        for name in claim.datasets:
            published, _, _ = recomputed(claim, row, "memory", name)
            cells += [_number(published, 1), f"{FormulaLedger(claim, name, tuple(fixes)).value(row, 'memory'):.1f}"]
        rows.append(cells)
    return markdown_table(headers, rows)


def measured_table(measurements: Measurements) -> str:
    """Return the measured peaks of every row and execution, beside the published cell."""
    claim = measurements.claim
    headers = ["row", "execution"]
    for dataset in claim.datasets.values():
        headers += [f"{dataset.title}, published MB", "tensor peak MiB", "process peak MiB"]
    rows = []
    for row in claim.rows:
        for execution in measurements.executions_of(row):
            cells = [row.label, execution]
            for name in claim.datasets:
                place = measurements.place(name, row.id, execution)
                published, _, _ = recomputed(claim, row, "memory", name)
                cells += [
                    _number(published, 1),
                    _peak(measurements, place, "tensor"),
                    _peak(measurements, place, "process"),
                ]
            rows.append(cells)
    return markdown_table(headers, rows, left=2)


def roles_table(measurements: Measurements, dataset: str) -> str:
    """Return the measured bytes by role at the peak of every row and execution, in MiB; empty without any."""
    found = [
        (row.label, execution, None if run is None else run.footprint)
        for row, execution, place in _places(measurements, dataset)
        for run in [measurements.runs.get(place)]
    ]
    shown = shown_roles(held for _, _, held in found if held is not None)
    rows = []
    for label, execution, held in found:
        if held is None:
            rows.append([label, execution, *([NOT_MEASURED] * (len(shown) + 1))])
        else:
            sizes = [held.at_peak.get(role, 0) for role in shown]
            rows.append([label, execution, *map(mib, sizes), mib(sum(held.at_peak.values()))])
    return markdown_table(["row", "execution", *shown, "sum"], rows, left=2)


def learning_table(measurements: Measurements, section: Section) -> str:
    """Return the measured accuracies of the rows on one stream, over seeds, and the seconds that learning it took."""
    rows = []
    for row, cell in measurements.learners(section):
        seconds = [sum(run.phase_s.values()) for run in cell.accuracy if run.phase_s]
        cells = [accuracy_text(cell, metric) for metric, _ in ACCURACY_COLUMNS]
        mean = f"{sum(seconds) / len(seconds):.0f}" if seconds else NOT_MEASURED
        rows.append([row.label, *cells, str(len(cell.accuracy)), mean])
    return markdown_table(["row", *(header for _, header in ACCURACY_COLUMNS), "seeds", "s"], rows)


def accuracy_table(claim: Claim) -> str:
    """Return the published accuracies, in percent with their deviation."""
    metrics = {"class_il": "class-IL %", "task_il": "task-IL %"}
    headers = ["row", *(f"{shape.title}, {name}" for shape in claim.datasets.values() for name in metrics.values())]
    rows = []
    for row in claim.rows:
        found = [getattr(row.published.get(name), metric, None) for name in claim.datasets for metric in metrics]
        rows.append([row.label, *(UNDEFINED if pair is None else f"{pair[0]:.2f} ± {pair[1]:.2f}" for pair in found)])
    return markdown_table(headers, rows)


def flops_ratio(
    measurements: Measurements, dataset: str, row: Row, execution: str
) -> tuple[float | None, float | None]:
    """Return a row's FLOPs over those of the first compared row: as published for a whole run, as counted in a step."""
    claim = measurements.claim
    first = claim.row(claim.against[0])
    published, reference = (recomputed(claim, one, "flops", dataset)[0] for one in (row, first))
    counted, base = (
        _flops(measurements, measurements.place(dataset, one.id, name))
        for one, name in ((row, execution), (first, PLAIN))
    )
    return (
        None if published is None or not reference else published / reference,
        None if counted is None or not base else counted / base,
    )


def flops_table(measurements: Measurements, dataset: str) -> str:
    """Return FLOPs: the published and recomputed cell of a whole run, and what one step was counted to take."""
    claim = measurements.claim
    unit = claim.datasets[dataset].flops_unit
    label = claim.row(claim.against[0]).label
    headers = ["row", "execution", f"published, {unit:.0e}".replace("e+", "e"), "recomputed", f"published / {label}"]
    headers += ["measured, one step, 1e9", f"measured / {label}"]
    rows = []
    for row, execution, place in _places(measurements, dataset):
        published, value, _ = recomputed(claim, row, "flops", dataset)
        relative, ratio = flops_ratio(measurements, dataset, row, execution)
        flops = _flops(measurements, place)
        counted = measurements.shown(place) if flops is None else f"{flops / 1e9:,.1f}"
        measured = NOT_MEASURED if ratio is None else f"{ratio:.2f}"
        rows.append(
            [row.label, execution, _number(published, 1), f"{value:.2f}", _number(relative, 2), counted, measured]
        )
    return markdown_table(headers, rows, left=2)


def ratio_table(measurements: Measurements, dataset: str, level: Level) -> str:
    """Return how often every row's peak goes into those that the claim compares with, as `rival` pairs them."""
    claim = measurements.claim
    headers = ["row", "execution", *(f"{claim.row(name).label} /" for name in claim.against)]
    rows = []
    for row, execution, place in _places(measurements, dataset):
        cells = []
        for name in claim.against:
            ratio = measurements.ratio(rival(measurements, name, place), place, level)
            cells.append(NOT_MEASURED if ratio is None else f"{ratio:.2f}")
        rows.append([row.label, execution, *cells])
    return markdown_table(headers, rows, left=2)


def published_ratio_table(claim: Claim, dataset: str) -> str:
    """Return the same ratios from the published cells."""
    headers = ["row", *(f"{claim.row(name).label} /" for name in claim.against)]
    rows = []
    for row in claim.rows:
        ratios = [published_ratio(claim, claim.row(name), row, dataset) for name in claim.against]
        rows.append([row.label, *(UNDEFINED if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    return markdown_table(headers, rows)


def rival(measurements: Measurements, row: str, place: Place) -> Place:
    """Return what a place is compared with: the row in the same execution where the claim knows one, else plain."""
    known = measurements.claim.row(row).measured
    return measurements.place(place.dataset, row, place.execution if place.execution in known else PLAIN)


def provenance_table(measurements: Measurements) -> str:
    """Return every run behind the page: where it lies, its peak in bytes, and the batches it consumed."""
    rows = [
        [
            measurements.claim.datasets[place.dataset].title,
            measurements.claim.row(place.row).label,
            place.execution,
            str(place.batch_size),
            str(place.replay_size or UNDEFINED),
            count(measurements.peak_bytes(place)),
            run.fingerprint or "not recorded",
            run.run_id,
        ]
        for place, run in sorted(measurements.runs.items())
    ]
    headers = ["data set", "row", "execution", "batch", "replayed", "tensor peak B", "fingerprint", "run"]
    return markdown_table(headers, rows, left=3, last="left")


def _places(measurements: Measurements, dataset: str) -> list[tuple[Row, str, Place]]:
    return [
        (row, name, measurements.place(dataset, row.id, name))
        for row in measurements.claim.rows
        for name in measurements.executions_of(row)
    ]


def _peak(measurements: Measurements, place: Place, level: Level) -> str:
    peak = measurements.peak_bytes(place, level)
    return measurements.shown(place) if peak is None else mib(peak)


def _flops(measurements: Measurements, place: Place) -> int | None:
    run = measurements.runs.get(place)
    return None if run is None else run.flops_per_step


def _number(value: float | None, digits: int) -> str:
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def _error(error: float | None, quantity: Quantity) -> str:
    if error is None:
        return UNDEFINED
    return signed(error, 2) if quantity == "memory" else signed(100 * error, 1)
