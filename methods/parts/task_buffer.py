"""A buffer that the tasks share evenly: as many slots for each, fewer with every task that comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clmem.methods.base import MethodContext

FREE = -1


class Recalled(NamedTuple):
    """Samples drawn from the buffer; every tensor is a copy, none looks into the slots.

    images: float32 [m, C, H, W], augmented anew and normalised. logits: float32 [m, all classes] as they were stored.
    """

    images: Tensor
    logits: Tensor


class TaskBuffer:
    """`slots` samples: un-augmented images and float32 logits of all classes, where and in what type the setting says;
    on the host int64 task numbers, for nothing but the host reads them.

    All slots are allocated, and written, in full when the first samples arrive. No sample ever moves: a task that must
    give way frees slots, and those of the next task are written over them. Draws come from the method's own generator.
    """

    def __init__(self, context: MethodContext, slots: int) -> None:
        self.context = context
        self.slots = slots
        self.filled: NDArray[np.int64] = np.empty(0, np.int64)
        """Numbers of the slots in use, on the host: a draw needs no look at the device."""
        self.allocated = False
        self.images: Tensor
        self.logits: Tensor
        self.tasks: Tensor

    def __len__(self) -> int:
        return len(self.filled)

    def keep(self, quota: int) -> None:
        """Keep the first `quota` samples of every task and free the slots of the others."""
        if len(self) > 0:
            owners = self.tasks.numpy()
            spare = [np.flatnonzero(owners == task)[quota:] for task in np.unique(owners[self.filled])]
            self._assign(np.concatenate(spare), FREE)

    def add(self, raw: NDArray[np.uint8], logits: Tensor, task: int) -> None:
        """Store n samples in free slots: raw uint8 [n, C, H, W] on the host, logits [n, all classes].

        Raises ValueError when fewer are free.
        """
        free = np.setdiff1d(np.arange(self.slots), self.filled)[: len(raw)]
        if len(free) < len(raw):
            raise ValueError(
                f"{len(raw)} samples of task {task} do not fit into {len(free)} free slots of {self.slots}; "
                "free some with keep(quota) before"
            )
        if not self.allocated:
            self._allocate()
        at = self._index(free)
        place = self.context.replay_device
        self.images.index_copy_(0, at, torch.from_numpy(raw).to(place, self.context.replay_dtype))
        self.logits.index_copy_(0, at, logits.to(place))
        self._assign(free, task)

    def draw(self, count: int) -> Recalled:
        """Return min(count, len(self)) different samples, uniformly chosen."""
        chosen = self._index(self.context.rng.choice(self.filled, size=min(count, len(self)), replace=False))
        device, rng = self.context.device, self.context.rng
        images = self.context.augment(self.images.index_select(0, chosen).to(device, torch.uint8), rng)
        return Recalled(images, self.logits.index_select(0, chosen).to(device))

    def tensors(self) -> Iterable[Tensor]:
        """Return everything stored, for `memory_roles`."""
        return [self.images, self.logits, self.tasks] if self.allocated else []

    def state_dict(self) -> dict[str, Any]:
        """Return the slots, for a checkpoint."""
        return {"slots": list(self.tensors())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the slots of another buffer of the same size."""
        if state["slots"]:
            self.images, self.logits, self.tasks = state["slots"]
            self.allocated = True
            self._find_filled()

    def _allocate(self) -> None:
        device, dtype = self.context.replay_device, self.context.replay_dtype
        # zeros, not empty: pages that nobody has written to are missing from what the operating system counts.
        self.images = torch.zeros((self.slots, *self.context.image_shape), dtype=dtype, device=device)
        self.logits = torch.zeros((self.slots, self.context.num_classes), device=device)
        self.tasks = torch.full((self.slots,), FREE, dtype=torch.int64, device="cpu")  # read on the host alone
        self.allocated = True

    def _assign(self, slots: NDArray[np.int64], task: int) -> None:
        self.tasks.index_fill_(0, torch.from_numpy(slots), task)
        self._find_filled()

    def _find_filled(self) -> None:
        self.filled = np.flatnonzero(self.tasks.numpy() != FREE)

    def _index(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self.context.replay_device)
