"""Experience replay (ER).

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019 (arXiv 1902.10486); the buffer is a reservoir.

    loss = CE(f(x + x_m), y + y_m)        + joins the batch (b samples) and the replayed samples (m), in ONE forward

Batch norm therefore sees the b + m images together. Replay begins in the first task, at the second batch.

Differs from the paper / the released code in:
- one pass over the data or many: the stream decides, not the method.
- m samples are drawn uniformly without replacement from what the reservoir holds, fewer while it holds fewer.
- stored images are un-augmented uint8 and are augmented again at each draw; labels are int64.
- samples enter the buffer after the optimizer step.
- with `head=task_il` the current samples are compared over the task's slice, the replayed ones over all classes;
  the mean is over all b + m samples with either head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from clmem.methods.base import Batch, Method, MethodContext, Outputs, Step, Term
from clmem.methods.parts.reservoir import Reservoir


class ER(Method):
    """Experience Replay: learns each batch together with samples from a replay buffer."""

    name = "er"
    uses_buffer = True
    checkpointed = ("buffer",)

    class Config(Method.Config):
        """Hyper-parameters."""

        lr: float = Field(0.1, gt=0, description="learning rate of SGD (the mammoth framework's, for CIFAR)")

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        self.buffer = Reservoir(context, context.buffer_size)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """One term on the concatenation."""
        if min(len(self.buffer), self.context.replay_size) == 0:
            return [[Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]]
        replayed = self.buffer.draw(self.context.replay_size)
        images = torch.cat([batch.images, replayed.images])
        loss = partial(self.cross_entropy_of_both, classes=batch.classes)
        return [[Term(images, loss, (batch.labels, replayed.labels))]]

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Offer the batch to the reservoir."""
        self.buffer.add(batch.raw, batch.labels)

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """The buffer's slots."""
        return {"replay": self.buffer.tensors()}
