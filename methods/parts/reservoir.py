"""A reservoir of past samples: at any time a uniform random subset of everything seen.

Vitter, "Random sampling with a reservoir", ACM Transactions on Mathematical Software, 1985, Algorithm R.
Sample n (0-based) is written to slot n while n < B; after that r is drawn from {0 ... n}, and slot r is overwritten
if r < B.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clmem.methods.base import MethodContext


class Replayed(NamedTuple):
    """Samples drawn from a reservoir; every tensor is a copy, none looks into the slots.

    images: float32 [m, C, H, W], augmented anew and normalised. labels: int64 [m], global class numbers.
    logits: float32 [m, num_logits] as they were stored.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor


class Reservoir:
    """`slots` samples: un-augmented images, int64 labels and `num_logits` float32 logits each.

    Where they lie, and whether images are uint8 or float32, is the setting's.

    All slots are allocated, and written, in full when the first sample arrives: what a buffer costs does not depend
    on how full it is. Every draw comes from the method's own generator.
    """

    def __init__(self, context: MethodContext, slots: int, num_logits: int = 0) -> None:
        self.context = context
        self.slots = slots
        self.num_logits = num_logits
        self.seen = 0
        self.images: Tensor
        self.labels: Tensor
        self.logits: Tensor

    def __len__(self) -> int:
        return min(self.seen, self.slots)

    def add(self, raw: np.ndarray, labels: Tensor, logits: Tensor | None = None) -> None:
        """Offer n samples in order: raw uint8 [n, C, H, W] on the host, labels [n] and logits [n, num_logits]."""
        if self.slots == 0:
            return
        if self.seen == 0:
            self._allocate()
        numbers = self.seen + np.arange(len(raw))
        slots = np.where(numbers < self.slots, numbers, self.slots)
        late = numbers >= self.slots
        slots[late] = self.context.rng.integers(0, numbers[late] + 1)
        self.seen += len(raw)

        # Of several samples that hit one slot the last one stays, as if they had been written one by one.
        written, from_the_end = np.unique(slots[::-1], return_index=True)
        sources = len(raw) - 1 - from_the_end
        sources, written = sources[written < self.slots], written[written < self.slots]
        if len(written) == 0:
            return
        at, place = self._index(written), self.context.replay_device
        chosen = torch.from_numpy(sources).to(labels.device)
        self.images.index_copy_(0, at, torch.from_numpy(raw[sources]).to(place, self.context.replay_dtype))
        self.labels.index_copy_(0, at, labels.index_select(0, chosen).to(place))
        if logits is not None:
            self.logits.index_copy_(0, at, logits.index_select(0, chosen).to(place))

    def draw(self, count: int) -> Replayed:
        """Return min(count, len(self)) different samples, uniformly chosen."""
        chosen = self._index(self.context.rng.choice(len(self), size=min(count, len(self)), replace=False))
        device, rng = self.context.device, self.context.rng
        images = self.context.augment(self.images.index_select(0, chosen).to(device, torch.uint8), rng)
        labels, logits = (stored.index_select(0, chosen).to(device) for stored in (self.labels, self.logits))
        return Replayed(images, labels, logits)

    def tensors(self) -> Iterable[Tensor]:
        """Return everything stored, for `memory_roles`."""
        return [self.images, self.labels, self.logits] if self.seen else []

    def state_dict(self) -> dict[str, Any]:
        """Return the slots and how many samples were offered, for a checkpoint."""
        return {"seen": self.seen, "slots": list(self.tensors())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the slots of another reservoir of the same size."""
        self.seen = state["seen"]
        if self.seen:
            self.images, self.labels, self.logits = state["slots"]

    def _allocate(self) -> None:
        device, dtype = self.context.replay_device, self.context.replay_dtype
        # zeros, not empty: pages that nobody has written to are missing from what the operating system counts.
        self.images = torch.zeros((self.slots, *self.context.image_shape), dtype=dtype, device=device)
        self.labels = torch.zeros(self.slots, dtype=torch.int64, device=device)
        self.logits = torch.zeros((self.slots, self.num_logits), device=device)

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.context.replay_device)
