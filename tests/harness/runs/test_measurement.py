"""How the outcomes of a run's passes become one result, whatever each of them was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from clmem.harness.results.record import Accuracy, Footprint, PhaseFootprint, RunResult, Timeline, Unified
from clmem.harness.runs.job import Outcome, Pass
from clmem.harness.runs.measurement import assemble, passes
from clmem.harness.specs.run import RunSpec

MEMORY = RunSpec(method="sgd")
ACCURACY = RunSpec(method="sgd", measure="accuracy")

PEAKS = [(0, "first_step", 900), (0, "step", 1_000), (1, "step", 1_000)]
KNOWN: dict[str, Any] = {
    "fingerprint": "f00d",
    "data_digest": "da7a",
    "method_config": {"lr": 0.1},
    "execution": {"name": "plain"},
    "environment": {"torch": "2.13.0"},
}
DIED = Outcome(status="oom", reason="the process was killed")
"""A process that was killed before it could say anything: not even where it ran."""


def footprint(peaks: list[tuple[int, str, int]]) -> Footprint:
    by_phase = [
        PhaseFootprint(task=t, phase=p, peak_bytes=b, op="aten::relu", at_peak={"activations": b}, role_peaks={})
        for t, p, b in peaks
    ]
    highest = max(by_phase, key=lambda entry: entry.peak_bytes)
    return Footprint(
        peak_bytes=highest.peak_bytes,
        peak_task=highest.task,
        peak_phase=highest.phase,
        peak_op=highest.op,
        at_peak=highest.at_peak,
        role_peaks={},
        phases={entry.phase: entry.peak_bytes for entry in by_phase},
        by_phase=by_phase,
        timeline=Timeline(time_s=[], roles={}, marks=[]),
        workspace_at_peak={},
    )


def good_passes() -> dict[Pass, Outcome]:
    return {
        "truth": Outcome(peaks=PEAKS, flops_per_step=7, **KNOWN),
        "attribution": Outcome(peaks=PEAKS, footprint=footprint(PEAKS), **KNOWN),
        "process": Outcome(
            baseline_bytes=500,
            process_peak_bytes=2_000,
            curve=[(0.0, 500), (0.1, 1_900)],
            phase_s={"step": 0.25},
            steps=4,
            **KNOWN,
        ),
    }


def assembled(changed: Mapping[Pass, Outcome]) -> RunResult:
    return assemble(MEMORY, {**good_passes(), **changed}, wall_s=1.5)


def test_a_good_memory_run_has_every_pass_in_its_place() -> None:
    result = assembled({})
    assert (result.status, result.reason, result.checks) == ("ok", None, [])
    assert result.allocator is not None
    assert (result.allocator.kind, result.allocator.peak_bytes, result.allocator.by_phase) == ("cpu", 1_000, PEAKS)
    assert result.footprint is not None
    assert result.observer_delta_bytes == 0
    assert result.process is not None
    assert (result.process.baseline_bytes, result.process.peak_bytes) == (500, 2_000)
    assert result.process.curve == [(0.0, 500), (0.1, 1_900)]
    assert result.process.malloc == "pinned"
    assert (result.flops_per_step, result.steps, result.phase_s) == (7, 4, {"step": 0.25})
    assert result.accuracy is None
    assert result.metrics == {}


def test_a_run_of_the_peak_alone_takes_one_pass_and_has_neither_roles_nor_a_process() -> None:
    spec = RunSpec(method="sgd", measure="peak")
    assert passes(spec) == ("truth",)
    result = assemble(spec, {"truth": good_passes()["truth"]}, wall_s=1.0)
    assert result.allocator is not None
    assert result.allocator.peak_bytes == 1_000
    assert result.flops_per_step == 7
    assert (result.status, result.footprint, result.process, result.checks) == ("ok", None, None, [])


def test_a_phase_that_peaks_higher_when_observed_is_named_with_its_bytes() -> None:
    observed = [(0, "first_step", 900), (0, "step", 1_000), (1, "step", 1_512)]
    result = assembled({"attribution": Outcome(peaks=observed, footprint=footprint(observed), **KNOWN)})
    (check,) = result.checks
    assert "step of task 1" in check
    assert "1,512 B" in check
    assert "1,000 B" in check
    assert result.status == "ok"
    assert result.observer_delta_bytes == 512


def test_a_difference_below_the_highest_peak_is_noticed_too() -> None:
    observed = [(0, "first_step", 901), (0, "step", 1_000), (1, "step", 1_000)]
    result = assembled({"attribution": Outcome(peaks=observed, footprint=footprint(observed), **KNOWN)})
    (check,) = result.checks
    assert "first_step of task 0" in check
    assert "901 B" in check
    assert result.observer_delta_bytes == 0


@pytest.mark.parametrize(
    ("name", "field"), [("truth", "fingerprint"), ("attribution", "fingerprint"), ("process", "data_digest")]
)
def test_passes_that_consumed_different_batches_are_noticed(name: Pass, field: str) -> None:
    result = assembled({name: good_passes()[name].model_copy(update={field: "other"})})
    (check,) = result.checks
    assert "different batches" in check


def test_an_attribution_that_fails_gives_status_and_reason_and_leaves_the_allocator() -> None:
    failure = Outcome(status="crashed", reason="method 'sgd' keeps 4,000 B without declaring them", **KNOWN)
    result = assembled({"attribution": failure})
    assert (result.status, result.reason) == ("crashed", failure.reason)
    assert result.allocator is not None
    assert result.allocator.peak_bytes == 1_000
    assert result.footprint is None
    assert result.observer_delta_bytes is None
    assert result.process is not None
    assert result.checks == []


def test_the_first_pass_that_failed_gives_the_reason() -> None:
    timeout = Outcome(status="timeout", reason="the attribution pass took longer than 1 s")
    result = assembled({"attribution": timeout, "process": DIED})
    assert (result.status, result.reason) == ("timeout", timeout.reason)
    assert result.process is None


def test_running_out_of_memory_keeps_the_phases_so_far() -> None:
    truth = Outcome(status="oom", reason="out of memory in step of task 0", peaks=PEAKS[:2], **KNOWN)
    result = assembled({"truth": truth, "attribution": DIED, "process": DIED})
    assert (result.status, result.reason) == ("oom", truth.reason)
    assert result.allocator is not None
    assert result.allocator.by_phase == PEAKS[:2]
    assert result.checks == []


@pytest.mark.parametrize("dead", [("truth",), ("truth", "attribution")], ids=" and ".join)
def test_what_a_dead_pass_could_not_say_is_taken_from_another(dead: tuple[Pass, ...]) -> None:
    result = assembled(dict.fromkeys(dead, DIED))
    assert (result.status, result.reason) == ("oom", DIED.reason)
    assert {name: getattr(result, name) for name in KNOWN} == KNOWN
    assert result.allocator is None
    assert result.observer_delta_bytes is None


def test_a_run_of_which_every_pass_died_is_still_a_result() -> None:
    result = assembled(dict.fromkeys(passes(MEMORY), DIED))
    assert (result.status, result.reason, result.run_id) == ("oom", DIED.reason, MEMORY.run_id)
    assert result.fingerprint is None
    assert result.environment == {}
    assert (result.allocator, result.footprint, result.process) == (None, None, None)


def test_swap_that_grew_on_a_board_breaks_a_promise() -> None:
    outcome = good_passes()["process"]
    outcome.unified = Unified(
        total_bytes=9, before_bytes=1, peak_bytes=2, nvmap_before_bytes=None, nvmap_peak_bytes=None,
        swap_growth_bytes=4096, samples=1,
    )  # fmt: skip
    result = assembled({"process": outcome})
    assert [check for check in result.checks if "4,096 B went to swap" in check and "swapoff -a" in check]


def test_what_was_held_when_memory_ran_out_stays_in_the_result() -> None:
    full = Outcome(status="oom", reason="CUDA out of memory", peaks=PEAKS, footprint=footprint(PEAKS), **KNOWN)
    result = assembled({"truth": full, "attribution": full})
    assert (result.status, result.reason) == ("oom", "CUDA out of memory")
    assert result.footprint is not None
    assert result.footprint.peak_bytes == 1_000
    assert result.observer_delta_bytes is None


def test_an_accuracy_run_has_metrics_and_a_process_with_the_default_malloc() -> None:
    matrices = Accuracy(
        class_il=[[0.9, None], [0.5, 0.7]], task_il=None, untrained_class_il=None, untrained_task_il=None
    )
    outcome = Outcome(accuracy=matrices, baseline_bytes=500, process_peak_bytes=2_000, **KNOWN)
    result = assemble(ACCURACY, {"accuracy": outcome}, wall_s=1.5)
    assert result.status == "ok"
    assert result.accuracy == matrices
    assert result.metrics["class_il_accuracy"] == pytest.approx(0.6)
    assert result.process is not None
    assert result.process.malloc == "default"
    assert (result.allocator, result.footprint) == (None, None)


def test_an_accuracy_run_without_accuracy_has_no_metrics() -> None:
    outcome = Outcome(status="diverged", reason="the loss of 'sgd' is nan at step 3 of task 0", **KNOWN)
    result = assemble(ACCURACY, {"accuracy": outcome}, wall_s=1.5)
    assert (result.status, result.reason) == ("diverged", outcome.reason)
    assert result.metrics == {}
    assert result.process is None
