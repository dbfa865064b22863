"""Dynamic data removal (DDR) of SparCL: samples that were learnt and not forgotten are left out for the rest of a task.

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022; forgetting events are those of Toneva et
al., "An Empirical Study of Example Forgetting", ICLR 2019.

A sample is forgotten once for every time that it is learnt wrong after it was learnt right. At 10, 20, 30 and 40 % of a
task's steps a quarter of `share` of its samples is removed, the least forgotten first, ties by chance; those that were
never right, or never seen, go last. All return with the next task. (Released: after epochs 5, 10, 15 and 20 of 50.)

In a task of one epoch samples are removed once they have been seen, and would not have come again: nothing is saved.

Differs from the released code: right is what is right in the task's slice, there over all classes; and what is known of
a sample is kept through a task, there it begins anew after each removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clmem.methods.base import MethodContext

TENTHS = (1, 2, 3, 4)
"""Removals, in tenths of a task's steps."""
SMALLEST_BATCH = 2
"""A batch norm whose maps have one pixel cannot normalise one sample."""


def removals_until(step: int, total: int) -> int:
    """Return how many removals fall on steps 0 ... `step` of a task of `total` steps.

    One that would fall on step 0, before anything was learnt, does not take place. A task of one or two steps, as a
    memory measurement has, therefore removes nothing and is measured with whole batches.
    """
    return sum(1 <= tenth * total // 10 <= step for tenth in TENTHS)


class DataRemoval:
    """What is known of the samples of the present task, and which of them are left out.

    forgotten: int16 [samples]. correct: bool [samples], whether each was right when it was last learnt. removed: bool
    [samples], always on the host, where batches are cut. All are empty between tasks, and with a share of 0.
    """

    def __init__(self, context: MethodContext, share: float) -> None:
        self.context = context
        self.share = share
        self.end_task()

    def begin_task(self, num_samples: int) -> None:
        """Let every sample of a new task take part."""
        if self.share > 0:
            self._allocate(num_samples)

    def end_task(self) -> None:
        """Forget the task's samples."""
        self._allocate(0)

    def begin_step(self, step: int, total: int) -> None:
        """Remove what is due at `step` of `total`."""
        num_samples = len(self.removed)
        wanted = round(self.share * num_samples * removals_until(step, total) / len(TENTHS))
        removed = self.removed.numpy()
        missing = wanted - int(removed.sum())
        if missing > 0:
            rest = self.context.rng.permutation(np.flatnonzero(~removed))  # so that a stable sort breaks ties by chance
            forgotten, right = self.forgotten.cpu().numpy()[rest], self.correct.cpu().numpy()[rest]
            never_learnt = (forgotten == 0) & ~right
            order = np.where(never_learnt, np.iinfo(forgotten.dtype).max, forgotten)
            removed[rest[np.argsort(order, kind="stable")[:missing]]] = True

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which rows of a batch are learnt: those not removed, or all where fewer than two would remain."""
        everything = np.arange(len(positions))
        if len(self.removed) == 0:
            return everything
        rows = everything[~self.removed.numpy()[positions]]
        return rows if len(rows) >= SMALLEST_BATCH else everything

    def observe(self, positions: NDArray[np.int64], logits: Tensor, labels: Tensor, classes: range) -> None:
        """Note which samples were right when they were learnt, without waiting for the device.

        logits [n, all classes] of the step, of which the slice `classes` decides; labels int64 [n].
        """
        if len(self.removed) == 0:
            return
        right = logits[:, classes.start : classes.stop].argmax(1) + classes.start == labels
        at = torch.from_numpy(positions).to(right.device)
        lost = self.correct.index_select(0, at) & ~right
        self.forgotten.index_add_(0, at, lost.to(torch.int16))
        self.correct.index_copy_(0, at, right)

    def tensors(self) -> Iterable[Tensor]:
        """Return everything stored, for `memory_roles`."""
        return [self.forgotten, self.correct, self.removed]

    def state_dict(self) -> dict[str, Any]:
        """Return everything stored, for a checkpoint."""
        return {"forgotten": self.forgotten, "correct": self.correct, "removed": self.removed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another process knew of the present task."""
        self.forgotten = state["forgotten"].to(self.context.device)
        self.correct = state["correct"].to(self.context.device)
        self.removed = state["removed"].cpu()

    def _allocate(self, num_samples: int) -> None:
        device = self.context.device
        self.forgotten = torch.zeros(num_samples, dtype=torch.int16, device=device)
        self.correct = torch.zeros(num_samples, dtype=torch.bool, device=device)
        self.removed = torch.zeros(num_samples, dtype=torch.bool, device="cpu")


def taken(tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """Return these rows of a tensor [b, ...], in a copy; the tensor itself when they are all of it."""
    if len(rows) == len(tensor):
        return tensor
    return tensor.index_select(0, torch.from_numpy(rows).to(tensor.device))
