"""The fingerprint says what was consumed: equal for equal streams, and nothing but consuming moves it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clmem.harness.streams import open_stream
from clmem.harness.streams.stream import TaskStream


def consumed(stream: TaskStream, tasks: int = 2) -> str:
    for t in range(tasks):
        for _ in stream.train_batches(t):
            pass
    return stream.fingerprint


def opened(**changes: object) -> TaskStream:
    options: dict[str, object] = {"seed": 0, "batch_size": 16, "epochs": 2, "steps_per_task": 3}
    return open_stream("synthetic-cifar10", **{**options, **changes})  # type: ignore[arg-type]


def test_two_streams_consumed_alike_have_one_fingerprint() -> None:
    assert consumed(opened()) == consumed(opened())


def test_peeking_testing_and_replaying_leave_the_fingerprint_alone() -> None:
    stream = opened()
    before = stream.fingerprint
    stream.train_task(0).batch(1, 2)
    list(stream.test_batches(0, limit=1))
    stream.augment(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), np.random.default_rng(0))
    assert stream.fingerprint == before
    assert consumed(stream) == consumed(opened())


def test_every_batch_counts_when_it_is_handed_out() -> None:
    stream = opened()
    seen = [stream.fingerprint]
    for _ in stream.train_batches(0):
        seen.append(stream.fingerprint)
    assert len(set(seen)) == len(seen) == 7
    other = opened()
    next(other.train_batches(0))
    assert other.fingerprint == seen[1]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 17}, {"epochs": 1}, {"steps_per_task": 2}, {"joint": True}]
)
def test_whatever_changes_the_batches_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert consumed(opened(**change), tasks=1) != consumed(opened(), tasks=1)


def test_the_order_of_tasks_counts() -> None:
    forth, back = opened(), opened()
    for t in (0, 1):
        list(forth.train_batches(t))
        list(back.train_batches(1 - t))
    assert forth.fingerprint != back.fingerprint


def test_the_data_digest_names_the_data_not_the_run() -> None:
    digests = {opened(seed=seed, batch_size=size).data_digest for seed in (0, 1) for size in (16, 32)}
    other = open_stream("synthetic-cifar100", seed=0, batch_size=16, epochs=1)
    assert len(digests) == 1
    assert other.data_digest not in digests
