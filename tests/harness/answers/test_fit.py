"""The largest batch, or image, inside a budget."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clmem.harness.answers import fit as fitting
from clmem.harness.answers.fit import Fit, Point, fit
from clmem.harness.answers.prediction import predict
from clmem.harness.errors import UsageError
from clmem.harness.memory.predicting.caching import OutOfReservedError
from clmem.harness.specs.budgets import MIB
from clmem.harness.specs.run import RunSpec
from clmem.reports.terminal.fits import answer, fit_json, fit_table


def spec(**changes: Any) -> RunSpec:
    values = {"method": "sgd", "stream": "synthetic-cifar10", "width": 4, "target": "jetson", "budget": "60MiB"}
    return RunSpec(**{**values, "buffer_size": 8, "replay_size": 8, **changes})


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.one_of(st.none(), st.integers(-5, 900)), st.integers(0, 400), st.integers(1, 401))
def test_the_search_finds_the_last_that_fits_from_any_guess(last: int, guess: int | None, good: int, bad: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= last

    assert fitting._search(fits, lambda: guess, min(good, last), max(bad, last + 1)) == last
    assert len(set(tried)) == len(tried) <= 20


@pytest.mark.parametrize("target", ["cpu", "jetson"])
@pytest.mark.parametrize("budget", ["7MiB", "9MiB", "60MiB", "300MiB"])
@pytest.mark.usefixtures("affine")
def test_on_a_straight_line_few_predictions_are_enough(
    monkeypatch: pytest.MonkeyPatch, target: str, budget: str
) -> None:
    monkeypatch.setattr(fitting, "own_process_bytes", lambda spec, sources: 1_000_000)
    found = fit(spec(target=target, budget=budget), "batch")
    own = 1_000_000 if target == "cpu" else 0
    assert found.largest is not None
    assert found.largest.size == (found.limit_bytes - own - WEIGHTS) // PER_SAMPLE
    assert len(found.points) <= 6


PER_SAMPLE, WEIGHTS = 100_000, 5_000_000


@pytest.fixture
def affine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a straight line where a prediction takes a second; one test asks the prediction itself."""

    def side_of(spec: RunSpec) -> int:
        return spec.image_size or 32

    def record(spec: RunSpec, sources: Any = None) -> Any:
        return SimpleNamespace(log=SimpleNamespace(events=range(spec.batch_size + side_of(spec))))  # no two are alike

    def result_of(spec: RunSpec, recorded: Any, limit_bytes: int | None = None) -> Any:
        peak = WEIGHTS + PER_SAMPLE * spec.batch_size * side_of(spec) ** 2 // 1024
        if limit_bytes is not None and peak > limit_bytes:
            raise OutOfReservedError("full")
        reserved = None if spec.target == "cpu" else peak + 1
        return SimpleNamespace(footprint=SimpleNamespace(peak_bytes=peak, reserved_bytes=reserved))

    monkeypatch.setattr(fitting, "record", record)
    monkeypatch.setattr(fitting, "result_of", result_of)


def test_the_answer_fits_and_the_next_does_not() -> None:
    found = fit(spec(), "batch")
    assert found.largest is not None
    tried = {point.size: point.fits(found.limit_bytes) for point in found.points}
    assert tried[found.largest.size]
    assert not tried[found.largest.size + 1]
    assert len(tried) <= 6, "two logs say where to look"
    again = predict(spec(batch_size=found.largest.size)).footprint
    assert again is not None
    assert again.peak_bytes == found.largest.peak_bytes <= 60 * MIB


def test_a_method_whose_blocks_do_not_all_grow_with_the_batch_is_fitted_too() -> None:
    """SparCL selects by masks: what one of them leaves of a batch may be smaller in a larger one."""
    found = fit(spec(method="sparcl-derpp", budget="100MiB"), "batch")
    assert found.largest is not None
    tried = {point.size: point.fits(found.limit_bytes) for point in found.points}
    assert tried[found.largest.size]
    assert not tried[found.largest.size + 1]


@pytest.mark.usefixtures("affine")
def test_the_search_ends_where_the_smallest_task_has_no_more_images() -> None:
    found = fit(spec(stream="split-fashion-mini", budget="jetson-agx-thor"), "batch")
    assert found.largest is not None
    assert found.largest.size == 1000
    assert answer(found) == "Predicted: batch 1000 fits, and the smallest task has no more images."


