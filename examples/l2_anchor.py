"""L2 to the last task: after each task remember the weights, and pull the next task's towards them.

loss = CE(f(x), y) + strength / 2 * sum_i (theta_i - anchor_i)^2,   anchor = theta at the end of the task before
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from pydantic import Field
from torch import Tensor, nn

from clmem.methods.base import Batch, Method, MethodContext, Step, Task, Term


class L2Anchor(Method):
    """Stay near the weights of the task before."""

    name = "l2-anchor"
    checkpointed = ("anchor",)

    class Config(Method.Config):
        """Hyper-parameters."""

        strength: float = Field(1.0, ge=0, description="weight of the penalty")

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        self.anchor: dict[str, Tensor] = {}

    def terms(self, batch: Batch) -> Iterable[Step]:
        """One forward on the batch."""
        return [[Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]]

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Add the penalty's gradient, without keeping a graph for it."""
        if name in self.anchor and parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - self.anchor[name], alpha=self.config.strength)

    def after_task(self, task: Task) -> None:
        """Take the weights as the anchor, after letting go of the last one: two at once would be counted."""
        self.anchor = {}
        named = self.context.network.named_parameters()
        self.anchor = {name: parameter.detach().clone() for name, parameter in named}

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """The anchor: one copy of the weights."""
        return {"method_state": self.anchor.values()}
