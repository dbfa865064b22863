"""A claim's page in markdown, its object for `--json`, and what a terminal of 80 columns shows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from tabulate import tabulate

from clmem.harness.files import write_text
from clmem.harness.text import clean, file_name
from clmem.reports.claims import tables
from clmem.reports.claims.claim import Claim, Fix, FormulaLedger, Quantity
from clmem.reports.claims.measurements import Level, Measurements
from clmem.reports.claims.plots import draw_claim
from clmem.reports.claims.ratios_by_size import ratios_by_size_table
from clmem.reports.claims.sentences import verdict
from clmem.reports.data.units import UNDEFINED, listed, mib, plural
from clmem.reports.markdown.markup import LONGEST_AUTHORED, code, harmless, link, plain
from clmem.reports.markdown.provenance import environment_table
from clmem.reports.plots.folder import plots_folder

COLUMNS = 80


def write_page(claim: Claim, by_target: Sequence[Measurements], fixes: Sequence[Fix], out: Path) -> Path:
    """Write the page and its plots (in `plots/` beside it) into a folder, or to a path ending in `.md`; return it."""
    path = out if out.suffix == ".md" else out / f"{file_name(claim.name)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = draw_claim(claim, by_target, plots_folder(path))
    return write_text(path, page(claim, by_target, fixes, images))


def page(
    claim: Claim, by_target: Sequence[Measurements], fixes: Sequence[Fix] = (), images: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the page. fixes: the corrections to apply together (all when none is given).

    images: caption and name of each plot, whose PNG lies in `plots/`.
    """
    chosen = list(fixes) or claim.fixes
    parts = [
        f"# {harmless(claim.title)}",
        "\n".join(f"- {harmless(line)}" for line in verdict(claim, by_target, fixes)),
    ]
    parts += [f"![{plain(caption)}](plots/{link(name)}.png)" for caption, name in images]
    parts += [
        "## Published and recomputed",
        f"Source: {harmless(claim.source)}. MB = MiB = 2^20 bytes. "
        f"Names in formulas are those of {code(f'{claim.name}.toml')}.",
        "### Memory",
        tables.recomputed_table(claim, "memory"),
        "\n".join(harmless(f"- Class {kind}: cells that {meaning}.") for kind, meaning in claim.classes.items()),
        "### FLOPs of a whole run",
        tables.recomputed_table(claim, "flops"),
    ]
    if any(cells.class_il or cells.task_il for row in claim.rows for cells in row.published.values()):
        parts += ["### Published accuracy", tables.accuracy_table(claim)]
    if claim.fixes:
        named = "all of them" if len(chosen) == len(claim.fixes) else ", ".join(code(fix.id) for fix in chosen)
        parts += [
            "## What the paper's own arithmetic leaves out",
            "Each correction alone, in MB; where a row is a fit, what is corrected is the fit.",
            tables.fixes_table(claim),
            f"### Together: {named}",
            tables.corrected_table(claim, chosen),
            f"{harmless(_pair(claim))}: {tables.headline_ratio(claim):.2f} recomputed, "
            f"{tables.headline_ratio(claim, chosen):.2f} corrected.",
        ]
    if claim.notes:
        parts += ["## Notes", "\n".join(f"- {harmless(note)}" for note in claim.notes)]
    parts += ["### Ratios of the published cells"]
    for name, dataset in claim.datasets.items():
        parts += [f"{harmless(dataset.title)}:", tables.published_ratio_table(claim, name)]
    for measurements in by_target:
        parts += _measurements(claim, measurements)
    return "\n\n".join(part for part in parts if part) + "\n"


def short(claim: Claim, by_target: Sequence[Measurements]) -> list[str]:
    """Return what a report says of the claim: the verdict, and the measured peaks beside the published cells."""
    parts = [
        f"## A published claim: {harmless(claim.title)}",
        "\n".join(f"- {harmless(line)}" for line in verdict(claim, by_target)),
    ]
    parts += [tables.measured_table(measurements) for measurements in by_target]
    return [*parts, f"{code(f'clmem claims {claim.name}')} shows how every published cell comes about."]


