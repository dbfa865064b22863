"""How fast the stream hands out batches, beside torchvision's own way of making the same ones in the same minute.

A slow loader would not spoil a memory measurement, but nobody would run the accuracy suites. The ratio is what counts:
both are timed in turns inside one run, because the speed of the machine changes from one minute to the next.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest

from clmem.harness.streams import open_stream
from clmem.harness.streams.catalog import lookup

BATCH_SIZE = 32
STEPS = 64
ROUNDS = 5


def _epoch_s(batches: Callable[[], Iterable[Any]]) -> float:
    start = time.perf_counter()
    for _ in batches():
        pass
    return time.perf_counter() - start


def _torchvision_loader(raw: np.ndarray, labels: list[int], workers: int) -> Any:
    """Return torchvision's CIFAR10 behind a DataLoader, holding uint8 `raw` [N, 3, 32, 32] instead of its archive."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    info = lookup("split-cifar10")
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = np.ascontiguousarray(raw.transpose(0, 2, 3, 1))
    dataset.targets = labels
    dataset.target_transform = None
    dataset.transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([m / 1e4 for m in info.mean], [s / 1e4 for s in info.std]),
        ]
    )
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


@pytest.mark.benchmark(group="time")
def test_throughput_relative_to_torchvision(benchmark: Any) -> None:
    pytest.importorskip("torchvision", reason="torchvision is what is compared with, and is not installed")
    stream = open_stream("synthetic-cifar10", seed=0, batch_size=BATCH_SIZE, epochs=1, steps_per_task=STEPS)
    samples = list(stream.train_batches(0))
    raw = np.concatenate([batch.raw for batch in samples])
    labels = [int(label) for batch in samples for label in batch.labels]
    loaders = {workers: _torchvision_loader(raw, labels, workers) for workers in (0, 2)}
    for loader in loaders.values():
        # Starts the workers, which live on: only steady epochs are timed.
        _epoch_s(partial(iter, loader))

    seconds: dict[str, list[float]] = {"ours": [], "torchvision_0": [], "torchvision_2": []}

    def theirs() -> None:
        for workers, loader in loaders.items():
            seconds[f"torchvision_{workers}"].append(_epoch_s(partial(iter, loader)))

    def ours() -> None:
        seconds["ours"].append(_epoch_s(lambda: stream.train_batches(0)))

    benchmark.pedantic(ours, setup=theirs, rounds=ROUNDS, warmup_rounds=1)
    median_s = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median_s.items():
        benchmark.extra_info[f"{name}_images_per_s"] = round(len(raw) / value)
    ratios = {name: median_s[name] / median_s["ours"] for name in ("torchvision_0", "torchvision_2")}
    print()
    for name, ratio in ratios.items():
        benchmark.extra_info[f"times_as_fast_as_{name}"] = round(ratio, 2)
        print(f"the stream hands out images {ratio:.2f}x as fast as torchvision with {name[-1]} workers")
