"""Plain SGD (finetuning): the lower bound of continual learning.

    loss = CE(f(x), y)

Nothing is kept and nothing is done against forgetting.

Differs from common code: no momentum, no weight decay, no schedule, as in the field's usual comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pydantic import Field

from clmem.methods.base import Batch, Method, Step, Term


class SGD(Method):
    """Lower bound: plain SGD (finetuning), with nothing against forgetting."""

    name = "sgd"

    class Config(Method.Config):
        """Hyper-parameters."""

        lr: float = Field(0.1, gt=0, description="learning rate of SGD (the mammoth framework's, for CIFAR-10)")

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Cross-entropy on the batch."""
        return [[Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]]
