"""Tail ER: experience replay by the tail of the network, a control like tail SGD. It comes from no paper.

    loss = CE(f(x + x_m), y + y_m), of which only the layers from `boundary` on are learnt

+ joins the batch and m samples replayed from a reservoir in ONE forward, as in ER: the tail's batch norms see all of
them together. The trunk before the boundary runs in eval mode without gradients.

Beside LightCL it tells what a few genuinely old images are worth when they are simply replayed. It learns over all
classes, as ER does, where LightCL and the controls without replay learn in the task's slice: replayed classes are not
in it.
"""

from __future__ import annotations

from typing import Literal

from clmem.methods.base import MethodContext, Task
from clmem.methods.er import ER
from clmem.methods.parts.trunk import TailConfig, frozen_trunk


class TailER(ER):
    """Control: experience replay that trains only the tail of the network; the trunk before it is frozen."""

    name = "tail-er"
    stage_settings = ("boundary",)

    class Config(ER.Config, TailConfig):
        """Hyper-parameters."""

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
