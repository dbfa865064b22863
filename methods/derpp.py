"""Dark Experience Replay ++ (DER++).

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020, Eq. 6.

    loss = CE(f(x), y) + alpha MSE(f(x_m), z_m) + beta CE(f(x_m'), y_m')

x_m and x_m' are two independent draws from the reservoir, z_m the logits over all classes when x_m was stored: those
of the step that learnt it, before the parameters moved. Three forwards (three batch-norm batches), one backward;
merging the forwards would be another method with another memory.

Differs from the paper / the released code in:
- MSE is the mean over samples and classes, as released; the paper writes the squared norm, a factor of C.
- m samples are drawn uniformly without replacement from what the reservoir holds, fewer while it holds fewer.
- stored images are un-augmented uint8 and are augmented again at each draw; labels are int64, logits float32.
- with `head=task_il` the current samples are compared over the task's slice, the replayed ones over all classes.

Tuned values (mammoth's): CIFAR-10 with 200 slots lr .03, alpha .1, beta .5 (the defaults); with 500 slots alpha .2;
TinyImageNet with 200 slots beta 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clmem.methods.base import Batch, Method, MethodContext, Outputs, Step, Term
from clmem.methods.parts.reservoir import Reservoir


class DERpp(Method):
    """Dark Experience Replay++: replays stored samples with their labels and with the logits they had when stored."""

    name = "derpp"
    uses_buffer = True
    checkpointed = ("buffer",)

    class Config(Method.Config):
        """Hyper-parameters."""

        lr: float = Field(
            0.03, gt=0, description="learning rate of SGD (the mammoth framework's, for CIFAR and TinyImageNet)"
        )
        alpha: float = Field(
            0.1, ge=0, description="weight of the loss on stored logits (mammoth's, for CIFAR, 200 slots)"
        )
        beta: float = Field(
            0.5, ge=0, description="weight of the loss on stored labels (mammoth's, for CIFAR, 200 and 500 slots)"
        )

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        self.buffer = Reservoir(context, context.buffer_size, num_logits=context.num_classes)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Three terms, one optimizer step; the first alone while nothing is stored."""
        learn = Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))
        if min(len(self.buffer), self.context.replay_size) == 0:
            return [[learn]]
        return [[learn, *dark_replay(self.buffer, self.context.replay_size, self.config.alpha, self.config.beta)]]

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Offer the batch, with the logits that the step itself computed, to the reservoir."""
        self.buffer.add(batch.raw, batch.labels, outputs[0].logits)

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """The buffer's slots."""
        return {"replay": self.buffer.tensors()}


def dark_replay(buffer: Reservoir, count: int, alpha: float, beta: float) -> list[Term]:
    """Return the two terms on `count` replayed samples each: alpha MSE to stored logits, beta CE with stored labels."""
    x, _, z = buffer.draw(count)
    other, y, _ = buffer.draw(count)
    return [Term(x, partial(_match_logits, alpha), (z,)), Term(other, partial(_match_labels, beta), (y,))]


def _match_logits(alpha: float, outputs: Outputs, z: Tensor) -> Tensor:
    return alpha * F.mse_loss(outputs.logits, z)


def _match_labels(beta: float, outputs: Outputs, y: Tensor) -> Tensor:
    return beta * F.cross_entropy(outputs.logits, y)
