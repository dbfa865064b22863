"""Joint training: the upper bound of continual learning.

    loss = CE(f(x), y), the batches being drawn from all tasks together

Not a continual learner: the stream is one task that holds every class, for as many epochs as each task would have.

Differs from common code: no momentum, no weight decay, no schedule, as for every other method. With `head=task_il` the
slice of the only task is all of the logits, so both heads train alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pydantic import Field

from clmem.methods.base import Batch, Method, Step, Term


class Joint(Method):
    """Upper bound: trains on all tasks together, so it is not a continual learner."""

    name = "joint"
    joint = True

    class Config(Method.Config):
        """Hyper-parameters."""

        lr: float = Field(0.1, gt=0, description="learning rate of SGD (the mammoth framework's, for CIFAR-10)")

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Cross-entropy on the batch."""
        return [[Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]]
