"""What only a GPU can show: `pytest -m gpu`, part of `bench/gpu_check.sh`. Skipped where there is none."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from clmem.harness.answers.prediction import predict, predicted_peaks
from clmem.harness.learning.registry import method_names
from clmem.harness.results.record import RunResult
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.run import RunSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def spec(method: str, target: str = "cuda", **changes: object) -> RunSpec:
    frozen = method.startswith(("lightcl", "tail", "head"))
    config = {"trunk": "frozen"} if frozen else {"fisher_samples": 4} if method == "ewc" else {}
    values = {"stream": "synthetic-cifar10", "width": 16, "buffer_size": 15, "replay_size": 15, "config": config}
    return RunSpec(**{**values, "method": method, "target": target, **changes})  # type: ignore[arg-type]


def measured(*specs: RunSpec, snapshot: Path | None = None) -> list[RunResult]:
    found: dict[str, RunResult] = {}

    def keep(result: RunResult) -> None:
        found[result.run_id] = result

    run_specs(list(specs), keep, jobs=4, snapshot=snapshot)
    return [found[one.run_id] for one in specs]


@pytest.fixture(scope="module")
def runs() -> dict[str, RunResult]:
    """Every method once, plainly."""
    names = method_names()
    return dict(zip(names, measured(*(spec(name) for name in names)), strict=True))


def test_every_method_adds_up_to_the_allocator_s_own_peak(runs: dict[str, RunResult]) -> None:
    for name, run in runs.items():
        assert (run.status, run.reason, run.checks) == ("ok", None, []), name
        assert run.footprint is not None
        assert run.allocator is not None
        assert sum(run.footprint.at_peak.values()) == run.allocator.peak_bytes, name
        assert run.observer_delta_bytes == 0, name
        assert run.footprint.marks == ("history" if hasattr(torch._C, "_cuda_setMemoryMetadata") else "time"), name


def test_what_was_asked_for_is_less_than_what_was_given_by_the_rounding(runs: dict[str, RunResult]) -> None:
    for run in runs.values():
        assert run.footprint is not None
        assert run.allocator is not None
        assert run.footprint.at_peak["rounding"] > 0
        assert run.allocator.requested_bytes is not None
        assert run.allocator.requested_bytes <= run.allocator.peak_bytes
        assert run.allocator.peak_bytes <= (run.allocator.active_bytes or 0) <= (run.allocator.reserved_bytes or 0)


def test_the_workspace_of_cublas_is_named(runs: dict[str, RunResult]) -> None:
    footprint = runs["sgd"].footprint
    assert footprint is not None
    assert footprint.library_workspace_at_peak["cuBLAS"] % 8_519_680 == 0
    assert footprint.without_libraries_bytes is not None
    assert footprint.without_libraries_bytes <= footprint.peak_bytes - footprint.library_workspace_at_peak["cuBLAS"]


def test_a_process_holds_more_on_the_device_than_torch_reserves(runs: dict[str, RunResult]) -> None:
    """The CUDA context; NVML does not see processes from inside some containers, which then says nothing."""
    process, allocator = runs["sgd"].process, runs["sgd"].allocator
    assert process is not None
    assert allocator is not None
    if process.device_peak_bytes is not None:
        assert process.device_peak_bytes > (allocator.reserved_bytes or 0)


def test_the_batches_are_those_of_the_cpu(runs: dict[str, RunResult]) -> None:
    (on_cpu,) = measured(spec("er", target="cpu", measure="peak"))
    assert runs["er"].fingerprint == on_cpu.fingerprint


def test_peaks_are_predicted_to_three_percent(runs: dict[str, RunResult]) -> None:
    """What cuDNN takes may have been learnt from another card, so errors are printed; below the tensors is worse."""
    errors = {}
    for (name, run), peak in zip(runs.items(), predicted_peaks(list(runs.values())), strict=True):
        predicted = predict(run.spec).footprint
        assert predicted is not None
        assert predicted.without_cudnn_bytes is not None
        assert run.allocator is not None
        assert peak.peak_bytes is not None, peak.reason
        errors[name] = peak.peak_bytes / run.allocator.peak_bytes - 1
        assert run.allocator.peak_bytes >= 0.97 * predicted.without_cudnn_bytes, f"{name}: less than its tensors"
    print({name: f"{100 * error:+.2f} %" for name, error in errors.items()})
    assert {name: round(100 * error, 2) for name, error in errors.items() if abs(error) > 0.03} == {}


@pytest.mark.parametrize("method", ["sgd", "er", "derpp", "ewc", "sparcl-derpp", "lightcl", "lightcl-sparse"])
def test_lean_execution_takes_less_there_too(method: str, runs: dict[str, RunResult]) -> None:
    (lean,) = measured(spec(method, execution="lean"))
    plain = runs[method].allocator
    assert (lean.status, lean.reason, lean.checks) == ("ok", None, [])
    assert lean.allocator is not None
    assert plain is not None
    assert lean.allocator.peak_bytes < plain.peak_bytes


def test_a_run_outside_its_budget_is_out_of_memory(runs: dict[str, RunResult]) -> None:
    allocator = runs["derpp"].allocator
    assert allocator is not None
    (small,) = measured(spec("derpp", budget=str(allocator.peak_bytes // 2)))
    assert small.status == "oom"
    assert "task 0" in str(small.reason)


def test_a_history_is_kept_for_the_viewer(tmp_path: Path) -> None:
    path = tmp_path / "sgd.pickle"
    (run,) = measured(spec("sgd", width=4), snapshot=path)
    assert run.status == "ok"
    found = pickle.loads(path.read_bytes())
    assert {"segments", "device_traces"} <= set(found)
