"""What was predicted beside what was measured, and how far apart they are."""

from __future__ import annotations

from clmem.harness.specs.targets import allocator_of
from clmem.reports.data.grouping import Section
from clmem.reports.data.predictions import Predictions, error_of, predicted_bytes, workspaces_are_like
from clmem.reports.data.units import count, plural, signed
from clmem.reports.markdown.markup import plain
from clmem.reports.markdown.tables import markdown_table

AGAIN = "clmem predict --against DIRECTORY --keep"


def predictions_table(section: Section, predictions: Predictions) -> str:
    """Return predicted beside measured tensor peaks in bytes; empty where nothing was predicted."""
    rows = []
    for cell in section.cells:
        run = cell.memory
        if run is not None and run.allocator is not None and run.run_id in predictions:
            size = predicted_bytes(run, predictions)
            error = error_of(run, size)
            shown = "" if error is None else signed(100 * error, 4)
            rows.append([cell.label, count(size), count(run.allocator.peak_bytes), shown])
    return markdown_table(["method", "predicted bytes", "measured bytes", "error %"], rows) if rows else ""


def predictions_sentence(section: Section, predictions: Predictions) -> str:
    """Say how far predictions are from what was measured, whose is the farthest, and how many are of other runs."""
    runs = {cell.label: cell.memory for cell in section.cells if cell.memory is not None}
    errors = {
        label: error
        for label, run in runs.items()
        if (error := error_of(run, predicted_bytes(run, predictions))) is not None
    }
    others = [run for run in runs.values() if run.run_id in predictions and not predictions[run.run_id].is_of(run)]
    parts = []
    if errors:
        label, worst = max(errors.items(), key=lambda item: abs(item[1]))
        farthest = f"the largest error is {signed(100 * worst, 4)} % ({plain(label)})"
        parts.append(f"{plural(len(errors), 'peak')} predicted without running anything; {farthest}.")
        if allocator_of(section.setting.target) == "cuda":
            parts += dict.fromkeys(f"There {workspaces_are_like(runs[label])}." for label in errors)
    if others:
        parts.append(
            f"{plural(len(others), 'prediction')} {'is' if len(others) == 1 else 'are'} left out, because the file "
            f"does not say that the code, torch and vectors were those of the run; predict again with `{AGAIN}`."
        )
    return " ".join(parts) or "None of these runs can be predicted."