@pytest.mark.usefixtures("affine")
def test_a_board_s_table_says_what_lies_in_its_memory_in_all() -> None:
    found = fit(spec(budget="jetson-nano-4gb"), "batch")
    row = next(line for line in fit_table(found, None).splitlines() if line.startswith("16 "))
    reserved, whole = (float(text.replace(",", "")) for text in row.split()[2:4])
    assert whole == pytest.approx(reserved + 500 + 678, abs=0.11)
    assert "with context and process: must stay within 3,156.0 MiB\n" in fit_table(found, None)


@pytest.mark.usefixtures("affine")
def test_on_the_cpu_the_process_itself_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "own_process_bytes", lambda spec, sources: 700_000_000)
    found = fit(spec(target="cpu", budget="800MB"), "batch")
    assert found.own_bytes == 700_000_000
    assert found.largest == Point(950, 100_000_000, 800_000_000)


@pytest.mark.slow
def test_a_process_takes_half_a_gib_beside_its_tensors() -> None:
    """The interpreter and torch's libraries: 0.5 to 1 GiB with every build of torch so far."""
    assert 200 * MIB < fitting.own_process_bytes(spec(target="cpu")) < 2048 * MIB


def test_another_side_leaves_the_classes_as_they_are() -> None:
    sized = fitting.sized(spec(stream="synthetic-tinyimagenet"), "side", 96)
    assert (sized.stream, sized.image_size) == ("synthetic-tinyimagenet", 96)


@pytest.mark.usefixtures("affine")
def test_images_grow_by_steps_of_eight_pixels() -> None:
    found = fit(spec(batch_size=8), "side")
    assert found.largest is not None
    assert found.largest.size % 8 == 0
    tried = {point.size: point.fits(found.limit_bytes) for point in found.points}
    assert tried[found.largest.size]
    assert not tried[found.largest.size + 8]


@pytest.mark.usefixtures("affine")
def test_a_method_that_does_not_fit_at_all_has_no_answer() -> None:
    found = fit(spec(budget="3MiB"), "batch")
    assert found.largest is None
    assert answer(found) == "Predicted: not even the smallest batch fits."


SMALL_MAPS = {"network": "resnet18-imagenet", "stream": "synthetic-32px"}


@pytest.mark.usefixtures("affine")
def test_a_batch_too_small_for_batch_norms_is_no_answer() -> None:
    found = fit(spec(budget="3MiB", **SMALL_MAPS), "batch")
    assert found.largest is None
    assert min(point.size for point in found.points) == 2


@pytest.mark.usefixtures("affine")
def test_images_too_small_for_batch_norms_are_passed_over() -> None:
    found = fit(spec(batch_size=1, replay_size=1, budget="60MiB", **SMALL_MAPS), "side")
    assert found.largest is not None
    assert found.points[0].size > 32


@pytest.mark.usefixtures("affine")
def test_a_replay_too_small_at_every_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="replay size 1"):
        fit(spec(method="derpp", replay_size=1, **SMALL_MAPS), "batch")


@pytest.mark.usefixtures("affine")
def test_a_search_that_ends_at_its_own_bound_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fitting.LARGEST, "batch", 40)
    found = fit(spec(), "batch")
    assert found.capped
    assert answer(found) == "Predicted: batch 40 fits, and larger ones were not tried."


@pytest.mark.parametrize(
    ("changes", "axis", "message"),
    [
        ({"budget": None}, "batch", "needs a budget"),
        ({"stream": "split-fashion-mini"}, "side", "images of one size"),
        ({"execution": "autocast=bfloat16"}, "batch", "cannot be predicted"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict[str, Any], axis: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(spec(**changes), axis)


def test_the_table_shows_what_is_deducted_and_every_prediction() -> None:
    points = [Point(16, 30 * MIB, 40 * MIB), Point(33, 50 * MIB, 60 * MIB), Point(34, None, None)]
    board = fitting.budget("jetson-orin-nano-8gb")
    found = Fit(
        spec(budget=board.name), "batch", board, board.tensors_bytes, 0, points[1], points, capped=False, images=None
    )
    text = fit_table(found, None)
    assert "less system 800.0, context 500.0, process 678.0" in " ".join(text.split())
    assert "Predicted: batch 33 is the largest that fits." in text
    assert max(map(len, text.splitlines())) <= 80
    assert "buffer" in text
    assert "buffer" not in fit_table(found, None, uses_buffer=False)
    shown = json.loads(json.dumps(fit_json(found, None)))
    assert (shown["largest"], shown["limit_bytes"], shown["measured"]) == (33, board.tensors_bytes, None)
    assert [point["fits"] for point in shown["points"]] == [True, True, False]
