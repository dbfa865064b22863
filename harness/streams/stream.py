"""A stream of tasks: which samples, in which order, cropped how. Nothing here depends on who consumes it.

Every draw has its own generator, keyed by (seed, purpose, task, epoch, step): asking for one batch neither needs nor
moves any other. A task's order is drawn anew for each epoch, and every training batch is full: what an epoch's order
leaves over at its end is not trained on in that epoch (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from clmem.harness.errors import UsageError
from clmem.harness.streams.augment import Crops, augment, draw_crops, normalisation, to_tensor
from clmem.harness.streams.catalog import PAD, StreamInfo
from clmem.harness.streams.samples import DataSet, Split
from clmem.methods.base import Batch, Task

PROTOCOL = 2
"""Bump when a batch of an unchanged data set changes, or the way batches are digested."""

_SHUFFLE, _AUGMENT, _VALIDATION = 0, 1, 2
VALIDATION_SHARE = 10
"""One in so many training samples of every class is held out for validation."""


@dataclass(frozen=True)
class _Drawn:
    """A batch before it becomes tensors: sample numbers in the data set and in the task, labels, raw pixels, crops."""

    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    raw: NDArray[np.uint8]
    crops: Crops


class TaskStream:
    """One opened stream; see `clmem.harness.streams.open_stream`.

    tasks: global classes of each of the `num_tasks` tasks; they are what is evaluated, also when `joint`.
    num_train_tasks: 1 when joint, else num_tasks. has_data: False for noise, on which accuracy means nothing.
    validate: evaluate on held-out training samples; which ones depends on the data set alone, not on the seed.
    """

    def __init__(
        self,
        info: StreamInfo,
        data: DataSet,
        *,
        seed: int,
        batch_size: int,
        epochs: int,
        steps_per_task: int | None = None,
        device: str = "cpu",
        joint: bool = False,
        validate: bool = False,
    ) -> None:
        for name, value in (("batch size", batch_size), ("epochs", epochs), ("steps per task", steps_per_task)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but must be at least 1")
        self.name = info.name
        self.num_classes = info.num_classes
        self.num_tasks = info.num_tasks
        self.image_shape = info.image_shape
        self.tasks = info.tasks
        self.has_data = info.data != "synthetic"
        self.joint = joint
        self.num_train_tasks = 1 if joint else info.num_tasks
        self.batch_size = batch_size
        self.epochs = epochs
        self.data_digest = _data_digest(info, data)

        self._data = data
        self._seed = seed
        self._device = torch.device(device)
        self._flips = info.flip
        self._constants = normalisation(info.mean, info.std)
        self._cap = steps_per_task if steps_per_task is None or not joint else steps_per_task * info.num_tasks
        train = [_members(data.train, classes) for classes in info.tasks]
        self._evaluated, self._test = data.test, [_members(data.test, classes) for classes in info.tasks]
        if validate:
            held_out = _held_out(data.train, info.num_classes)
            self._evaluated, self._test = data.train, [np.intersect1d(members, held_out) for members in train]
            train = [np.setdiff1d(members, held_out) for members in train]
        smallest = min(len(members) for members in train)
        if batch_size > smallest:
            raise UsageError(
                f"batch size {batch_size} is larger than the smallest task of {info.name}, "
                f"which has {smallest} training images: choose a batch size up to {smallest}"
            )
        self._train = [np.sort(np.concatenate(train))] if joint else train
        # An epoch's order is asked for at every step: keep the last one of a method that peeks beside its own.
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._consumed = xxhash.xxh3_128_digest(_protocol(info).encode())

    @property
    def fingerprint(self) -> str:
        """Return the hex digest of every training batch that `train_batches` has handed out so far, in order.

        A chain: each batch's digest covers the one before it, so that a checkpoint needs to keep 16 bytes only.
        """
        return self._consumed.hex()

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        self._consumed = bytes.fromhex(value)

    def train_task(self, t: int) -> Task:
        """Return training task `t`; its `batch(epoch, step)` is pure and leaves the fingerprint alone."""
        members = self._members_of(t)
        classes = range(self.num_classes) if self.joint else self.tasks[t]
        steps = len(members) // self.batch_size
        if self._cap is not None:
            steps = min(steps, self._cap)
        return Task(t, classes, self.epochs, steps, len(members), partial(self._batch, t))

    def train_batches(self, t: int, first: int = 0) -> Iterator[Batch]:
        """Yield task `t`'s batches from number `first` on, adding each to the fingerprint as it is handed out."""
        task = self.train_task(t)
        for number in range(first, task.epochs * task.steps_per_epoch):
            epoch, step = divmod(number, task.steps_per_epoch)
            drawn = self._draw(t, epoch, step)
            self._consume(drawn, t, epoch, step)
            # no name for the batch: a suspended generator would keep it alive beside the next one
            yield self._build(drawn, task.classes, t, epoch, step)

    def test_batches(self, t: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield task `t` of the official test split (or of the held-out samples), un-augmented, in file order.

        Each item is (images float32 [b, C, H, W] normalised, labels int64 [b]), on the device, b at most the batch
        size; the last one may be smaller. limit: at most so many batches.
        """
        members = self._test[t]
        starts = range(0, len(members), self.batch_size)[:limit]
        for start in starts:
            indices = members[start : start + self.batch_size]
            raw = self._evaluated.images.gather(indices)
            yield to_tensor(raw, self._constants, None).to(self._device), self._labels(self._evaluated.labels[indices])

    def augment(self, raw: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment replayed images as the stream does its own.

        raw: uint8 [n, C, H, W] on any device; the float32 result lies on the same one. rng: the caller's generator.
        """
        return augment(raw, self._constants, self._flips, rng)

    def _members_of(self, t: int) -> NDArray[np.int64]:
        if not 0 <= t < self.num_train_tasks:
            raise IndexError(f"task {t} of {self.num_train_tasks} training tasks")
        return self._train[t]

    def _bits(self, purpose: int, *key: int) -> np.random.Philox:
        return np.random.Philox(np.random.SeedSequence(self._seed, spawn_key=(purpose, *key)))

    def _draw_order(self, t: int, epoch: int) -> NDArray[np.int64]:
        members = self._members_of(t)
        # Sorting raw bits, unlike Generator.permutation, gives the same order with every version of numpy.
        keys = self._bits(_SHUFFLE, t, epoch).random_raw(len(members))
        return np.argsort(keys, kind="stable")

    def _draw(self, t: int, epoch: int, step: int) -> _Drawn:
        task = self.train_task(t)
        if not (0 <= epoch < task.epochs and 0 <= step < task.steps_per_epoch):
            limits = f"{task.epochs} epochs of {task.steps_per_epoch} steps"
            raise IndexError(f"epoch {epoch}, step {step} is outside the {limits} of task {t}")
        positions = self._order(t, epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        indices = self._members_of(t)[positions]
        crops = draw_crops(len(indices), self._flips, self._bits(_AUGMENT, t, epoch, step))
        train = self._data.train
        return _Drawn(indices, positions, train.labels[indices], train.images.gather(indices), crops)

    def _build(self, drawn: _Drawn, classes: range, t: int, epoch: int, step: int) -> Batch:
        if self._device.type == "meta":  # in a prediction nobody looks at pixels
            images = torch.empty(drawn.raw.shape, dtype=torch.float32, device="meta")
        else:
            images = to_tensor(drawn.raw, self._constants, drawn.crops).to(self._device)
        return Batch(images, self._labels(drawn.labels), drawn.raw, drawn.positions, classes, t, epoch, step)

    def _batch(self, t: int, epoch: int, step: int) -> Batch:
        return self._build(self._draw(t, epoch, step), self.train_task(t).classes, t, epoch, step)

    def _labels(self, labels: NDArray[np.int64]) -> Tensor:
        out = torch.empty(len(labels), dtype=torch.int64)
        out.numpy()[:] = labels
        return out.to(self._device)

    def _consume(self, drawn: _Drawn, t: int, epoch: int, step: int) -> None:
        crops = drawn.crops
        numbers = ([t, epoch, step, len(drawn.indices)], drawn.indices, drawn.labels, crops.top, crops.left, crops.flip)
        link = xxhash.xxh3_128(self._consumed)
        link.update(np.concatenate(numbers).astype("<i8").tobytes())
        link.update(np.ascontiguousarray(drawn.raw).data)
        self._consumed = link.digest()


def _members(split: Split, classes: range) -> NDArray[np.int64]:
    return np.flatnonzero((split.labels >= classes.start) & (split.labels < classes.stop)).astype(np.int64)


def _held_out(train: Split, num_classes: int) -> NDArray[np.int64]:
    """Return the training samples held out for validation, sorted: the same for every seed."""
    chosen = []
    for label in range(num_classes):
        members = _members(train, range(label, label + 1))
        keys = np.random.Philox(np.random.SeedSequence(0, spawn_key=(_VALIDATION, label))).random_raw(len(members))
        chosen.append(members[np.argsort(keys, kind="stable")[: len(members) // VALIDATION_SHARE]])
    return np.sort(np.concatenate(chosen))


def _protocol(info: StreamInfo) -> str:
    """Return everything but the data that decides what a batch holds, as text made of integers and the name."""
    parts = (PROTOCOL, info.num_tasks, info.num_classes, info.image_shape, info.mean, info.std, PAD, int(info.flip))
    return f"{info.name} {parts}"


def _data_digest(info: StreamInfo, data: DataSet) -> str:
    return xxhash.xxh3_128_hexdigest(f"{_protocol(info)} {data.digest}".encode())