def terminal(claim: Claim, by_target: Sequence[Measurements], fixes: Sequence[Fix]) -> str:
    """Return the verdict and the memory cells as text of at most 80 columns."""
    parts = [*_wrapped(claim.title), ""]
    for sentence in verdict(claim, by_target, fixes):
        parts += _wrapped(f"- {sentence}")
    headers = ["row (class)"]
    for dataset in claim.datasets.values():
        headers += [f"{clean(dataset.title)[:12]}\npublished", "\ncorrected" if fixes else "\nrecomputed"]
    rows = []
    for row in claim.rows:
        cells = [clean(f"{row.label} ({row.memory.kind})" if row.memory.kind else row.label)]
        for name in claim.datasets:
            published, _, _ = tables.recomputed(claim, row, "memory", name)
            value = FormulaLedger(claim, name, tuple(fixes)).value(row, "memory")
            cells += ["" if published is None else f"{published:.1f}", f"{value:.1f}"]
        rows.append(cells)
    align = ["left", *["right"] * (len(headers) - 1)]
    corrected = f", corrected by {', '.join(fix.id for fix in fixes)}" if fixes else ""
    parts += ["", *_wrapped(f"MB by the paper's own arithmetic{corrected}:"), ""]
    parts.append(tabulate(rows, headers, disable_numparse=True, colalign=align))
    if fixes:
        ratios = f"{tables.headline_ratio(claim):.2f} recomputed, {tables.headline_ratio(claim, fixes):.2f} corrected"
        parts += ["", *_wrapped(f"{_pair(claim)} on {claim.datasets[claim.headline.dataset].title}: {ratios}")]
    for measurements in by_target:
        for name, dataset in claim.datasets.items():
            about = (
                f"Tensor peak on {dataset.title} in MiB, measured on {measurements.target} ({UNDEFINED}: not run so):"
            )
            parts += ["", *_wrapped(about), "", _peaks(measurements, name)]
    return "\n".join(parts)


def _pair(claim: Claim) -> str:
    return " / ".join(claim.row(name).label for name in (claim.headline.larger, claim.headline.smaller))


def _peaks(measurements: Measurements, dataset: str) -> str:
    """Return the measured tensor peaks on one data set as text: a line per row, a column per execution."""
    rows = []
    for row in measurements.claim.rows:
        places = {name: measurements.place(dataset, row.id, name) for name in measurements.executions_of(row)}
        peaks = {
            name: mib(measurements.peak_bytes(place)) or measurements.shown(place) for name, place in places.items()
        }
        rows.append([clean(row.label), *(peaks.get(name, UNDEFINED) for name in measurements.executions)])
    align = ["left", *["right"] * len(measurements.executions)]
    return tabulate(rows, ["row", *measurements.executions], disable_numparse=True, colalign=align)


def claim_json(claim: Claim, by_target: Sequence[Measurements], fixes: Sequence[Fix]) -> dict[str, Any]:
    """Return every cell recomputed, every correction, every measured peak, and the verdict."""
    cells = []
    for row in claim.rows:
        for name in claim.datasets:
            for quantity in get_args(Quantity):
                published, value, error = tables.recomputed(claim, row, quantity, name)
                limit = getattr(claim.tolerance, quantity)
                cells.append(
                    {
                        "row": row.id,
                        "dataset": name,
                        "quantity": quantity,
                        "published": published,
                        "recomputed": value,
                        "error": error,
                        "within_tolerance": None if error is None else abs(error) <= limit + 1e-9,
                        "class": row.formula(quantity).kind or None,
                        "formula": row.formula(quantity).formula,
                    }
                )
    corrected = [
        {"row": row.id, "dataset": name, "memory": FormulaLedger(claim, name, tuple(fixes)).value(row, "memory")}
        for row in claim.rows
        for name in claim.datasets
        if fixes
    ]
    measured = [
        {
            "target": measurements.target,
            **{key: getattr(place, key) for key in place.__dataclass_fields__},
            "tensor_peak_bytes": measurements.peak_bytes(place),
            "process_peak_bytes": measurements.peak_bytes(place, "process"),
            "flops_per_step": run.flops_per_step,
            "run_id": run.run_id,
        }
        for measurements in by_target
        for place, run in sorted(measurements.runs.items())
    ]
    return {
        "claim": claim.name,
        "source": claim.source,
        "accuracy": [
            {"row": row.id, "dataset": name, **published.model_dump(include={"class_il", "task_il"})}
            for row in claim.rows
            for name, published in row.published.items()
        ],
        "headline": {
            **claim.headline.model_dump(),
            "recomputed": tables.headline_ratio(claim),
            "corrected": tables.headline_ratio(claim, fixes) if fixes else None,
        },
        "cells": cells,
        "fixes": [{"id": fix.id, "headline": tables.headline_ratio(claim, [fix])} for fix in claim.fixes],
        "applied": [fix.id for fix in fixes],
        "corrected": corrected,
        "measured": measured,
        "verdict": verdict(claim, by_target, fixes),
    }


