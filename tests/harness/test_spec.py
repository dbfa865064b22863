"""Run specs: hashable, order-free, and an id that changes with any field."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.spec import RunSpec


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
