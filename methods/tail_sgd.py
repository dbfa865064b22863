"""Tail SGD: the control for every method that freezes a part of the network. It comes from no paper.

    loss = CE(f(x), y), of which only the layers from `boundary` on are learnt

The trunk before the boundary runs in eval mode without gradients. What LightCL saves beside SGD is mostly what this
saves: its regulariser can be judged only against a tail trained by plain SGD, on the same logits: the task's slice.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

from pydantic import Field

from clmem.methods.base import Batch, Method, MethodContext, Step, Task, Term
from clmem.methods.parts.trunk import TailConfig, frozen_trunk


class TailSGD(Method):
    """Control: plain SGD that trains only the tail of the network; the trunk before it is frozen."""

    name = "tail-sgd"
    stage_settings = ("boundary",)

    class Config(TailConfig):
        """Hyper-parameters."""

        lr: float = Field(0.1, gt=0, description="learning rate of SGD (as for sgd)")
        head: Literal["class_il", "task_il"] = Field(
            "task_il",
            description="cross-entropy over all classes (class_il) or those of the current task "
            "(task_il, as in LightCL)",
        )

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        self.trunk = frozen_trunk(context, config.boundary, config.trunk, task=0)

    @property
    def trunk_bn(self) -> Literal["eval", "train"]:
        """The trunk normalises by its running statistics."""
        return "eval"

    def before_task(self, task: Task) -> None:
        """Freeze the trunk once its time has come."""
        self.trunk = frozen_trunk(self.context, self.config.boundary, self.config.trunk, task.index)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Cross-entropy on the batch."""
        return [[Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))]]
