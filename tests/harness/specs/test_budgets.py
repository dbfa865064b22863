"""Budgets: boards and bytes, what is deducted, and runs that stay inside."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from clmem.harness.answers.prediction import predicted_peak_bytes
from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult
from clmem.harness.runs.checks import check_spec
from clmem.harness.runs.job import Job, Outcome
from clmem.harness.runs.limits import limit_process
from clmem.harness.runs.processes import Workers
from clmem.harness.specs.budgets import MIB, boards, budget
from clmem.harness.specs.run import RunSpec
from clmem.reports.data.grouping import Setting

ONLY_SGD = {"method": "sgd", "stream": "synthetic-cifar10", "width": 8}


def test_a_board_has_what_linux_sees_less_all_that_shares_it() -> None:
    nano = budget("jetson-nano-4gb")
    assert nano.total_bytes == 3956 * MIB
    assert nano.tensors_bytes == (3956 - 800 - 500 - 678) * MIB
    assert nano.process_bytes == (3956 - 800) * MIB
    assert (nano.limit_bytes("cpu"), nano.limit_bytes("jetson")) == (nano.process_bytes, nano.tensors_bytes)


def test_boards_are_listed_from_the_smallest_to_the_largest() -> None:
    sizes = [board.total_bytes for board in boards().values()]
    assert sizes == sorted(sizes)
    assert {"jetson-nano-4gb", "jetson-orin-nano-8gb", "jetson-agx-thor"} <= set(boards())


@pytest.mark.parametrize(
    ("text", "size"),
    [("2000000000", 2 * 10**9), ("2GB", 2 * 10**9), ("2GiB", 2 * 2**30), ("1.5 gib", 3 * 2**29), ("512MiB", 2**29)],
)
def test_plain_bytes_are_taken_as_they_are(text: str, size: int) -> None:
    found = budget(text)
    assert (found.total_bytes, found.process_bytes, found.tensors_bytes) == (size, size, size)


@pytest.mark.parametrize(
    "text", ["jetson-nano", "lots", "-1", "", "2ib", "9" * 400, "1e999", "inf", "٣GB", "x" * 10**6]
)
def test_a_budget_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="there is no budget") as refused:
        budget(text)
    assert len(str(refused.value)) < 400
    with pytest.raises(ValidationError, match=r"there is no budget|at most 200 printable"):
        RunSpec(method="sgd", budget=text)


def test_a_budget_that_no_machine_has_is_refused() -> None:
    with pytest.raises(UsageError, match="more than any machine has"):
        budget("99999999999999999999GiB")


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves nothing"):
        budget("0MB")


def test_a_run_without_a_budget_keeps_the_name_it_always_had() -> None:
    assert RunSpec(**ONLY_SGD).run_id == "sgd--synthetic-cifar10--memory--ee540498"
    assert RunSpec(**ONLY_SGD, budget="1GiB").run_id != RunSpec(**ONLY_SGD).run_id


def test_limited_runs_stand_in_a_table_of_their_own_that_says_emulated() -> None:
    free, limited = (Setting.of(RunResult(run_id="r", spec=RunSpec(**ONLY_SGD, budget=b))) for b in (None, "1GiB"))
    assert free != limited
    assert "budget" not in free.title
    assert "budget 1GiB (emulated)" in limited.title


def test_a_run_that_records_no_process_has_nothing_to_limit() -> None:
    with pytest.raises(UsageError, match="has none to limit"):
        check_spec(RunSpec(**ONLY_SGD, measure="peak", budget="1GiB"))


@pytest.mark.slow
def test_a_run_inside_its_budget_goes_well_and_one_outside_is_out_of_memory_with_what_it_held() -> None:
    spec = RunSpec(method="sgd", stream="synthetic-tinyimagenet", width=16)
    tensors = predicted_peak_bytes(spec)
    assert tensors is not None

    def process(budget_bytes: int | None) -> Outcome:
        limited = spec.model_copy(update={"budget": budget_bytes and str(budget_bytes)})
        return Workers(threads=1).run(Job(spec=limited, what="process"), 300, lambda fields: None)

    peak = process(None).process_peak_bytes
    assert peak is not None
    inside, within = process(peak + peak // 20), process(peak - tensors // 2)
    assert (inside.status, within.status) == ("ok", "oom")
    assert "first_step of task 0" in str(within.reason)
    assert within.process_peak_bytes is not None
    assert within.process_peak_bytes < 1.05 * (peak - tensors // 2)


def test_a_process_that_is_larger_than_its_budget_stops_before_its_first_step() -> None:
    with pytest.raises(MemoryError, match="before its first step it takes"):
        limit_process(RunSpec(**ONLY_SGD, budget="10MiB"))
