"""SparCL on dark experience replay ++ (SparCL-DER++): learn with sparse weights, sparse gradients and ever less data.

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022 (arXiv 2209.09476).

    loss = CE(f(x), y) + alpha MSE(f(x_m), z_m) + beta CE(f(x_m'), y_m')        the first over the task's slice
    W   <- M_w (W - lr M_g dloss/dW)      on the sixteen 3x3 convolutions of layer1 ... layer4

M_w is a task-aware dynamic mask, M_g a dynamic gradient mask (both `parts/sparse_training.py`), and x lacks the samples
that dynamic data removal left out (`parts/data_removal.py`). Weights, gradients and activations are dense as in
`derpp`: what is sparse is zero, not absent, and the masks come on top.

Differs from the paper / the released code in:
- what `sparcl_er.py` lists, with `derpp` for `er` and `sparcl-derpp@released` for `sparcl-er@released`.
- alpha and beta are those of the released code on every stream; `derpp` is tuned by stream.
- three forwards, two independent draws and a mean squared error over samples and classes, as in `derpp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from methods.base import Batch, Method, Outputs, Setting, Step, Task, Term
from methods.parts.data_removal import DataRemoval, taken
from methods.parts.reservoir import Reservoir
from methods.parts.sparse_training import SparseConfig, SparseTraining


class SparCLDERpp(Method):
    """Learn what is left of the batch, and replayed logits and labels, under masks."""

    name = "sparcl-derpp"
    uses_buffer = True
    checkpointed = ("buffer", "masks", "removal", "steps_per_epoch", "total_steps")
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"released": {"masks": "float32"}}

    class Config(SparseConfig):
        """Hyper-parameters."""

        alpha: float = Field(0.1, ge=0, description="weight of the stored logits (released code)")
        beta: float = Field(0.5, ge=0, description="weight of the stored labels (released code)")

    config: Config

    def __init__(self, setting: Setting, config: Config) -> None:
        super().__init__(setting, config)
        self.buffer = Reservoir(setting, setting.buffer_size, num_logits=setting.num_classes)
        self.masks = SparseTraining(setting, config)
        self.removal = DataRemoval(setting, config.removal_share)
        self.steps_per_epoch = self.total_steps = 0

    def before_task(self, task: Task) -> None:
        """Note how long the task is; all of its samples take part."""
        self.steps_per_epoch, self.total_steps = task.steps_per_epoch, task.epochs * task.steps_per_epoch
        self.removal.begin_task(task.num_samples)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Three terms, one optimizer step; in task 0 what is left of the batch alone."""
        step = batch.epoch * self.steps_per_epoch + batch.step
        self.masks.begin_step(step, self.total_steps)
        self.removal.begin_step(step, self.total_steps)
        rows = self.removal.rows(batch.positions)
        images, labels = taken(batch.images, rows), taken(batch.labels, rows)
        learn = Term(images, partial(self.cross_entropy, classes=batch.classes), (labels,))
        if batch.task == 0 or min(len(self.buffer), self.setting.replay_size) == 0:
            return [[learn]]
        x, _, z = self.buffer.draw(self.setting.replay_size)
        other, y, _ = self.buffer.draw(self.setting.replay_size)
        return [[learn, Term(x, self.match_logits, (z,)), Term(other, self.match_labels, (y,))]]

    def match_logits(self, outputs: Outputs, z: Tensor) -> Tensor:
        """Alpha times the mean squared distance from the stored logits z [m, C]."""
        return self.config.alpha * F.mse_loss(outputs.logits, z)

    def match_labels(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Beta times the cross-entropy, over all classes, with the stored labels y [m]."""
        return self.config.beta * F.cross_entropy(outputs.logits, y)

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Move and apply the masks."""
        self.masks.adjust_gradient(name, parameter)

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Note which of the learnt samples were right, and offer them, with the step's logits, to the reservoir."""
        rows = self.removal.rows(batch.positions)
        labels, logits = taken(batch.labels, rows), outputs[0].logits
        self.removal.observe(batch.positions[rows], logits, labels, batch.classes)
        self.buffer.add(batch.raw[rows], labels, logits)

    def after_task(self, task: Task) -> None:
        """Forget which samples were removed."""
        self.removal.end_task()

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Replay: the buffer's slots. Method state: both masks, and what is known of the task's samples."""
        return {"replay": self.buffer.tensors(), "method_state": [*self.masks.tensors(), *self.removal.tensors()]}
