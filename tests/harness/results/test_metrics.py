"""Metrics against matrices worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmem.harness.results.metrics import (
    accuracy,
    backward_transfer,
    forgetting_first,
    forgetting_max_previous,
    forward_transfer,
    matrix_metrics,
    scenario_metrics,
)
from clmem.harness.results.record import Accuracy

# Task 0 improves once more before it is forgotten, so the two kinds of forgetting differ.
FORGETS = [
    [0.80, 0.10, 0.20],
    [0.90, 0.70, 0.30],
    [0.50, 0.60, 0.95],
]
# Learning later tasks helps the earlier ones.
IMPROVES = [
    [0.60, 0.50],
    [0.75, 0.90],
]


def test_forgetting_matrix_by_hand() -> None:
    assert matrix_metrics(FORGETS, untrained=[0.5, 0.05, 0.1]) == pytest.approx(
        {
            "accuracy": (0.50 + 0.60 + 0.95) / 3,
            "forgetting_max_previous": ((0.90 - 0.50) + (0.70 - 0.60)) / 2,
            "forgetting_first": ((0.80 - 0.50) + (0.70 - 0.60)) / 2,
            "backward_transfer": -((0.80 - 0.50) + (0.70 - 0.60)) / 2,
            "forward_transfer": ((0.10 - 0.05) + (0.30 - 0.10)) / 2,
        }
    )


def test_positive_backward_transfer_is_negative_forgetting() -> None:
    assert backward_transfer(IMPROVES) == pytest.approx(0.15)
    assert forgetting_first(IMPROVES) == pytest.approx(-0.15)
    assert forgetting_max_previous(IMPROVES) == pytest.approx(-0.15)


def test_the_maximum_counts_evaluations_before_the_task_was_learnt() -> None:
    matrix = [[0.9, 0.8, 0.1], [0.9, 0.7, 0.1], [0.9, 0.6, 0.9]]
    assert forgetting_max_previous(matrix) == pytest.approx(((0.9 - 0.9) + (0.8 - 0.6)) / 2)


def test_tasks_ahead_need_not_be_evaluated() -> None:
    matrix = [[0.8, None, None], [0.9, 0.7, None], [0.5, 0.6, 0.95]]
    assert forgetting_max_previous(matrix) == pytest.approx(0.25)
    assert set(matrix_metrics(matrix, untrained=[0.5, 0.5, 0.5])) == {
        "accuracy",
        "forgetting_max_previous",
        "forgetting_first",
        "backward_transfer",
    }


def test_joint_run_defines_accuracy_only() -> None:
    assert matrix_metrics([[0.8, 0.6, 0.7]], untrained=[0.1, 0.1, 0.1]) == {"accuracy": pytest.approx(0.7)}


def test_one_task_defines_accuracy_only() -> None:
    assert matrix_metrics([[0.8]], untrained=[0.5]) == {"accuracy": 0.8}


def test_missing_entry_makes_a_metric_absent_not_zero() -> None:
    assert matrix_metrics([[None, 0.1], [0.5, 0.9]], untrained=[0.5, 0.5]) == pytest.approx(
        {"accuracy": 0.7, "forward_transfer": -0.4}
    )
    assert "accuracy" not in matrix_metrics([[0.5, 0.1], [None, 0.9]])
    assert matrix_metrics([[None, None], [0.5, 0.9]]) == {"accuracy": 0.7}
    assert forgetting_max_previous([[0.5, None, None], [None, 0.5, None], [0.5, 0.5, 0.5]]) is None


def test_run_that_stopped_early_defines_nothing() -> None:
    assert matrix_metrics([[0.8, 0.1, 0.1], [0.7, 0.6, 0.1]], untrained=[0.1, 0.1, 0.1]) == {}


def test_missing_untrained_accuracies_leave_out_forward_transfer() -> None:
    assert forward_transfer(FORGETS, None) is None


def test_scenario_is_part_of_the_name_and_a_missing_scenario_is_left_out() -> None:
    run = Accuracy(class_il=None, task_il=IMPROVES, untrained_class_il=None, untrained_task_il=[0.5, 0.4])
    assert scenario_metrics(run) == pytest.approx(
        {
            "task_il_accuracy": 0.825,
            "task_il_forgetting_max_previous": -0.15,
            "task_il_forgetting_first": -0.15,
            "task_il_backward_transfer": 0.15,
            "task_il_forward_transfer": 0.1,
        }
    )


@pytest.mark.parametrize(
    ("matrix", "named"),
    [
        ([], "empty"),
        ([[]], "empty"),
        ([[0.5, 0.5], [0.5]], r"\[2, 1\]"),
        ([[0.5], [0.5]], "at most T"),
        ([[71.2]], "71.2"),
        ([[1.001]], "1.001"),
        ([[-0.001]], "-0.001"),
    ],
)
def test_malformed_matrix_is_refused_by_name(matrix: list[list[float | None]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        accuracy(matrix)


def test_untrained_accuracies_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="untrained has 2"):
        forward_transfer(FORGETS, [0.1, 0.1])


square = st.integers(2, 6).flatmap(
    lambda tasks: st.lists(
        st.lists(st.floats(0.0, 1.0), min_size=tasks, max_size=tasks), min_size=tasks, max_size=tasks
    )
)


@given(square)
def test_forgetting_since_the_maximum_is_at_least_forgetting_since_first(matrix: list[list[float | None]]) -> None:
    first, most, transfer = forgetting_first(matrix), forgetting_max_previous(matrix), backward_transfer(matrix)
    assert None not in (first, most, transfer)
    assert most >= first
    assert first == -transfer
    assert -1.0 <= first <= most <= 1.0


@given(square)
def test_a_network_that_never_changes_forgets_nothing(matrix: list[list[float | None]]) -> None:
    still = [matrix[0]] * len(matrix)
    assert forgetting_first(still) == 0.0
    assert forgetting_max_previous(still) == 0.0
