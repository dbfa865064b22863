"""What makes methods comparable: the same batches for each, and peaks that lie as their algorithms say."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from torch import Tensor

from clmem.harness.answers.prediction import predicted_peak_bytes
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.learning.registry import method_class, method_names
from clmem.harness.learning.training import Progress, Schedule, train
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Batch


def test_every_method_learns_from_the_same_batches() -> None:
    """What the stream hands out, and what reaches the step: no method skips a batch, reorders or changes images."""
    streams, learnt = set(), set()
    for name in method_names():
        if method_class(name).joint:  # learns all tasks at once, in an order of its own
            continue
        run = build(RunSpec(method=name, width=1, batch_size=16, buffer_size=16, replay_size=8), Unwatched())
        seen, learn = sha256(), run.runner.learn

        def note(batch: Batch, seen: Any = seen, learn: Any = learn) -> Tensor:
            seen.update(batch.images.numpy().tobytes())
            result: Tensor = learn(batch)
            return result

        run.runner.learn = note  # type: ignore[method-assign]
        train(run, Schedule((2, 2), 1, evaluate_all=False), Unwatched(), Progress())
        streams.add(run.stream.fingerprint)
        learnt.add(seen.hexdigest())
    assert len(streams) == len(learnt) == 1


@pytest.mark.parametrize("vectors", ["per_parameter", "flattened"])
def test_an_implicit_step_of_ewc_takes_the_bytes_of_an_explicit_one(vectors: str) -> None:
    """At a batch of one, where parameters and not activations make the peak."""
    shape = {"method": "ewc", "stream": "synthetic-cifar10", "width": 8, "batch_size": 1, "replay_size": 1}
    config = {"vectors": vectors, "fisher_samples": 2}
    peaks = {
        penalty: predicted_peak_bytes(RunSpec(**shape, config={**config, "penalty": penalty}))  # type: ignore[arg-type]
        for penalty in ("inplace", "implicit", "graph")
    }
    assert peaks["inplace"] == peaks["implicit"]
    assert (peaks["graph"] or 0) > (peaks["inplace"] or 0) > 0


def test_peaks_lie_as_the_algorithms_say() -> None:
    """By prediction, which other tests hold to the measured byte."""
    shape = {"stream": "synthetic-cifar10", "width": 8, "buffer_size": 15, "replay_size": 15}
    configs = {name: {"trunk": "frozen"} for name in ("lightcl", "lightcl-sparse")}
    peaks = {
        name: predicted_peak_bytes(RunSpec(method=name, config=configs.get(name, {}), **shape)) or 0
        for name in ("derpp", "er", "fdr", "sgd", "lightcl", "lightcl-sparse", "sparcl-er", "sparcl-derpp")
    }
    assert peaks["derpp"] > peaks["er"] > peaks["sgd"] > peaks["lightcl"] > 0
    buffer_bytes = 15 * (3 * 32 * 32 + 4 * 10 + 8)  # images, logits, task numbers
    assert peaks["fdr"] - peaks["sgd"] == buffer_bytes
    for masked, whole in (("sparcl-er", "er"), ("sparcl-derpp", "derpp"), ("lightcl-sparse", "lightcl")):
        assert peaks[masked] > peaks[whole], "masks cost memory"
