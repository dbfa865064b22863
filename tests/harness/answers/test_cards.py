"""Predictions for a card whose choices of algorithms are known, against what was measured on it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clmem.harness.answers.prediction import predict, predicted_peaks
from clmem.harness.memory.predicting.cards import Card, card_named, card_of, cards
from clmem.harness.memory.predicting.predicted import ShapeRecorder
from clmem.harness.memory.predicting.scratch import assuming_card
from clmem.harness.results.record import RunResult
from clmem.harness.specs.run import RunSpec

RESULTS = Path(__file__).parents[3] / "reports" / "published" / "h100" / "results.tar.gz"
H100 = ("9.0", 91900)
FEW = ("sgd--synthetic-cifar10", "lightcl--synthetic-cifar10", "lightcl-sparse@released--synthetic-cifar10",
       "head-only--synthetic-tinyimagenet")  # fmt: skip


def measured() -> Iterator[RunResult]:
    with tarfile.open(RESULTS) as tar:
        for name in sorted(tar.getnames()):
            file = tar.extractfile(name) if "--" in Path(name).name else None
            if file is not None:
                yield RunResult.model_validate_json(file.read())


def largest_error(runs: list[RunResult]) -> float:
    errors = []
    for run, predicted in zip(runs, predicted_peaks(runs), strict=True):
        assert run.allocator is not None
        assert predicted.peak_bytes is not None, predicted.reason
        errors.append(abs(predicted.peak_bytes / run.allocator.peak_bytes - 1))
    return max(errors)


def test_some_peaks_of_an_h100_are_predicted_within_a_third_of_a_percent() -> None:
    runs = [run for run in measured() if run.run_id.startswith(FEW)]
    assert len(runs) == len(FEW)
    assert largest_error(runs) < 0.0034


@pytest.mark.nightly
def test_every_peak_of_an_h100_is_predicted_within_a_third_of_a_percent() -> None:
    runs = list(measured())
    assert len(runs) == 36
    assert largest_error(runs) < 0.0034


def events(side: int, batch: int = 32, dtype: torch.dtype = torch.float32) -> list[int]:
    """Return what comes and goes in a convolution of 128 channels and its backward."""
    x = torch.empty(batch, 128, side, side, device="meta", dtype=dtype)
    weight = torch.empty(128, 128, 3, 3, device="meta", dtype=dtype)
    recorder = ShapeRecorder("cuda")
    recorder.start()
    out = torch.conv2d(x, weight, None, 1, 1)
    how = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    kept = torch.ops.aten.convolution_backward(out, x, weight, None, *how)
    found = [event.size_bytes for event in recorder.stop().events]
    assert len(kept) == 3
    return found


def test_a_shape_that_was_seen_takes_what_it_took() -> None:
    """As the history of the card's allocator has it: the forward by FFT, its gradient in tiles, Winograd's weight."""
    with assuming_card(card_of(*H100)):
        assert events(32) == [
            *(16777216, 692649984, -692649984),
            *(16777216, 142606336, -142606336, 589824, 77856768, -77856768),
        ]
        assert events(32, dtype=torch.float16) != events(32)


def test_a_shape_that_nobody_saw_is_predicted_by_rules() -> None:
    by_rule = events(24)
    with assuming_card(card_of(*H100)):
        assert events(24) == by_rule
        assert events(32, batch=33) != events(32)
    with assuming_card(None):
        assert events(24) == by_rule


@pytest.mark.parametrize(("capability", "cudnn"), [("9.0", 91800), ("8.7", 91900), (None, None), ("9.0", "91900")])
def test_another_card_or_release_is_not_taken_for_one_that_is_known(capability: object, cudnn: object) -> None:
    assert card_of(capability, cudnn) is None


def test_every_card_says_what_it_is() -> None:
    assert [(card.capability, card.cudnn) for card in cards()] == [H100]
    for card in cards():
        assert isinstance(card, Card)
        assert card.workspaces
        assert all(min(sizes) >= 0 for sizes in card.workspaces.values())


def test_a_prediction_for_a_card_says_what_nobody_saw_there() -> None:
    known = RunSpec(method="sgd", stream="synthetic-cifar10", target="cuda")
    with assuming_card(card_named("h100")):
        seen, unseen = predict(known), predict(known.model_copy(update={"batch_size": 9, "width": 4}))
    assert seen.notes == []
    assert (seen.environment["capability"], seen.environment["cudnn"]) == H100
    (note,) = unseen.notes
    assert "cuDNN was not seen on this card with" in note
    assert "capability" not in predict(known).environment
    assert seen.footprint is not None
    assert (seen.footprint.peak_bytes, seen.footprint.without_libraries_bytes) == (345_450_496, 225_563_648)
