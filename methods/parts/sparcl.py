"""What SparCL does to a replay method, whichever it is: mask weights and gradients, and leave samples out.

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022 (arXiv 2209.09476).

    W <- M_w (W - lr M_g dloss/dW)      on the sixteen 3x3 convolutions of layer1 ... layer4

M_w is a task-aware dynamic mask, M_g a dynamic gradient mask (both `sparse_training.py`), and what is learnt lacks the
samples that dynamic data removal left out (`data_removal.py`). In plain execution weights, gradients and activations
stay dense: what is sparse is zero, not absent, and the masks come on top. `storage=sparse` stores open weights alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor, nn

from clmem.methods.base import Batch, Method, MethodContext, OpenElements, Outputs, Task, Term
from clmem.methods.parts.data_removal import DataRemoval, taken
from clmem.methods.parts.reservoir import Reservoir
from clmem.methods.parts.sparse_training import SparseConfig, SparseTraining


class SparCL(Method):
    """A replay method under masks, on ever less data. A subclass says in `terms` what is replayed, and how."""

    uses_buffer = True
    checkpointed = ("buffer", "masks", "removal", "steps_per_epoch", "total_steps")

    class Config(SparseConfig):
        """Hyper-parameters."""

    def __init__(self, context: MethodContext, config: Config, num_logits: int = 0) -> None:
        super().__init__(context, config)
        self.buffer = Reservoir(context, context.buffer_size, num_logits)
        self.masks = SparseTraining(context, config)
        self.removal = DataRemoval(context, config.removal_share)
        self.steps_per_epoch = self.total_steps = 0

    def before_task(self, task: Task) -> None:
        """Note how long the task is; all of its samples take part."""
        self.steps_per_epoch, self.total_steps = task.steps_per_epoch, task.epochs * task.steps_per_epoch
        self.removal.begin_task(task.num_samples)

    def begin_step(self, batch: Batch) -> Term:
        """Change what is due to change at this batch; return the term on what is left of it."""
        step = batch.epoch * self.steps_per_epoch + batch.step
        self.masks.begin_step(step, self.total_steps)
        self.removal.begin_step(step, self.total_steps)
        rows = self.removal.rows(batch.positions)
        loss = partial(self.cross_entropy, classes=batch.classes)
        return Term(taken(batch.images, rows), loss, (taken(batch.labels, rows),))

    def replays(self, batch: Batch) -> bool:
        """Return whether there is something to replay: from task 1 on (released code)."""
        return batch.task > 0 and min(len(self.buffer), self.context.replay_size) > 0

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Move and apply the masks."""
        self.masks.adjust_gradient(name, parameter)

    def open_weights(self) -> Mapping[str, OpenElements]:
        """Closed weights are zero between steps."""
        return self.masks.weights

    def usable_gradient(self, name: str) -> Tensor:
        """Gradients are read at open weights, and at those that may open in this step."""
        return self.masks.usable_gradient(name)

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Note which of the learnt samples were right, and offer them to the reservoir, with the step's logits."""
        rows = self.removal.rows(batch.positions)
        every = len(rows) == len(batch.positions)
        positions, raw = (batch.positions, batch.raw) if every else (batch.positions[rows], batch.raw[rows])
        labels, logits = taken(batch.labels, rows), outputs[0].logits[: len(rows)]
        self.removal.observe(positions, logits, labels, batch.classes)
        self.buffer.add(raw, labels, logits if self.buffer.num_logits else None)

    def after_task(self, task: Task) -> None:
        """Forget which samples were removed."""
        self.removal.end_task()

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Replay: the buffer's slots. Method state: both masks, and what is known of the task's samples."""
        return {"replay": self.buffer.tensors(), "method_state": [*self.masks.tensors(), *self.removal.tensors()]}
