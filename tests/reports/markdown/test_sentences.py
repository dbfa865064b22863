"""Sentences about numbers, against numbers put down by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clmem.harness.results.record import RunResult, Unified
from clmem.reports.data.grouping import Section, sections
from clmem.reports.markdown.sentences import (
    board_sentence,
    failed_sentence,
    fingerprint_sentence,
    headline_sentence,
    held_sentence,
    phase_sentence,
    process_sentence,
    role_sentence,
    workspace_sentence,
)

MIB = 2**20
MakeRun = Callable[..., RunResult]


def section(*runs: RunResult) -> Section:
    """The one section that the runs make."""
    (found,) = sections(list(runs))
    return found


def with_baselines(make: MakeRun, **baselines_mib: float) -> Section:
    runs = [make(name, {"parameters": 1.0}) for name in baselines_mib]
    for run, size in zip(runs, baselines_mib.values(), strict=True):
        assert run.process is not None
        run.process.baseline_bytes = int(size * MIB)
    return section(*runs)


def test_baselines_are_said_from_the_least_to_the_most(memory_run: MakeRun) -> None:
    text = process_sentence(with_baselines(memory_run, er=510.0, sgd=500.0, ewc=505.0))
    assert text == "A process holds 500.0 to 510.0 MiB before the network is built."


def test_equal_baselines_are_said_once(memory_run: MakeRun) -> None:
    text = process_sentence(with_baselines(memory_run, er=500.0, sgd=500.0))
    assert text == "A process holds 500.0 MiB before the network is built."


@pytest.mark.parametrize(("most", "warned"), [(525.0, False), (526.0, True)])
def test_baselines_over_5_percent_apart_are_a_warning(memory_run: MakeRun, most: float, warned: bool) -> None:
    text = process_sentence(with_baselines(memory_run, er=most, sgd=500.0))
    assert ("differ by more than chance" in text) == warned


def test_the_headline_compares_the_largest_with_sgd(memory_run: MakeRun) -> None:
    derpp = memory_run("derpp", {"activations": 30.0, "replay": 10.0})
    sgd = memory_run("sgd", {"activations": 12.0, "parameters": 4.0})
    ewc = memory_run("ewc", {"activations": 2.0, "parameters": 6.0})
    assert headline_sentence(section(sgd, ewc, derpp)) == (
        "At its peak derpp holds 40.0 MiB, 2.5x sgd (16.0 MiB); 75 % of it is activations. "
        "ewc holds the least, 8.0 MiB."
    )


def test_the_headline_says_who_falls_furthest_later(memory_run: MakeRun) -> None:
    runs = [
        memory_run(name, {"activations": size}, later_share=share)
        for name, size, share in (("derpp", 40.0, 0.5), ("sgd", 16.0, 1.0), ("tail-sgd", 20.0, 0.25))
    ]
    assert "After the first task tail-sgd falls from 20.0 to 5.0 MiB." in headline_sentence(section(*runs))


def test_the_headline_names_the_highest_accuracy(memory_run: MakeRun, accuracy_run: MakeRun) -> None:
    runs = [memory_run("sgd", {"activations": 4.0}), memory_run("er", {"activations": 8.0})]
    for name, last in (("sgd", 0.1), ("er", 0.5)):
        runs += [accuracy_run(name, seed, [[0.9, 0.0], [last + seed / 10, 0.9]], [[0.9, 0.5]] * 2) for seed in (0, 1)]
    # er: (0.5 + 0.9) / 2 and (0.6 + 0.9) / 2, whose mean is 72.5 and whose deviation is 5 / sqrt(2)
    expected = "The highest class-IL accuracy is 72.5 ± 3.5 % (er, 2 seeds, at 8.0 MiB)."
    assert headline_sentence(section(*runs)).endswith(expected)


def test_largest_roles_are_counted_most_frequent_first(memory_run: MakeRun) -> None:
    made = [memory_run(name, {"activations": 3.0, "replay": 1.0}) for name in ("sgd", "ewc")]
    made.append(memory_run("er", {"activations": 1.0, "method_state": 3.0}))
    assert role_sentence(section(*made)) == (
        "The largest role at the peak is activations for 2 of 3 methods and method state for 1."
    )
    assert role_sentence(section(made[0])) == "The largest role at the peak is activations for the method."
    assert phase_sentence(section(*made)) == "The peak is in `step` for all 3 methods."


def test_the_most_workspace_is_named_with_its_share(memory_run: MakeRun) -> None:
    small, large = memory_run("sgd", {"workspace": 2.0}), memory_run("er", {"workspace": 8.0})
    for run, parts in ((small, (2, 0)), (large, (2, 6))):
        assert run.footprint is not None
        run.footprint.workspace_at_peak = {"aten::add": parts[0] * MIB, "aten::mm": parts[1] * MIB}
    assert workspace_sentence(section(small, large)) == (
        "er holds the most workspace at its peak, 8.0 MiB, 75 % of it in `aten::mm`."
    )


def test_no_workspace_is_said_so(memory_run: MakeRun) -> None:
    assert workspace_sentence(section(memory_run("sgd", {"input": 1.0}))) == "No method holds workspace at its peak."


def test_what_a_backward_found_held_is_summed(memory_run: MakeRun) -> None:
    footprint = memory_run("sgd", {"workspace": 8.0}).footprint
    assert footprint is not None
    assert held_sentence(footprint) is None
    footprint.held_into_backward = {"aten::mul": 3 * MIB, "aten::exp": 2 * MIB}
    said = held_sentence(footprint)
    assert said is not None
    assert said.startswith("5.0 MiB of its workspace (`aten::mul`, `aten::exp`) was made before a backward")


def test_a_boards_growth_is_its_most_less_what_was_before() -> None:
    board = Unified(
        total_bytes=8192 * MIB,
        before_bytes=1000 * MIB,
        peak_bytes=3500 * MIB,
        nvmap_before_bytes=0,
        nvmap_peak_bytes=700 * MIB,
        swap_growth_bytes=3 * MIB,
        samples=9,
        tegrastats_peak_bytes=3400 * MIB,
    )
    assert board_sentence(board) == (
        "of the board's 8,192.0 MiB in use: 1,000.0 before and 3,500.0 at most (2,500.0 more); "
        "the GPU's allocator (NvMap) held 700.0 at most; tegrastats saw 3,400.0; swap grew by 3.0"
    )


def test_runs_without_batches_on_record_are_counted(memory_run: MakeRun) -> None:
    known, unknown = memory_run("sgd", {"input": 1.0}), memory_run("er", {"input": 1.0}, fingerprint=None)
    failed = memory_run("ewc", {}, status="oom", reason="killed")
    assert fingerprint_sentence([known, unknown, failed]) == (
        "Only 1 of 2 finished runs recorded which batches they learnt from."
    )
    assert fingerprint_sentence([known, failed]) == (
        "1 finished run: those that are comparable learnt from identical batches."
    )


def test_failures_are_counted_by_kind(memory_run: MakeRun) -> None:
    runs = [memory_run("sgd", {"input": 1.0})]
    runs += [memory_run(f"m{n}", {}, status="oom", reason="killed") for n in range(2)]
    runs.append(memory_run("er", {}, status="crashed", reason="died"))
    assert failed_sentence(runs) == "3 of 4 runs did not finish (1 crashed, 2 oom)."
