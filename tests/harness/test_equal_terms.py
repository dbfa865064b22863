"""What makes methods comparable: the same batches for each, and peaks that lie as their algorithms say."""

from __future__ import annotations

from dataclasses import replace

from harness.build import build
from harness.execution.monitor import Unwatched
from harness.prediction import predicted_peak_bytes
from harness.registry import method_class, method_names
from harness.spec import RunSpec


def test_every_method_consumes_the_same_batches() -> None:
    found = set()
    for name in method_names():
        if method_class(name).joint:  # learns all tasks at once, in an order of its own
            continue
        run = build(RunSpec(method=name, width=1, batch_size=16, buffer_size=16, replay_size=8), Unwatched())
        for index in range(2):
            task = replace(run.stream.train_task(index), steps_per_epoch=1, epochs=1)
            run.method.before_task(task)
            run.execution.learn(next(run.stream.train_batches(index)))
        found.add(run.stream.fingerprint)
    assert len(found) == 1


def test_peaks_lie_as_the_algorithms_say() -> None:
    """By prediction, which other tests hold to the measured byte."""
    shape = {"stream": "synthetic-cifar10", "width": 8, "buffer_size": 15, "replay_size": 15}
    configs = {"lightcl": {"trunk": "frozen"}}
    peaks = {
        name: predicted_peak_bytes(RunSpec(method=name, config=configs.get(name, {}), **shape)) or 0
        for name in ("derpp", "er", "fdr", "sgd", "lightcl")
    }
    assert peaks["derpp"] > peaks["er"] > peaks["sgd"] > peaks["lightcl"] > 0
    buffer_bytes = 15 * (3 * 32 * 32 + 4 * 10 + 8)  # images, logits, task numbers
    assert peaks["fdr"] - peaks["sgd"] == buffer_bytes
