"""Function Distance Regularization (FDR).

Benjamin et al., "Measuring and Regularizing Networks in Function Space", ICLR 2019 (arXiv 1805.08289).

    step 1:  loss = CE(f(x), y)
    step 2:  loss = alpha / m sum_j || softmax f(x_j) - softmax z_j ||_2

Both steps are taken for every batch, each with its own forward, backward and optimizer step. x_j is drawn only once the
first is done, from what the buffer kept of earlier tasks; z_j are the logits when its task ended. In the first task
step 2 has nothing to do. Two graphs never live together: the peak is that of SGD plus the buffer while m < b. From
m = b on step 2 is the peak, and the batch, still held, lies beside x_j.

After task t (from 0) each old task keeps the first floor(B / (t + 1)) of its samples, and as many of the new one are
added: the first of its first epoch, with their logits now. A buffer with fewer slots than tasks ends up empty.

Differs from the paper / the released code in:
- mammoth, the field's reference, declares alpha and never reads it: `alpha=1` is what it does.
- mammoth stays in train mode at the end of a task: its z_j are normalised by their batch and move the running
  statistics; ours are taken in eval mode.
- mammoth now divides B by t instead of t + 1 (it once did not), and lets the buffer overwrite what overflows.
- z_j are the logits of the image as augmented when it was visited; the slot holds it un-augmented, uint8, and each
  draw augments it anew (mammoth does both).
- m samples are drawn uniformly without replacement from what the buffer holds, fewer while it holds fewer.
- with `head=task_il` step 1 compares over the task's slice; step 2 always compares all classes.

Tuned values (mammoth's, CIFAR-10 and TinyImageNet): lr .03; alpha .3 with 200 slots (the default), 1 with 500 slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from clmem.methods.base import Batch, Method, MethodContext, Outputs, Step, Task, Term
from clmem.methods.parts.task_buffer import TaskBuffer


class FDR(Method):
    """Function Distance Regularization: pulls the outputs on stored samples back to those at the end of their task."""

    name = "fdr"
    uses_buffer = True
    checkpointed = ("buffer",)

    class Config(Method.Config):
        """Hyper-parameters."""

        lr: float = Field(
            0.03, gt=0, description="learning rate of SGD (the mammoth framework's, for CIFAR and TinyImageNet)"
        )
        alpha: float = Field(
            0.3,
            ge=0,
            description="weight of the distance to stored outputs (mammoth's, for CIFAR and TinyImageNet, 200 slots)",
        )

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        self.buffer = TaskBuffer(context, context.buffer_size)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Two optimizer steps; the first alone while nothing is stored."""
        yield [Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]
        if min(len(self.buffer), self.context.replay_size) > 0:
            yield [self._recall()]

    def _recall(self) -> Term:
        x, z = self.buffer.draw(self.context.replay_size)
        return Term(x, self.distance, (z,))

    def distance(self, outputs: Outputs, z: Tensor) -> Tensor:
        """Alpha times the mean distance of the probabilities from those of the stored logits z [m, C].

        Where the two are equal the norm has no gradient; autograd's is 0 there, not NaN.
        """
        distances: Tensor = torch.linalg.vector_norm(outputs.logits.softmax(1) - z.softmax(1), dim=1)
        return self.config.alpha * distances.mean()

    def after_task(self, task: Task) -> None:
        """Give every task, the new one too, the same number of slots."""
        missing = self.context.buffer_size // (task.index + 1)
        self.buffer.keep(missing)
        for step in range(task.steps_per_epoch):
            if missing == 0:
                break
            batch = task.batch(0, step)
            images, raw = batch.images[:missing], batch.raw[:missing]
            self.buffer.add(raw, self.context.runner.forward(images).logits, task.index)
            missing -= len(raw)
            del batch, images  # or they would live on beside the next ones

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """The buffer's slots."""
        return {"replay": self.buffer.tensors()}
