"""Noise of the right shape: for memory, where the values do not matter and no data should be needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from clmem.harness.streams.catalog import StreamInfo
from clmem.harness.streams.samples import DataSet, Split

TRAIN_PER_TASK = 8192
TEST_PER_TASK = 1024
_POOL_BYTES = 1 << 18


@dataclass(frozen=True)
class NoiseImages:
    """Images cut from one small pool of random bytes, each from its own place: the same index, the same image."""

    pool: NDArray[np.uint8]
    shape: tuple[int, int, int]
    count: int

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a fresh uint8 [n, C, H, W] of the images at `indices` [n]."""
        size = int(np.prod(self.shape))
        out = np.empty((len(indices), size), np.uint8)
        for row, index in zip(out, indices, strict=True):
            start = int(index) * 7919 % (len(self.pool) - size)
            row[:] = self.pool[start : start + size]
        return out.reshape(len(indices), *self.shape)


def synthetic(info: StreamInfo) -> DataSet:
    """Return noise with the stream's shape, its classes in turn, the same on every machine."""
    pool_bytes = max(_POOL_BYTES, 2 * int(np.prod(info.image_shape)))
    pool = np.random.Philox(np.random.SeedSequence(0)).random_raw(pool_bytes // 8).astype("<u8").view(np.uint8)

    def split(per_task: int) -> Split:
        count = max(per_task * info.num_tasks, info.num_classes)
        labels = np.arange(count, dtype=np.int64) % info.num_classes
        return Split(NoiseImages(pool, info.image_shape, count), labels)

    return DataSet(split(TRAIN_PER_TASK), split(TEST_PER_TASK), xxhash.xxh3_128_hexdigest(pool.data))