def _measurements(claim: Claim, measurements: Measurements) -> list[str]:
    device = next(iter(measurements.runs.values())).environment.get("device") if measurements.runs else None
    parts = [f"## Measured on {plain(measurements.target)}" + (f" ({plain(str(device))})" if device else "")]
    conditions = claim.conditions
    own = [row.label for row in claim.rows if row.own_batches]
    parts += [
        f"{plain(conditions.network)} of width {conditions.width}, batch {conditions.batch_size}, buffer "
        f"{conditions.buffer_size}, replay {conditions.replay_size}, in float32. Tensor peak: the allocator's own, "
        "with nothing instrumented. Process peak: resident memory of the same run unobserved, which includes the "
        "interpreter and the libraries.",
        "Both runs of every ratio consumed the same batches, byte for byte (their fingerprints are below)"
        + (f"; {harmless(' and '.join(own))} alone have batches, or an order, of their own." if own else "."),
        tables.measured_table(measurements),
    ]
    levels: tuple[Level, ...] = get_args(Level)
    for name, dataset in claim.datasets.items():
        parts += [
            f"### {harmless(dataset.title)}: bytes by role at the tensor peak (MiB)",
            tables.roles_table(measurements, name),
        ]
        parts += [
            f"### {harmless(dataset.title)}: FLOPs",
            "Counted by torch.utils.flop_counter for one step of the last task that is measured; published and "
            "recomputed ones are of whole runs."
            + (
                " How many steps a run takes is not in a step's: the ratios of "
                f"{harmless(' and '.join(own))} do not compare."
                if own
                else ""
            ),
            tables.flops_table(measurements, name),
        ]
        for level in levels:
            parts += [
                f"### {harmless(dataset.title)}: ratios between peaks, {level} level",
                "The larger peak is of the same execution where its row has it, else plain.",
                tables.ratio_table(measurements, name, level),
            ]
    parts += [
        "### Over batch and replay sizes",
        f"Tensor peaks in plain execution; bold where {claim.headline.value:g} is reached. Remembered: "
        "the samples that a row holds of earlier batches.",
        ratios_by_size_table(measurements),
    ]
    if measurements.learnt:
        parts += [
            "### How the rows learn elsewhere",
            "Accuracy in percent, not under the claim's conditions: mean ± sample standard deviation over seeds. "
            "Seconds of training and evaluation on the full stream are rough, because processes ran side by side.",
        ]
    for section in measurements.learnt:
        parts += [f"{plain(section.setting.title)}:", tables.learning_table(measurements, section)]
    left_out = [f"{plural(number, 'run')} ({plain(why)})" for why, number in measurements.left_out.items()]
    parts += [
        "### Where these numbers come from",
        *([f"Not used, because these runs match no row of the claim: {listed(left_out)}."] if left_out else []),
        "Commits: "
        + ", ".join(f"{plain(commit)} ({number} runs)" for commit, number in measurements.commits().items())
        + ".",
        _folded("Runs", tables.provenance_table(measurements)),
        _folded("Environment", environment_table(list(measurements.runs.values()))),
    ]
    return parts


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(clean(text, LONGEST_AUTHORED), COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"
