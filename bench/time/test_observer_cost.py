"""What observing costs: steps of the attribution pass against bare steps of the same method, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clmem.harness.runs.inherited import COUNTING_THREADS
from clmem.harness.runs.job import Job
from clmem.harness.runs.processes import Workers
from clmem.harness.specs.run import RunSpec

ROUNDS = 3

BARE = """
import sys
from clmem.harness.learning.build import build
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.specs.run import RunSpec
from clmem.harness.learning.training import Progress, short_schedule, train

run, progress = build(RunSpec.model_validate_json(sys.stdin.read()), Unwatched()), Progress()
train(run, short_schedule(run.method), Unwatched(), progress)
print(progress.seconds["step"], progress.steps)
"""
"""The schedule, loop and clock of the attribution pass, with nobody looking on."""


def steady_step_s(seconds: float, steps: int) -> float:
    """Return the seconds of one step, given those of all but the first of each of the short schedule's two tasks."""
    assert steps > 2
    return seconds / (steps - 2)


def bare_step_s(spec: RunSpec) -> float:
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        input=spec.model_dump_json(),
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": str(COUNTING_THREADS),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seconds, steps = done.stdout.split()
    return steady_step_s(float(seconds), int(steps))


def observed_step_s(spec: RunSpec) -> float:
    outcome = Workers(threads=COUNTING_THREADS).run(Job(spec=spec, what="attribution"), 600, lambda fields: None)
    assert outcome.status == "ok", outcome.reason
    return steady_step_s(outcome.phase_s["step"], outcome.steps)


@pytest.mark.parametrize("method", ["sgd", "derpp"])
def test_observed_steps_relative_to_bare_ones(benchmark: Any, method: str) -> None:
    spec = RunSpec(method=method, stream="synthetic-cifar10", buffer_size=15, replay_size=15)
    bare: list[float] = []
    observed: list[float] = []

    def one_round() -> None:
        bare.append(bare_step_s(spec))
        observed.append(observed_step_s(spec))

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    ratio = min(observed) / min(bare)
    benchmark.extra_info.update(ratio=round(ratio, 3), bare_s=min(bare), observed_s=min(observed))
    print(f"\n{method}: observed {min(observed):.3f} s, bare {min(bare):.3f} s a step: {ratio:.2f}x")
