"""What makes methods comparable: the same batches for each, and peaks that lie as their algorithms say."""

from __future__ import annotations

from dataclasses import replace

from harness.build import build
from harness.execution.monitor import Unwatched
from harness.registry import method_class, method_names
from harness.results import RunResult
from harness.spec import RunSpec
from harness.suite import run_specs


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
    shape = {"stream": "synthetic-cifar10", "width": 8, "buffer_size": 15, "replay_size": 15, "measure": "peak"}
    names = ("derpp", "er", "fdr", "sgd", "lightcl")
    configs = {"lightcl": {"trunk": "frozen"}}
    found: list[RunResult] = []
    run_specs([RunSpec(method=name, config=configs.get(name, {}), **shape) for name in names], found.append)
    peaks = {result.spec.method: result.allocator.peak_bytes for result in found if result.allocator is not None}
    assert peaks["derpp"] > peaks["er"] > peaks["sgd"] > peaks["lightcl"]
    buffer_bytes = 15 * (3 * 32 * 32 + 4 * 10 + 8)  # images, logits, task numbers
    assert peaks["fdr"] - peaks["sgd"] == buffer_bytes
