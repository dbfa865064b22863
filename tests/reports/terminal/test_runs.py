"""What a terminal shows fits 80 columns and says what the JSON says."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from clmem.harness.results.record import ROLES, RunResult, Unified
from clmem.reports.data.grouping import sections
from clmem.reports.data.provenance import environment_values
from clmem.reports.terminal.runs import measure_json, measure_table, summary

MakeRun = Callable[..., RunResult]
HUGE = dict.fromkeys(ROLES, 123_456.7)
DESIGNED = {
    *("schema", "method", "stream", "network", "target", "batch_size", "buffer_size", "execution", "peak_bytes"),
    *("at_peak", "role_peaks", "phases", "allocator", "process", "observer_delta_bytes", "environment"),
}
ADDED = {"width", "replay_size", "peak_task", "peak_phase", "peak_op", "on_host", "reserved_bytes", "fingerprint"}
ADDED |= {"execution_label", "budget", "status", "reason", "without_cudnn_bytes", "marks", "notes"}
ADDED |= {"library_workspace_at_peak", "without_libraries_bytes"}


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


@pytest.mark.parametrize("roles", [{"parameters": 42.6, "activations": 126.0}, HUGE], ids=["usual", "huge"])
def test_measure_table_fits_80_columns(memory_run: MakeRun, roles: dict[str, float]) -> None:
    run = memory_run(
        "a-method-with-a-long-name",
        roles,
        config={"some_setting": "a value", "another_setting": "another value", "one_more": 3},
        op="aten::a_very_long_operator_name_that_somebody_registered_in_a_library_of_their_own_for_testing",
        checks=("a promise that takes more than one line of a terminal to tell when it is broken, as this one does",),
    )
    assert widest(measure_table(run)) <= 80
    assert widest(summary(sections([run]))) <= 80


def test_measure_table_shows_roles_peaks_and_sum_check(memory_run: MakeRun) -> None:
    text = measure_table(memory_run("sgd", {"parameters": 1.0, "activations": 3.0}, delta_bytes=512))
    lines = [line.split() for line in text.splitlines()]
    assert ["parameters", "1,048,576", "1.0", "25", "%", "1.2"] in lines
    assert ["total", "4,194,304", "4.0", "100", "%"] in lines
    assert ["step", "4,194,304", "4.0"] in lines
    assert "sum of roles - allocator peak = 0 B" in text
    assert "observer delta = 512 B" in text
    assert "tensor peak, nothing instrumented: 4.0 MiB (4,193,792 B)" in text
    assert "process peak (pinned malloc): 604.0 MiB, 77.0 above a baseline of 527.0" in text


def test_the_header_has_buffer_sizes_only_of_a_method_with_a_buffer(memory_run: MakeRun) -> None:
    run = memory_run("er", {"parameters": 1.0})
    sizes = f"buffer {run.spec.buffer_size}, replay {run.spec.replay_size}"
    assert f"batch {run.spec.batch_size}, {sizes}\n" in measure_table(run)
    assert f"batch {run.spec.batch_size}\n" in measure_table(run, uses_buffer=False)


@pytest.mark.parametrize("execution", ["plain", "lean", "trunk_chunk=4"])
def test_the_execution_stands_in_the_header_and_in_json(memory_run: MakeRun, execution: str) -> None:
    run = memory_run("sgd", {"parameters": 1.0}, execution=execution)
    assert measure_table(run).startswith(f"sgd ({execution}) on ")
    assert measure_json(run)["execution_label"] == execution
    run.execution = {"exact": False}
    assert measure_table(run).startswith(f"sgd ({execution}, inexact) on ")


def test_a_run_on_a_device_says_what_its_process_and_the_board_held(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"parameters": 1.0})
    assert run.process is not None
    run.process.device_peak_bytes = 700 * 2**20
    gib = 2**30
    run.process.unified = Unified(
        total_bytes=8 * gib, before_bytes=gib, peak_bytes=3 * gib, nvmap_before_bytes=0, nvmap_peak_bytes=gib,
        swap_growth_bytes=0, samples=9, tegrastats_peak_bytes=3 * gib,
    )  # fmt: skip
    text = measure_table(run.model_copy(update={"spec": run.spec.model_copy(update={"budget": "jetson-nano-4gb"})}))
    assert widest(text) <= 80
    flat = " ".join(text.split())
    assert "budget jetson-nano-4gb (emulated)" in flat
    assert "context included (NVML): 700.0 MiB" in flat
    assert "of the board's 8,192.0 MiB in use: 1,024.0 before and 3,072.0 at most (2,048.0 more)" in flat
    assert "(NvMap) held 1,024.0 at most; tegrastats saw 3,072.0; swap grew by 0.0" in flat
    value = measure_json(run)
    assert value["process"]["device_peak_bytes"] == 700 * 2**20
    assert value["process"]["unified"]["peak_bytes"] == 3 * gib


def test_what_libraries_took_of_the_workspace_is_shown_below_it(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"parameters": 1.0, "workspace": 3.0})
    assert run.footprint is not None
    run.footprint.library_workspace_at_peak = {"cuDNN": 2 * 2**20, "cuBLAS": 2**19}
    run.footprint.without_libraries_bytes = 3 * 2**19
    lines = [line.split() for line in measure_table(run).splitlines()]
    place = lines.index(["workspace", "3,145,728", "3.0", "75", "%", "3.8"])
    assert lines[place + 1 : place + 3] == [
        ["of", "it", "cuDNN", "2,097,152", "2.0", "50", "%"],
        ["of", "it", "cuBLAS", "524,288", "0.5", "12", "%"],
    ]
    assert "peak without the workspace of cuDNN and cuBLAS: 1.5 MiB" in measure_table(run)


def test_a_failed_run_says_why(memory_run: MakeRun) -> None:
    text = measure_table(memory_run("sgd", {}, status="oom", reason="the limit of 512 MiB was reached"))
    assert "NOT OK (oom): the limit of 512 MiB was reached" in text


def test_summary_fits_80_columns_and_keeps_the_numbers(example_runs: list[RunResult]) -> None:
    text = summary(sections(example_runs))
    assert widest(text) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["pnn", "21.0", "621.0", "—", "92.5", "1"] in lines
    assert ["gem", "oom"] in lines
    assert "derpp (alpha=0.1,…" in text


def test_json_has_the_designed_shape_and_is_json(memory_run: MakeRun) -> None:
    value = measure_json(memory_run("sgd", {"parameters": 1.0, "activations": 3.0}))
    assert json.loads(json.dumps(value)) == value
    assert set(value) == DESIGNED | ADDED
    assert list(value["at_peak"]) == list(ROLES)
    assert sum(value["at_peak"].values()) == value["peak_bytes"] == 4 * 2**20
    assert value["allocator"] == {"kind": "cpu", "peak_bytes": 4 * 2**20}
    assert value["process"] == {"baseline_bytes": 527 * 2**20, "peak_bytes": 604 * 2**20}


def test_json_of_a_failed_run_holds_nulls_not_zeros(memory_run: MakeRun) -> None:
    value = measure_json(memory_run("sgd", {}, status="oom", reason="killed"))
    assert value["peak_bytes"] is value["at_peak"] is value["allocator"] is value["process"] is None


def test_means_stand_without_spread_only_where_it_has_no_room(accuracy_run: MakeRun) -> None:
    def of(name: str) -> str:
        runs = [accuracy_run(name, seed, [[0.1 * seed]], [[0.5]]) for seed in (1, 2, 3)]
        return summary(sections(runs))

    assert "20.0 ± 10.0" in of("er")
    assert "the report has their spread" not in of("er")
    long = of("a-method-whose-name-takes-more-than-half-of-the-terminal")
    assert "±" not in long
    assert "means over seeds; the report has their spread" in long


def test_the_code_that_measured_is_part_of_the_environment(memory_run: MakeRun) -> None:
    runs = [memory_run(name, {"parameters": 1.0}) for name in ("er", "sgd")]
    for run, digest in zip(runs, ("0123", "4567"), strict=True):
        run.code = {"measuring": digest, "method": "89ab"}
    assert environment_values(runs)["code.measuring"] == {"0123": 1, "4567": 1}
    assert "code.method" not in environment_values(runs)
