"""Run specs: hashable, order-free, and an id that changes with any field."""

from __future__ import annotations

import hashlib
import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.specs.run import RunSpec, Scalar, spec_errors, weights_label


def test_settings_in_another_order_are_the_same_run() -> None:
    one = RunSpec(method="derpp", config={"alpha": 0.1, "beta": 0.5})
    two = RunSpec(method="derpp", config={"beta": 0.5, "alpha": 0.1})
    assert one.run_id == two.run_id
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "er"},
        {"config": {"lr": 0.1}},
        {"stream": "split-cifar10"},
        {"width": 16},
        {"batch_size": 8},
        {"buffer_size": 1},
        {"replay_size": 1},
        {"epochs": 2},
        {"steps_per_task": 3},
        {"seed": 1},
        {"measure": "accuracy"},
        {"num_classes": 100},
        {"image_size": 64},
    ],
)
def test_every_field_changes_the_run_id(change: dict[str, object]) -> None:
    spec = RunSpec(method="sgd")
    assert RunSpec(**{**spec.model_dump(), **change}).run_id != spec.run_id


def test_memory_and_accuracy_runs_of_one_setting_share_a_cell() -> None:
    memory = RunSpec(method="er", measure="memory")
    accuracy = RunSpec(method="er", measure="accuracy", seed=3, epochs=5, steps_per_task=20)
    assert memory.cell() == accuracy.cell()
    assert memory.cell() != RunSpec(method="er", batch_size=8).cell()


@pytest.mark.parametrize("field", [{"batch_size": 0}, {"seed": -1}, {"width": 0}, {"colour": "red"}])
def test_impossible_values_and_unknown_keys_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RunSpec(method="sgd", **field)


@pytest.mark.parametrize("value", [True, 64.0, "64", None, 10**30, float("nan")])
@pytest.mark.parametrize("name", ["width", "batch_size", "buffer_size", "replay_size", "epochs", "seed"])
def test_a_count_is_an_integer_that_torch_can_carry(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        RunSpec(method="sgd", **{name: value})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2**63, "a\nb", "a\0b", "x" * 1000, None, [1]])
def test_a_setting_is_a_finite_number_or_a_line_of_text(value: object) -> None:
    with pytest.raises(ValidationError, match="it should be"):
        RunSpec(method="sgd", config={"lr": value})


def test_the_largest_seed_is_one_that_every_generator_takes() -> None:
    with pytest.raises(ValidationError, match="seed"):
        RunSpec(method="sgd", seed=2**64)
    run = build(RunSpec(method="er", seed=2**64 - 1, width=1, stream="synthetic-8px"), Unwatched())
    assert len(run.stream.train_task(0).batch(0, 0).labels) == 32
    run.method.context.new_network(1)


SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(max_size=9), SCALARS | st.text("abc @/é", max_size=9), max_size=3), st.integers(0, 9))
def test_what_a_spec_accepts_comes_back_from_json(config: dict[str, Scalar], seed: int) -> None:
    spec = RunSpec(method="sgd", config=config, seed=seed)
    again = RunSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.run_id == spec.run_id
    assert {key: type(value) for key, value in again.config.items()} == {key: type(v) for key, v in config.items()}


@given(st.text(max_size=200).filter(str.isprintable), st.text(max_size=200).filter(str.isprintable))
def test_a_run_id_is_the_name_of_a_file_whatever_is_run(method: str, stream: str) -> None:
    name = RunSpec(method=method, stream=stream).run_id
    assert Path(name).name == name
    assert not name.startswith(".")
    assert len(name.encode()) < 200


def test_a_hundred_mistakes_are_still_one_sentence() -> None:
    with pytest.raises(ValidationError) as caught:
        RunSpec(method="x" * 10**6, **{f"unknown{number}": number for number in range(100)})
    sentence = spec_errors(caught.value, RunSpec.model_fields)
    assert sentence.endswith("and 96 more")
    assert len(sentence) < 1500


def test_weights_are_labelled_by_content_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a" / "w.pt", tmp_path / "b" / "w.pt"
    for path in (first, second):
        path.parent.mkdir()
        path.write_bytes(b"values" * 10**6)
    monkeypatch.setenv("HOME", str(first.parent))
    label = weights_label(str(first))
    assert label == weights_label(second) == weights_label("~/w.pt")
    assert label == "w.pt@" + hashlib.sha256(b"values" * 10**6).hexdigest()[:12]
    second.write_bytes(b"others" * 10**6)
    assert weights_label(second) != label


def test_weights_are_never_held_whole_to_be_labelled(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(bytes(2**25))
    tracemalloc.start()
    try:
        weights_label(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "missing"])
def test_weights_that_are_no_regular_file_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listening.bind(str(path))
        elif kind == "device":
            path = Path("/dev/zero")
        with pytest.raises(UsageError, match=r"cannot read the weights file .*; give the path of a file"):
            weights_label(path)
