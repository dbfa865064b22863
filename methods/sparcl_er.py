"""SparCL on experience replay (SparCL-ER): learn with sparse weights, sparse gradients and ever less data.

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022 (arXiv 2209.09476).

    loss = CE(f(x + x_m), y + y_m)        over the task's slice for y, over all classes for y_m, in ONE forward
    W   <- M_w (W - lr M_g dloss/dW)      on the sixteen 3x3 convolutions of layer1 ... layer4

M_w is a task-aware dynamic mask, M_g a dynamic gradient mask (both `parts/sparse_training.py`), and x lacks the samples
that dynamic data removal left out (`parts/data_removal.py`). Weights, gradients and activations are dense as in `er`:
what is sparse is zero, not absent, and the masks come on top.

Differs from the paper / the released code in:
- masks are 1 bit per weight; `sparcl-er@released` holds the released code's two float32 masks per masked layer.
- schedules are fractions of a task's steps: what they do at epoch e of 50 happens at e / 50 of the steps.
- a weight mask moves between a backward and the optimizer step, by that step's gradient before it is masked. As
  released it moves before an epoch's first forward, by the gradient left from the batch before.
- the paper's importance weighs gradients of the batch and of the buffer apart; as released one gradient holds both.
- only the released code's bounds for a sparsity of .75 are known; the others move by the same .01.
- at a sparsity of .8 or more the default `gradient_keep` leaves every open weight its gradient.
- a weight that is opened gets gradients from the next gradient mask on.
- a removed sample is left out of the batch that the common stream put it in, so batches become smaller, not fewer; one
  that would have fewer than two samples is learnt whole. In a task of one epoch it may never have been seen.
- what is left out is not offered to the buffer either. Replay is as in `er`, but from task 1 on (as released).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from methods.base import Batch, Method, Outputs, Setting, Step, Task, Term
from methods.parts.data_removal import DataRemoval, taken
from methods.parts.reservoir import Reservoir
from methods.parts.sparse_training import SparseConfig, SparseTraining


class SparCLER(Method):
    """Learn what is left of the batch together with replayed samples, under masks."""

    name = "sparcl-er"
    uses_buffer = True
    checkpointed = ("buffer", "masks", "removal", "steps_per_epoch", "total_steps")
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"released": {"masks": "float32"}}

    class Config(SparseConfig):
        """Hyper-parameters."""

    def __init__(self, setting: Setting, config: Config) -> None:
        super().__init__(setting, config)
        self.buffer = Reservoir(setting, setting.buffer_size)
        self.masks = SparseTraining(setting, config)
        self.removal = DataRemoval(setting, config.removal_share)
        self.steps_per_epoch = self.total_steps = 0

    def before_task(self, task: Task) -> None:
        """Note how long the task is; all of its samples take part."""
        self.steps_per_epoch, self.total_steps = task.steps_per_epoch, task.epochs * task.steps_per_epoch
        self.removal.begin_task(task.num_samples)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """One term on the concatenation; in task 0 on what is left of the batch alone."""
        step = batch.epoch * self.steps_per_epoch + batch.step
        self.masks.begin_step(step, self.total_steps)
        self.removal.begin_step(step, self.total_steps)
        rows = self.removal.rows(batch.positions)
        images, labels = taken(batch.images, rows), taken(batch.labels, rows)
        if batch.task == 0 or min(len(self.buffer), self.setting.replay_size) == 0:
            return [[Term(images, partial(self.cross_entropy, classes=batch.classes), (labels,))]]
        replayed = self.buffer.draw(self.setting.replay_size)
        loss = partial(self.cross_entropy_of_both, classes=batch.classes)
        return [[Term(torch.cat([images, replayed.images]), loss, (labels, replayed.labels))]]

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Move and apply the masks."""
        self.masks.adjust_gradient(name, parameter)

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Note which of the learnt samples were right, and offer them to the reservoir."""
        rows = self.removal.rows(batch.positions)
        labels = taken(batch.labels, rows)
        self.removal.observe(batch.positions[rows], outputs[0].logits[: len(rows)], labels, batch.classes)
        self.buffer.add(batch.raw[rows], labels)

    def after_task(self, task: Task) -> None:
        """Forget which samples were removed."""
        self.removal.end_task()

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Replay: the buffer's slots. Method state: both masks, and what is known of the task's samples."""
        return {"replay": self.buffer.tensors(), "method_state": [*self.masks.tensors(), *self.removal.tensors()]}
