"""Statements about methods are held against the numbers, and say so when they do not hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clmem.harness.results.record import RunResult
from clmem.reports.data.grouping import sections
from clmem.reports.markdown.expectations import expectations_sentence, expectations_table

MakeRun = Callable[..., RunResult]


def outcomes(runs: list[RunResult]) -> dict[str, str]:
    """Return {statement: outcome} as the report shows them."""
    (section,) = sections(runs)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in expectations_table(section).splitlines()]
    return {row[0]: row[2] for row in rows[2:]}


def matrix(*last: float) -> list[list[float | None]]:
    """Return a matrix of two tasks that ends with these accuracies, from .95 on the first."""
    return [[0.95, 0.0], list(last)]


@pytest.mark.parametrize(("er", "outcome"), [(0.9, "holds"), (0.11, "**does not hold**")])
def test_replay_must_be_clearly_above_plain_training(accuracy_run: MakeRun, er: float, outcome: str) -> None:
    runs = [accuracy_run("sgd", seed, matrix(0.1 * seed, 0.9), matrix(0.5, 0.9)) for seed in (0, 1)]
    runs += [accuracy_run("er", seed, matrix(er, 0.9), matrix(0.5, 0.9)) for seed in (0, 1)]
    assert outcomes(runs)["er clearly above sgd, class-IL (by more than both deviations)"] == outcome


@pytest.mark.parametrize(
    ("ewc", "outcome", "shown"),
    [
        # sgd keeps 50, 70 and 90 % of the first of two tasks: its seeds differ by more than the two methods do
        ((0.6, 0.82, 1.0), "holds", "(+5.3 ± 0.3 over 3 seeds)"),
        ((0.6, 0.7, 0.8), "not shown", "(+0.0 ± 2.9 over 3 seeds)"),
        ((0.4, 0.6, 0.8), "**does not hold**", "(-5.0 ± 0.0 over 3 seeds)"),
    ],
)
def test_methods_are_compared_seed_by_seed(
    accuracy_run: MakeRun, ewc: tuple[float, ...], outcome: str, shown: str
) -> None:
    runs = [accuracy_run("sgd", seed, None, matrix(0.5 + 0.2 * seed, 0.9)) for seed in (0, 1, 2)]
    runs += [accuracy_run("ewc", seed, None, matrix(last, 0.9)) for seed, last in enumerate(ewc)]
    assert outcomes(runs) == {"ewc above sgd, task-IL": outcome}
    told = "0 of 1 expectation hold. 1 is not shown" if outcome.startswith("not") else "of 1 expectation hold"
    assert told in expectations_sentence(*sections(runs))
    (found,) = [line for line in expectations_table(*sections(runs)).splitlines() if "ewc above" in line]
    assert shown in found


def test_pairs_that_learnt_on_two_processors_are_counted(accuracy_run: MakeRun) -> None:
    runs = [accuracy_run(name, seed, None, matrix(0.5, 0.9)) for name in ("sgd", "ewc") for seed in (0, 1, 2)]
    for run in runs[1:4]:  # sgd's seeds 1 and 2, ewc's seed 0
        run.environment["vectors"] = "AVX512"
    (found,) = [line for line in expectations_table(*sections(runs)).splitlines() if "ewc above" in line]
    assert "over 3 seeds, 3 of them on two processors)" in found


@pytest.mark.parametrize(("lightcl", "outcome"), [(0.9, "holds"), (0.2, "**does not hold**")])
def test_a_regulariser_must_forget_less_than_its_control(accuracy_run: MakeRun, lightcl: float, outcome: str) -> None:
    lasts = {"lightcl": lightcl, "tail-sgd": 0.5}
    runs = [accuracy_run(name, seed, None, matrix(last, 0.9)) for name, last in lasts.items() for seed in (0, 1, 2)]
    assert outcomes(runs) == {"lightcl forgets less than tail-sgd, task-IL": outcome}


@pytest.mark.parametrize(("last", "outcome"), [(0.9, "holds"), (0.8, "**does not hold**")])
def test_a_network_of_columns_must_forget_nothing(accuracy_run: MakeRun, last: float, outcome: str) -> None:
    runs = [accuracy_run("pnn", 0, None, [[0.9, 0.5], [last, 0.95]])]
    assert outcomes(runs) == {"pnn forgets nothing at all, task-IL": outcome}


@pytest.mark.parametrize(("joint", "outcome"), [(0.93, "holds"), (0.6, "**does not hold**")])
def test_joint_training_must_be_the_best(accuracy_run: MakeRun, joint: float, outcome: str) -> None:
    runs = [
        run
        for seed in (0, 1, 2)
        for run in (
            accuracy_run("joint", seed, [[joint, joint]], [[joint, joint]], fingerprint=f"a{seed}", joint=True),
            accuracy_run("er", seed, matrix(0.8, 0.9), matrix(0.8, 0.9)),
        )
    ]
    expected = {f"joint has the highest accuracy, {name}": outcome for name in ("class-IL", "task-IL")}
    assert outcomes(runs) == expected
    assert set(outcomes(runs[:4]).values()) == {"not shown"}, "two seeds do not compare"


@pytest.mark.parametrize(("replay", "outcome"), [(0.5, "holds"), (0.25, "**does not hold**")])
def test_the_peak_of_fdr_is_that_of_sgd_and_its_buffer(memory_run: MakeRun, replay: float, outcome: str) -> None:
    runs = [memory_run("sgd", {"input": 1.0}), memory_run("fdr", {"input": 1.25 - replay + 0.25, "replay": replay})]
    assert outcomes(runs) == {"fdr's peak is sgd's plus its buffer": outcome}
    larger = [run.model_copy(update={"spec": run.spec.model_copy(update={"replay_size": 32})}) for run in runs]
    assert outcomes(larger) == {}, "a second step on as many images as the batch has is the larger one"


@pytest.mark.parametrize(("er", "outcome"), [(2.0, "holds"), (3.0, "**does not hold**")])
def test_peaks_must_fall_in_the_order_that_is_expected(memory_run: MakeRun, er: float, outcome: str) -> None:
    runs = [memory_run(name, {"input": size}) for name, size in (("derpp", 3.0), ("er", er), ("sgd", 1.0))]
    assert outcomes(runs) == {"derpp holds more than er, er more than sgd": outcome}


def test_nothing_is_said_of_methods_that_are_absent_or_there_twice(memory_run: MakeRun) -> None:
    runs = [memory_run("er", {"input": 1.0}), memory_run("sparcl-er", {"input": 2.0})]
    twice = memory_run("sparcl-er", {"input": 3.0}, config={"sparsity": 0.5})
    assert set(outcomes(runs).values()) == {"holds"}
    assert outcomes([*runs, twice]) == {}
    assert expectations_sentence(*sections([*runs, twice])) == ""
    assert expectations_sentence(*sections(runs)) == "1 of 1 expectation holds."


def test_one_seed_does_not_make_it_clear(accuracy_run: MakeRun) -> None:
    runs = [accuracy_run(name, 0, matrix(old, 0.9), matrix(0.5, 0.9)) for name, old in (("sgd", 0.1), ("er", 0.9))]
    assert not any(statement.startswith("er clearly") for statement in outcomes(runs))


def test_peaks_that_look_equal_in_mib_are_shown_in_bytes(memory_run: MakeRun) -> None:
    runs = [memory_run("er", {"input": 1.0}), memory_run("sparcl-er", {"input": 1.0, "method_state": 0.001})]
    (section,) = sections(runs)
    assert "1,049,624, 1,048,576 B" in expectations_table(section)
