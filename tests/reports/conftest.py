"""Hand-made results: sizes are small round numbers, so that a reader of a golden file can add them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import Mock

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.results.metrics import scenario_metrics
from clmem.harness.results.record import (
    PHASES,
    ROLES,
    Accuracy,
    Allocator,
    Footprint,
    PhaseFootprint,
    Process,
    RunResult,
    Status,
    Timeline,
)
from clmem.harness.specs.run import RunSpec

MIB = 2**20
MakeRun = Callable[..., RunResult]

ENVIRONMENT = {"torch": "2.13.0", "device": "a processor", "git": {"commit": "0123abc", "dirty": False}}
SETTING: dict[str, Any] = {"stream": "split-cifar10", "width": 16, "buffer_size": 15, "replay_size": 15}


def _memory_run(
    method: str,
    roles_mib: Mapping[str, float],
    *,
    status: Status = "ok",
    reason: str | None = None,
    delta_bytes: int = 0,
    later_share: float = 1.0,
    checks: tuple[str, ...] = (),
    tasks: int = 2,
    joint: bool = False,
    fingerprint: str | None = "f00d",
    data_digest: str | None = "da7a",
    op: str = "aten::convolution_backward",
    samples: int = 3,
    environment: Mapping[str, Any] = ENVIRONMENT,
    **spec: Any,
) -> RunResult:
    """Return a memory run whose peak, reached in `step` of the last task, holds `roles_mib` of each role.

    Other phases hold a fixed part of the peak; later_share: what tasks after the first hold of it.
    """
    result = RunResult(
        run_id="",
        spec=RunSpec.model_validate({**SETTING, "method": method, **spec}),
        status=status,
        reason=reason,
        checks=list(checks),
        execution={"trunk_chunk": 0},
        joint=joint,
        method_config={"lr": 0.03, **spec.get("config", {})},
        environment=dict(environment),
    )
    if status == "ok":
        at_peak = {role: int(roles_mib.get(role, 0.0) * MIB) for role in ROLES}
        role_peaks = {role: int(1.25 * size) for role, size in at_peak.items()}
        peak = sum(at_peak.values())
        part = {"before_task": 0.25, "first_step": 0.9, "step": 1.0, "after_task": 0.5, "evaluate": 0.4}
        by_phase = []
        for task in range(tasks):
            for phase in PHASES:
                scale = part[phase] * (later_share if task else 1.0)
                held = {role: int(size * scale) for role, size in at_peak.items()}
                highest = role_peaks if held == at_peak else held
                by_phase.append(
                    PhaseFootprint(
                        task=task, phase=phase, peak_bytes=sum(held.values()), op=op, at_peak=held, role_peaks=highest
                    )
                )
        result.footprint = Footprint(
            peak_bytes=peak,
            peak_task=tasks - 1 if later_share >= 1 else 0,
            peak_phase="step",
            peak_op=op,
            at_peak=at_peak,
            role_peaks=role_peaks,
            phases={phase: max(p.peak_bytes for p in by_phase if p.phase == phase) for phase in PHASES},
            by_phase=by_phase,
            timeline=Timeline(
                time_s=[0.5 * sample for sample in range(samples)],
                roles={
                    role: [size * (1 + sample % 2) // 2 for sample in range(samples)] for role, size in at_peak.items()
                },
                marks=[(0.0, "task 0 before_task"), (0.01, "task 0 first_step"), (0.5, "task 0 step")],
            ),
            workspace_at_peak={op: at_peak["workspace"]} if at_peak["workspace"] else {},
        )
        result.allocator = Allocator(
            kind="cpu", peak_bytes=peak - delta_bytes, by_phase=[(p.task, p.phase, p.peak_bytes) for p in by_phase]
        )
        result.observer_delta_bytes = delta_bytes
        curve = [(0.1, 10 * MIB), (2.0, 527 * MIB), (3.0, 600 * MIB + peak), (4.0, 560 * MIB)]
        result.process = Process(baseline_bytes=527 * MIB, peak_bytes=600 * MIB + peak, malloc="pinned", curve=curve)
        result.flops_per_step = 10**9
        result.fingerprint, result.data_digest = fingerprint, data_digest
    result.run_id = result.spec.run_id
    return result


def _accuracy_run(
    method: str,
    seed: int,
    class_il: list[list[float | None]] | None,
    task_il: list[list[float | None]] | None,
    *,
    status: Status = "ok",
    reason: str | None = None,
    joint: bool = False,
    fingerprint: str | None = None,
    data_digest: str | None = "da7a",
    **spec: Any,
) -> RunResult:
    """Return an accuracy run; its fingerprint depends on the seed alone unless one is given."""
    accuracy = Accuracy(class_il=class_il, task_il=task_il, untrained_class_il=None, untrained_task_il=None)
    result = RunResult(
        run_id="",
        spec=RunSpec.model_validate({**SETTING, "method": method, "seed": seed, "measure": "accuracy", **spec}),
        status=status,
        reason=reason,
        execution={"trunk_chunk": 0},
        joint=joint,
        method_config={"lr": 0.03, **spec.get("config", {})},
        environment=dict(ENVIRONMENT),
    )
    if status == "ok":
        result.accuracy = accuracy
        result.metrics = scenario_metrics(accuracy)
        result.process = Process(baseline_bytes=527 * MIB, peak_bytes=(900 + seed) * MIB, malloc="default")
        result.phase_s, result.wall_s = {"step": 10.0, "evaluate": 0.5 + seed}, 99.9
        result.fingerprint, result.data_digest = fingerprint or f"beef{seed}", data_digest
    result.run_id = result.spec.run_id
    return result


@pytest.fixture(autouse=True)
def any_number_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hand-made matrices have two tasks whatever the stream has, so that a reader can add them up."""
    lookup = Mock(side_effect=UsageError("the number of tasks is not asked for"))
    monkeypatch.setattr("clmem.harness.results.consistency.lookup", lookup)


