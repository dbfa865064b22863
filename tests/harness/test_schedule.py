"""The short schedule reaches the bytes that a step really takes."""

from __future__ import annotations

import pytest

from harness.build import build
from harness.execution import Unwatched
from harness.spec import RunSpec
from harness.training import short_schedule


@pytest.mark.parametrize(
    ("batch_size", "replay_size", "buffer_size", "steps"),
    [(32, 32, 200, 2), (32, 15, 15, 2), (8, 24, 200, 2), (8, 25, 200, 3), (8, 64, 200, 5), (8, 64, 16, 2)],
)
def test_the_last_step_of_the_schedule_replays_in_full(
    batch_size: int, replay_size: int, buffer_size: int, steps: int
) -> None:
    spec = RunSpec(
        method="er",
        stream="synthetic-cifar10",
        width=1,
        batch_size=batch_size,
        replay_size=replay_size,
        buffer_size=buffer_size,
    )
    schedule = short_schedule(build(spec, Unwatched()).method)
    assert schedule.steps == steps
    stored_before_the_last_step = (2 * steps - 1) * batch_size
    assert stored_before_the_last_step >= min(replay_size, buffer_size)
