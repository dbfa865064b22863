"""Runs that did not learn from the same data are refused a common table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult, save_result
from clmem.reports.data.load import check_same_data, load_sections

MakeRun = Callable[..., RunResult]
ROWS = [[0.9, 0.1], [0.5, 0.9]]


def test_the_example_is_accepted(tmp_path: Path, example_runs: list[RunResult]) -> None:
    for run in example_runs:
        save_result(tmp_path, run)
    (section,) = load_sections(tmp_path)
    assert {run.run_id for run in section.runs} == {run.run_id for run in example_runs}


def test_accuracy_runs_on_different_batches_are_refused(accuracy_run: MakeRun) -> None:
    one, other = accuracy_run("sgd", 0, ROWS, ROWS), accuracy_run("er", 0, ROWS, ROWS, fingerprint="0123")
    with pytest.raises(UsageError, match=f"fingerprint differs: beef0 in {one.run_id} but 0123 in {other.run_id}"):
        check_same_data([one, other])


def test_memory_runs_on_different_batches_are_refused(memory_run: MakeRun) -> None:
    with pytest.raises(UsageError, match=r"fingerprint differs: f00d .* but 0123"):
        check_same_data([memory_run("sgd", {}), memory_run("er", {}, fingerprint="0123")])


def test_a_method_measured_over_all_tasks_has_batches_of_its_own(memory_run: MakeRun) -> None:
    check_same_data([memory_run("sgd", {}), memory_run("pnn", {}, tasks=5, fingerprint="0123")])


@pytest.mark.parametrize(
    "changed", [{"batch_size": 8}, {"epochs": 3}, {"steps_per_task": 5}, {"stream": "split-cifar100"}]
)
def test_runs_that_are_not_comparable_may_differ(accuracy_run: MakeRun, changed: dict[str, object]) -> None:
    check_same_data(
        [accuracy_run("sgd", 0, ROWS, ROWS), accuracy_run("er", 0, ROWS, ROWS, fingerprint="0123", **changed)]
    )


def test_different_data_is_refused_also_of_joint_runs(accuracy_run: MakeRun) -> None:
    joint = accuracy_run("joint", 0, [[0.9, 0.9]], None, fingerprint="0123", data_digest="bad")
    with pytest.raises(UsageError, match=r"data_digest differs: da7a .* but bad"):
        check_same_data([accuracy_run("sgd", 0, ROWS, ROWS), joint])


def test_a_joint_run_has_an_order_of_its_own_in_both_measures(memory_run: MakeRun, accuracy_run: MakeRun) -> None:
    joint = [
        memory_run("joint", {}, fingerprint="1", joint=True),
        accuracy_run("joint", 0, [[0.9, 0.9]], None, fingerprint="2", joint=True),
    ]
    check_same_data([memory_run("sgd", {}), accuracy_run("sgd", 0, ROWS, ROWS), *joint])


def test_failed_runs_consumed_only_a_part_and_are_not_compared(accuracy_run: MakeRun) -> None:
    failed = accuracy_run("er", 0, None, None, status="crashed", reason="killed")
    failed.fingerprint = "0123"
    check_same_data([accuracy_run("sgd", 0, ROWS, ROWS), failed])


def test_a_directory_without_results_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results; run `clmem run`"):
        load_sections(tmp_path)
    with pytest.raises(UsageError, match="is not a directory"):
        load_sections(tmp_path / "missing")


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("torch", "2.13.0", "2.14.0"),
        ("vectors", "AVX2", "AVX512"),
        ("allocator", {"MALLOC_TRIM_THRESHOLD_": "1"}, {}),
        ("threads", 1, 2),
        ("python", "3.11.2", "3.12.1"),
        ("libc", "glibc 2.36", "glibc 2.39"),
    ],
)
def test_memory_runs_differ_in_nothing_that_decides_bytes(
    memory_run: MakeRun, tmp_path: Path, key: str, one: object, other: object
) -> None:
    save_result(tmp_path, memory_run("sgd", {"input": 1.0}, environment={key: one}))
    save_result(tmp_path, memory_run("er", {"input": 1.0}, environment={key: other}))
    with pytest.raises(UsageError, match=rf"^{key} differs: .*er--\S*\.json but .*sgd--\S*\.json, .*clmem run --fresh"):
        load_sections(tmp_path)


@pytest.mark.parametrize("key", ["device", "cuda", "cudnn", "driver"])
def test_memory_runs_on_a_gpu_are_of_one_card_and_its_libraries(memory_run: MakeRun, key: str) -> None:
    runs = [memory_run(name, {}, target="cuda", environment={key: name}) for name in ("sgd", "er")]
    with pytest.raises(UsageError, match=f"^{key} differs"):
        check_same_data(runs)
    check_same_data([memory_run(name, {}, environment={key: name}) for name in ("sgd", "er")])


def test_what_older_results_do_not_say_is_taken_for_equal(memory_run: MakeRun) -> None:
    environments: list[dict[str, object]] = [{"torch": "2.13.0"}, {"threads": 1, "torch": "2.13.0"}, {}]
    check_same_data([memory_run(name, {}, environment=told) for name, told in zip("abc", environments, strict=True)])


def test_threads_do_not_decide_what_a_gpu_holds(memory_run: MakeRun) -> None:
    check_same_data(
        [memory_run(name, {}, target="cuda", environment={"threads": number}) for number, name in enumerate("ab")]
    )


def test_accuracy_runs_may_be_of_several_environments(accuracy_run: MakeRun) -> None:
    runs = [accuracy_run("sgd", seed, ROWS, ROWS) for seed in (0, 1)]
    runs[1].environment["torch"] = "another"
    check_same_data(runs)
