"""What observing costs: steps of the attribution pass against bare steps of the same method, in fresh processes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from harness.job import Job, Pass
from harness.processes import Workers
from harness.spec import RunSpec

ROUNDS = 3


def seconds_per_step(what: Pass, spec: RunSpec) -> float:
    """Seconds of one steady step, with every thread to itself."""
    outcome = Workers(threads=os.cpu_count() or 1).run(Job(spec=spec, what=what), 600, lambda fields: None)
    assert outcome.status == "ok", outcome.reason
    return outcome.phase_s["step"] / (outcome.steps // 2)  # two steps a task: one of them is the first


@pytest.mark.parametrize("method", ["sgd", "derpp"])
def test_attribution_costs_little_more_than_bare_steps(benchmark: Any, method: str) -> None:
    spec = RunSpec(method=method, stream="synthetic-cifar10", buffer_size=15, replay_size=15, steps_per_task=2)
    bare: list[float] = []
    watched: list[float] = []

    def one_round() -> None:
        bare.append(seconds_per_step("accuracy", spec.model_copy(update={"measure": "accuracy"})))
        watched.append(seconds_per_step("attribution", spec))

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    ratio = min(watched) / min(bare)
    benchmark.extra_info.update(ratio=round(ratio, 3), bare_s=min(bare), attribution_s=min(watched))
    print(f"\n{method}: attribution {min(watched):.3f} s, bare {min(bare):.3f} s a step: {ratio:.2f}x")
    assert ratio < 1.3
