"""The operations of a step, counted without doing them."""

from __future__ import annotations

import pytest

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning import flops
from clmem.harness.learning.build import build
from clmem.harness.learning.flops import count_flops
from clmem.harness.learning.registry import method_names
from clmem.harness.learning.training import Progress, short_schedule, train
from clmem.harness.specs.run import NOWHERE, RunSpec

READS_VALUES = {"sparcl-er", "sparcl-derpp"}
"""Methods whose steps depend on values, so that one must really be taken."""


@pytest.mark.parametrize("name", method_names())
def test_a_step_without_values_has_the_operations_of_a_real_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"fisher_samples": 2} if name == "ewc" else {}
    spec = RunSpec(method=name, config=config, width=1, batch_size=16, buffer_size=12, replay_size=4)
    trained = build(spec, Unwatched())
    schedule = short_schedule(trained.method)
    assert schedule.steps is not None
    train(trained, schedule, Unwatched(), Progress())
    real = flops._one_step(trained, len(schedule.steps) - 1)
    taken: list[bool] = []
    one_step = flops._one_step

    def counted(run: object, index: int) -> int:
        taken.append(run is trained)
        return one_step(run, index)  # type: ignore[arg-type]

    monkeypatch.setattr(flops, "_one_step", counted)
    assert count_flops(spec, NOWHERE, schedule.steps, trained) == real > 0
    assert taken[-1] == (name in READS_VALUES)
