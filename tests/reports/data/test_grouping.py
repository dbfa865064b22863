"""Runs become cells and sections without mixing what may not be mixed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult
from clmem.reports.data.grouping import Cell, sections
from clmem.reports.data.load import check_same_data

MakeRun = Callable[..., RunResult]
MIB = 2**20


def cells(runs: list[RunResult]) -> dict[str, Cell]:
    (section,) = sections(runs)
    return {cell.label: cell for cell in section.cells}


def test_memory_run_and_seeds_of_one_method_share_a_cell(example_runs: list[RunResult]) -> None:
    derpp = cells(example_runs)["derpp (alpha=0.1, beta=0.5)"]
    assert derpp.memory is not None
    assert [run.spec.seed for run in derpp.accuracy] == [0, 1, 2]
    assert derpp.status() == ""


def test_cells_are_sorted_by_falling_tensor_peak_with_unmeasured_last(example_runs: list[RunResult]) -> None:
    (section,) = sections(example_runs)
    peaks = [cell.tensor_peak_bytes for cell in section.cells]
    assert peaks[-1] is None
    known = [peak for peak in peaks if peak is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) == 4


def test_different_settings_never_share_a_section(memory_run: MakeRun) -> None:
    runs = [memory_run("sgd", {}), memory_run("sgd", {}, width=64), memory_run("sgd", {}, batch_size=8)]
    assert len(sections(runs)) == 3


def test_synthetic_streams_of_other_classes_or_sides_are_other_streams(memory_run: MakeRun) -> None:
    noise = {"stream": "synthetic-cifar10"}
    chosen: list[dict[str, int]] = [
        {},
        {"num_classes": 100},
        {"image_size": 64},
        {"num_classes": 100, "image_size": 64},
    ]
    runs = [
        memory_run("sgd", {"input": 1.0 + number}, fingerprint=str(number), data_digest=str(number), **noise, **each)
        for number, each in enumerate(chosen)
    ]
    check_same_data(runs)
    assert sorted(section.setting.stream for section in sections(runs)) == [
        "synthetic-cifar10",
        "synthetic-cifar10 (100 classes)",
        "synthetic-cifar10 (100 classes, 64 px)",
        "synthetic-cifar10 (64 px)",
    ]
    assert len({section.setting.slug for section in sections(runs)}) == 4


def test_different_configurations_are_different_rows(memory_run: MakeRun) -> None:
    runs = [memory_run("ewc", {}, config={"penalty": kind}) for kind in ("graph", "inplace")]
    assert set(cells(runs)) == {"ewc (penalty=graph)", "ewc (penalty=inplace)"}


def test_accuracies_of_different_lengths_are_never_averaged(memory_run: MakeRun, accuracy_run: MakeRun) -> None:
    runs = [memory_run("sgd", {"parameters": 1.0})]
    runs += [accuracy_run("sgd", 0, [[0.5]], [[0.5]], epochs=epochs) for epochs in (1, 10)]
    found = cells(runs)
    assert set(found) == {"sgd (epochs=1)", "sgd (epochs=10)"}
    assert all(cell.memory is not None and len(cell.accuracy) == 1 for cell in found.values())


def test_failed_runs_give_a_status_and_no_number(example_runs: list[RunResult]) -> None:
    found = cells(example_runs)
    assert found["gem"].status() == "memory: oom"
    assert found["gem"].tensor_peak_bytes is None
    assert found["sgd"].status() == "accuracy: diverged (1 of 2)"
    statistic = found["sgd"].metric("class_il_accuracy")
    assert statistic is not None
    assert statistic.n == 1


def test_later_tasks_have_a_peak_of_their_own(memory_run: MakeRun) -> None:
    cell = cells([memory_run("lightcl", {"activations": 8.0}, later_share=0.25)])["lightcl"]
    assert (cell.tensor_peak_bytes, cell.later_peak_bytes) == (8 * MIB, 2 * MIB)


def test_headline_peak_is_that_of_the_uninstrumented_pass(memory_run: MakeRun) -> None:
    cell = cells([memory_run("sgd", {"activations": 8.0}, delta_bytes=512)])["sgd"]
    assert cell.tensor_peak_bytes == 8 * MIB - 512


def test_without_the_uninstrumented_pass_there_is_no_headline_peak(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"activations": 8.0})
    run.allocator = None
    cell = cells([run])["sgd"]
    assert cell.tensor_peak_bytes is cell.later_peak_bytes is None


def test_process_peaks_of_the_two_malloc_settings_are_kept_apart(example_runs: list[RunResult]) -> None:
    derpp = cells(example_runs)["derpp (alpha=0.1, beta=0.5)"]
    assert derpp.memory is not None
    assert derpp.memory.process is not None
    assert derpp.process_peak_bytes("pinned") == derpp.memory.process.peak_bytes
    assert derpp.process_peak_bytes("default") == 902 * MIB


def test_a_cell_is_joint_when_any_of_its_runs_says_so(memory_run: MakeRun, accuracy_run: MakeRun) -> None:
    found = cells([memory_run("all", {}, joint=True), accuracy_run("all", 0, None, None, status="crashed")])
    assert found["all"].joint
    assert not cells([memory_run("sgd", {}), accuracy_run("sgd", 0, [[0.5, 0.5]], None)])["sgd"].joint


def test_two_memory_runs_of_one_cell_must_agree_to_the_byte(memory_run: MakeRun) -> None:
    one, other = memory_run("sgd", {"input": 1.0}, seed=0), memory_run("sgd", {"input": 2.0}, seed=1)
    with pytest.raises(UsageError, match=r"allocator\.peak_bytes .* 1048576 .* 2097152"):
        sections([one, other])
    assert len(cells([one, memory_run("sgd", {"input": 1.0}, seed=1)])) == 1
