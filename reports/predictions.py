"""What was predicted beside what was measured: for each run the tensor peak, for CUDA's allocator too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UsageError
from harness.files import read_text, write_json
from harness.results import LONGEST_PATH, RunResult
from harness.targets import allocator_of
from harness.text import clean
from reports.cells import Section
from reports.markup import plain
from reports.tables import markdown_table
from reports.units import count

FILE = "predictions.json"
"""Where `clmem predict --against DIRECTORY --keep` leaves what it found, for the directory's report."""

LIKE_ANOTHER_CARD = "cuDNN's workspaces are predicted as another card took them (docs/devices.md)"
"""What must be known of a prediction for CUDA."""

Predictions = Mapping[str, int | None]
"""Predicted bytes by run id, None where a run cannot be predicted."""


def save_predictions(directory: Path, predictions: Predictions) -> Path:
    """Write the predictions of a results directory into it; return the path."""
    return write_json(directory / FILE, dict(predictions))


def load_predictions(directory: Path) -> Predictions:
    """Read what was predicted for a results directory; empty where nothing was. Raises UsageError for another file."""
    path = directory / FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(read_text(path, "the predictions"))
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise _refused(path, "it holds no sizes by run id")
    for run_id, size in found.items():
        if size is not None and (type(size) is not int or not 0 <= size < 2**63):
            raise _refused(path, f"it says {size!r} for {run_id}, which is no number of bytes")
    return found


def _refused(path: Path, fault: str) -> UsageError:
    shown = clean(str(path), LONGEST_PATH)
    return UsageError(
        f"{shown} does not hold predictions: {clean(fault)}; delete it and predict again with `clmem predict --keep`"
    )


def error_of(run: RunResult, predicted_bytes: int | None) -> float | None:
    """Return predicted / measured - 1 of the tensor peak, None where one of them is not known."""
    if predicted_bytes is None or run.allocator is None or not run.allocator.peak_bytes:
        return None
    return predicted_bytes / run.allocator.peak_bytes - 1


def predictions_table(section: Section, predictions: Predictions) -> str:
    """Return predicted beside measured tensor peaks in bytes; empty where nothing was predicted."""
    rows = []
    for cell in section.cells:
        run = cell.memory
        if run is not None and run.allocator is not None and run.run_id in predictions:
            error = error_of(run, predictions[run.run_id])
            shown = "" if error is None else f"{100 * error:+.4f}"
            rows.append([cell.label, count(predictions[run.run_id]), count(run.allocator.peak_bytes), shown])
    return markdown_table(["method", "predicted bytes", "measured bytes", "error %"], rows) if rows else ""


def predictions_sentence(section: Section, predictions: Predictions) -> str:
    """Say how far predictions are from what was measured, and whose is the farthest."""
    errors = {
        cell.label: error
        for cell in section.cells
        if cell.memory is not None and (error := error_of(cell.memory, predictions.get(cell.memory.run_id))) is not None
    }
    if not errors:
        return "None of these runs can be predicted."
    label, worst = max(errors.items(), key=lambda item: abs(item[1]))
    text = (
        f"Predicted without running them: {len(errors)} peaks, the largest error {100 * worst:+.4f} % ({plain(label)})."
    )
    on_cuda = allocator_of(section.setting.target) == "cuda"
    return f"{text} There {LIKE_ANOTHER_CARD}." if on_cuda else text
