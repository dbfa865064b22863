"""The short schedule reaches the bytes that a step really takes."""

from __future__ import annotations

import pytest

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.learning.training import short_schedule
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Method
from clmem.methods.joint import Joint
from clmem.methods.sgd import SGD


@pytest.mark.parametrize(
    ("batch_size", "replay_size", "buffer_size", "steps"),
    [(32, 32, 200, (1, 2)), (32, 15, 15, (1, 2)), (8, 24, 200, (3, 2)), (8, 64, 200, (8, 2)), (8, 64, 16, (2, 2))],
)
def test_the_last_step_of_the_schedule_replays_in_full(
    batch_size: int, replay_size: int, buffer_size: int, steps: tuple[int, ...]
) -> None:
    spec = RunSpec(
        method="er",
        stream="synthetic-cifar10",
        width=1,
        batch_size=batch_size,
        replay_size=replay_size,
        buffer_size=buffer_size,
    )
    for name in ("er", "sgd"):  # a method without a buffer consumes the same batches
        method = build(spec.model_copy(update={"method": name}), Unwatched()).method
        assert short_schedule(method).steps == steps
        assert short_schedule(method, steady=False).steps == (*steps[:-1], 1)
    assert steps[0] * batch_size >= min(replay_size, buffer_size), "also what is stored at the end of task 0 is enough"


def test_a_reservoir_of_a_methods_own_is_filled_before_it_is_drawn_from() -> None:
    config = {"memory_source": "reservoir", "memory_size": 64}
    spec = RunSpec(method="lightcl", config=config, width=1, batch_size=8, replay_size=15, buffer_size=15)
    assert short_schedule(build(spec, Unwatched()).method).steps == (8, 2)


class Growing(SGD):
    grows_with_tasks = "begun"


class GrowingByLearning(SGD):
    grows_with_tasks = "learnt"


@pytest.mark.parametrize(
    ("cls", "steps"), [(SGD, (1, 2)), (Joint, (2,)), (Growing, (1, 0, 0, 0, 1)), (GrowingByLearning, (1, 1, 1, 1, 1))]
)
def test_a_method_that_grows_with_the_tasks_visits_all_of_them(cls: type[Method], steps: tuple[int, ...]) -> None:
    setting = build(RunSpec(method="sgd", width=1), Unwatched()).method.context
    assert short_schedule(cls(setting, cls.Config())).steps == steps
