"""A directory of results as one markdown report with plots beside it; the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clmem.harness.errors import UsageError
from clmem.harness.files import write_text
from clmem.harness.results.record import LONGEST_PATH, RunResult
from clmem.harness.text import clean
from clmem.reports.claims.claim import claim_names, load_claim
from clmem.reports.claims.measurements import measurements_of
from clmem.reports.claims.page import short
from clmem.reports.data.executions import without_steps_between
from clmem.reports.data.grouping import Section
from clmem.reports.data.load import load_sections
from clmem.reports.data.predictions import Predictions, load_predictions
from clmem.reports.data.provenance import broken_checks
from clmem.reports.data.units import UNDEFINED, plural
from clmem.reports.markdown import provenance, sentences, tables
from clmem.reports.markdown.executions import execution_sentence, execution_table
from clmem.reports.markdown.expectations import expectations_sentence, expectations_table
from clmem.reports.markdown.lean_accuracy import lean_accuracy_sentence, lean_accuracy_table
from clmem.reports.markdown.markup import cell_text, harmless, link, plain
from clmem.reports.markdown.predictions import predictions_sentence, predictions_table
from clmem.reports.plots.folder import plots_folder
from clmem.reports.plots.section import Kind, Plot, draw_section

NOTES = f"""- MiB = 2^20 bytes.
- Tensor peak: the allocator's own peak over all phases and tasks of the short schedule, with nothing instrumented.
- Process peak: resident memory of a process that nothing observes, with the interpreter and the libraries. On the \
short schedule malloc returns freed blocks to the system at once; on the full stream it keeps its defaults.
- Accuracy and forgetting: mean over seeds ± sample standard deviation.
- {UNDEFINED}: not defined for the method. Empty: not measured.
- A joint run learns all tasks at once. On a short schedule it need not reach the highest accuracy."""


def write_report(
    directory: Path, out: Path | None = None, plots: bool = True, progress: Callable[[str], None] | None = None
) -> Path:
    """Write `report.md`, and its plots in `plots/` beside it, from the results in `directory`; return its path.

    out: the folder to write into (made if missing), or a file whose name ends in `.md`; `directory` by default.
    progress: called with the caption of each plot before it is drawn, which takes about a second. Every file
    appears whole under its name, the report last. Raises UsageError on a directory without results and on results
    that cannot share a table, and where nothing can be written.
    """
    sections = load_sections(directory)
    path = directory / "report.md" if out is None else out if out.suffix == ".md" else out / "report.md"
    folder = plots_folder(path)
    drawn: dict[str, list[Plot]] = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if plots:
            drawn = {section.setting.slug: draw_section(section, folder, progress) for section in sections}
        return write_text(path, report_text(sections, drawn, load_predictions(directory)))
    except OSError as error:
        raise UsageError(
            f"the report cannot be written to {clean(str(path), LONGEST_PATH)} ({error.strerror or error}); "
            "give a folder that you can write to with --out"
        ) from error


def report_text(
    sections: list[Section], plots: dict[str, list[Plot]] | None = None, predictions: Predictions | None = None
) -> str:
    """Return the report. plots: for each section's slug, its plots, which lie in a folder `plots` beside the report.
    predictions: tensor peaks that were predicted, by run.
    """
    runs = list({run.run_id: run for section in sections for run in section.runs}.values())
    parts = ["# Memory of continual-learning methods"]
    broken = [line for section in sections for line in broken_checks(section)]
    if broken:
        warning = f"**{plural(len(broken), 'check').upper()} BROKEN: do not quote these numbers.**"
        parts.append("\n".join([f"> {warning}", ">", *(f"> - {cell_text(line)}" for line in broken)]))
    parts += [_overview(sections, runs), NOTES]
    for section in sections:
        parts += _section(section, (plots or {}).get(section.setting.slug, []), predictions or {})
    parts += _claims(runs)
    failed = provenance.failed_table(runs)
    if failed:
        parts += ["## Failed runs", sentences.failed_sentence(runs), failed]
    parts += ["## Fingerprints", sentences.fingerprint_sentence(runs), provenance.fingerprint_table(runs)]
    environment = provenance.environment_table(runs)
    parts += ["## Environment", sentences.environment_sentence(runs), environment]
    said = provenance.notes(runs)
    if said:
        parts += ["## Notes of the runs", "None of these moved a number.", said]
    return "\n\n".join(part for part in parts if part) + "\n"


def _overview(sections: list[Section], runs: list[RunResult]) -> str:
    methods = len({run.spec.method for run in runs})
    text = f"{plural(len(runs), 'run')} of {plural(methods, 'method')} under {plural(len(sections), 'setting')}."
    if len(sections) == 1:
        return text
    return "\n".join([text, "", *(f"- {plain(section.setting.title)}" for section in sections)])


def _section(whole: Section, plots: list[Plot], predictions: Predictions) -> list[str]:
    section = without_steps_between(whole)
    parts = [f"## {plain(section.setting.title)}", sentences.headline_sentence(section), tables.headline_table(section)]
    left_out = len(whole.cells) - len(section.cells)
    if left_out:
        parts.append(f"{plural(left_out, 'execution')} between plain and lean: under Execution alone.")
    parts.append(sentences.heads_sentence(section))
    parts += _images(plots, "roles", "accuracy")
    expected = expectations_table(section)
    if expected:
        parts += ["### Expected and found", expectations_sentence(section), expected]
    both = lean_accuracy_table(section)
    if both:
        parts += ["### Lean against plain, mean difference ± standard error", lean_accuracy_sentence(section), both]
    if section.measured:
        parts += ["### Roles at the peak (MiB)", sentences.role_sentence(section), tables.role_table(section)]
        parts.append(provenance.sum_check(whole))
        parts.append(_details("Roles at the peak in bytes, and the sum check", tables.role_bytes_table(section)))
        parts.append(_details("Each role's own peak (MiB)", tables.role_peak_table(section)))
        carried_out = execution_table(whole)
        if carried_out:
            parts += ["### Execution: released, plain, step by step to lean (MiB)", execution_sentence(whole)]
            parts += [carried_out, *_images(plots, "execution")]
        parts += ["### Phases (peak MiB)", sentences.phase_sentence(section), tables.phase_table(section)]
        parts.append(_details("Every task and phase (peak MiB, nothing instrumented)", tables.task_table(section)))
        libraries = tables.library_table(section)
        if libraries:
            parts += ["### Peaks with and without libraries' workspaces (MiB)", libraries]
        workspace = tables.workspace_table(section)
        if workspace:
            parts += ["### Workspace at the peak, by operation", sentences.workspace_sentence(section)]
            held = ((cell.label, sentences.held_sentence(footprint)) for cell, _, footprint in section.measured)
            parts += [f"{plain(label)}: {sentence}" for label, sentence in held if sentence]
            parts.append(_details("Operations", workspace))
    predicted = predictions_table(whole, predictions)
    if predicted:
        parts += ["### Predicted tensor peaks", predictions_sentence(whole, predictions)]
        parts.append(_details("Every prediction", predicted))
    parts.append(_details("Live bytes over time, by role", *_images(plots, "timeline")))
    process = tables.process_table(section)
    if process:
        parts += ["### Process level", sentences.process_sentence(section)]
        parts.append(_details("Every process", process, *_images(plots, "process")))
    caching = tables.caching_table(section)
    if caching:
        parts.append(_details("The caching allocator's own counts, each at its own peak", caching))
    boards = [
        f"- {plain(cell.label)}: {sentences.board_sentence(run.process.unified)}"
        for cell in section.cells
        for run in (cell.memory, *cell.accuracy)
        if run is not None and run.process is not None and run.process.unified is not None
    ]
    if boards:
        parts.append(_details("The board's memory", "\n".join(boards)))
    work = tables.time_table(section)
    if work:
        parts.append(_details("Work and time", sentences.time_sentence(), work))
    parts.append(_details("Hyper-parameters and execution", provenance.settings_table(section)))
    return parts


def _claims(runs: list[RunResult]) -> list[str]:
    """Return what the runs say of every published claim whose headline they measure."""
    parts: list[str] = []
    for claim in map(load_claim, claim_names()):
        try:
            measured = [measurements for measurements in measurements_of(claim, runs) if measurements.has_headline]
        except UsageError as error:
            said = str(error)
            for run in runs:  # a report reads the same wherever its results lie
                said = said.replace(run.where, run.run_id)
            parts += [f"## A published claim: {harmless(claim.title)}", f"Not compared with the claim: {plain(said)}."]
            continue
        if measured:
            parts += short(claim, measured)
    return parts


def _images(plots: list[Plot], *kinds: Kind) -> list[str]:
    """Return the plots of some kinds as images."""
    return [f"![{plain(plot.caption)}](plots/{link(plot.png.name)})" for plot in plots if plot.kind in kinds]


def _details(summary: str, *parts: str) -> str:
    """Return a folded part, or nothing when it is empty; the blank lines make a code host render the markdown in it."""
    content = "\n\n".join(part for part in parts if part)
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>" if content else ""