@pytest.fixture
def memory_run() -> MakeRun:
    return _memory_run


@pytest.fixture
def accuracy_run() -> MakeRun:
    return _accuracy_run


@pytest.fixture
def example_runs() -> list[RunResult]:
    """Five methods: three seeds, one seed, task-IL only, joint, and one that failed."""
    sgd = {
        "parameters": 2.5,
        "module_buffers": 0.5,
        "gradients": 2.0,
        "input": 0.5,
        "activations": 10.0,
        "workspace": 2.0,
    }
    runs = [
        _memory_run("sgd", sgd),
        _memory_run("derpp", {**sgd, "activations": 20.0, "replay": 0.25}, config={"alpha": 0.1, "beta": 0.5}),
        _memory_run("pnn", {**sgd, "parameters": 5.0, "method_state": 1.0}, tasks=5, fingerprint="0f5"),
        _memory_run("joint", sgd, fingerprint="0dd", joint=True),
        _memory_run("gem", sgd, status="oom", reason="the process was killed | at 4,096 MiB"),
    ]
    for seed, last in enumerate((0.70, 0.72, 0.77)):
        rows: list[list[float | None]] = [[0.95, 0.0], [last, 0.9]]
        overrides = {"config": {"alpha": 0.1, "beta": 0.5}}
        runs.append(_accuracy_run("derpp", seed, rows, [[0.95, 0.5], [0.9, 0.96]], **overrides))
    runs.append(_accuracy_run("sgd", 0, [[0.95, 0.0], [0.0, 0.9]], [[0.95, 0.5], [0.8, 0.97]]))
    runs.append(_accuracy_run("sgd", 1, None, None, status="diverged", reason="the loss became NaN at task 1, step 7"))
    runs.append(_accuracy_run("pnn", 0, None, [[0.9, 0.5], [0.9, 0.95]]))
    runs.append(_accuracy_run("joint", 0, [[0.9, 0.92]], [[0.97, 0.98]], fingerprint="a110", joint=True))
    return runs
