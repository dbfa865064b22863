"""What was predicted beside what was measured: for each run the tensor peak, for CUDA's allocator too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from clmem.harness.errors import UsageError
from clmem.harness.files import read_text, write_json
from clmem.harness.memory.predicting.cards import card_of
from clmem.harness.results.footprint import ByName, Count, Record
from clmem.harness.results.record import LONGEST_PATH, Described, RunResult
from clmem.harness.text import Said, clean

FILE = "predictions.json"
"""Where `clmem predict --against DIRECTORY --keep` leaves what it found, for the directory's report."""

LIKE_ANOTHER_CARD = "cuDNN's workspaces are predicted as another card took them (docs/devices.md)"
"""What must be known of a prediction for CUDA, unless a card's own choices are known."""

LIKE_ITSELF = "cuDNN's workspaces are predicted as this card took them, shape by shape (docs/devices.md)"


def workspaces_are_like(run: RunResult) -> str:
    """Say how the workspaces of a run on CUDA are predicted."""
    known = card_of(run.environment.get("capability"), run.environment.get("cudnn"))
    return LIKE_ANOTHER_CARD if known is None else LIKE_ITSELF


DECIDES = ("torch", "vectors")
"""Parts of an environment that a prediction is made for."""


class Prediction(Record):
    """What was predicted for one run, and by which code, torch and vectors that run had been measured.

    predicted_bytes: None if the run cannot be predicted. code: None in files of older versions, which do not say.
    """

    predicted_bytes: Count | None
    code: ByName[Said] | None
    environment: Described = Field(default_factory=dict)

    def is_of(self, run: RunResult) -> bool:
        """Say whether it was made for this run, and not for one that was measured before under the same name."""
        return self.code == run.code and self.environment == _environment(run)


Predictions = Mapping[str, Prediction]
"""Predictions by run id."""


def save_predictions(directory: Path, runs: Sequence[RunResult], predicted: Sequence[int | None]) -> Path:
    """Write what was predicted for runs of a results directory into it; return the path."""
    kept = {
        run.run_id: Prediction(predicted_bytes=size, code=run.code, environment=_environment(run)).model_dump()
        for run, size in zip(runs, predicted, strict=True)
    }
    return write_json(directory / FILE, kept)


def _environment(run: RunResult) -> dict[str, object]:
    return {key: run.environment.get(key) for key in DECIDES}


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
    return {run_id: _read(path, run_id, entry) for run_id, entry in found.items()}


def _read(path: Path, run_id: str, entry: object) -> Prediction:
    """Return one prediction; files of older versions hold its bytes alone."""
    try:
        return Prediction.model_validate(entry if isinstance(entry, dict) else {"predicted_bytes": entry, "code": None})
    except (ValidationError, RecursionError) as error:
        shown = "nested values" if isinstance(entry, dict | list) else repr(entry)
        raise _refused(path, f"it says {shown} for {run_id}, which is no prediction") from error


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


def predicted_bytes(run: RunResult, predictions: Predictions) -> int | None:
    """Return the bytes that were predicted for a run; None where that is not known of this very run."""
    prediction = predictions.get(run.run_id)
    return prediction.predicted_bytes if prediction is not None and prediction.is_of(run) else None
