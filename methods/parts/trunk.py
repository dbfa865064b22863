"""The frozen trunk: which part of the network stops learning, and when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from clmem.methods.base import Method, MethodContext, Network, Trunk

Freezing = Literal["auto", "first_task", "frozen"]
"""When the trunk freezes. `frozen`: from the start, its weights being treated as pretrained. `first_task`: after
task 0, which trains everything. `auto`: `frozen` when pretrained weights were loaded, else `first_task`."""


class TailConfig(Method.Config):
    """Which part of the network learns, and since when."""

    boundary: str = Field(
        "tail", description="first stage that learns; each network says which stage is its `tail` and its `head`"
    )
    trunk: Freezing = Field(
        "auto",
        description="when the stages before `boundary` freeze: `frozen` at the start, `first_task` after task 0, "
        "`auto` at the start if weights were loaded and after task 0 if not",
    )


def trunk_modules(network: Network, boundary: str) -> list[nn.Module]:
    """Return the modules before `boundary`, with all that they contain. Raises for a boundary the network lacks."""
    return [module for stage in network.stage_modules(boundary) for module in stage.modules()]


def frozen_trunk(
    context: MethodContext, boundary: str, freezing: Freezing, task: int, bn: Literal["eval", "train"] = "eval"
) -> Trunk | None:
    """Return the trunk that is frozen during `task`, None while all of the network learns.

    Raises for a boundary that the network lacks, in every task: not only once the trunk freezes.
    """
    if context.network.stage_index(boundary) == 0:
        raise ValueError(
            f"nothing lies before boundary {boundary!r}, so there is no trunk to freeze; choose a later one"
        )
    from_the_start = context.pretrained if freezing == "auto" else freezing == "frozen"
    return Trunk(boundary, bn) if from_the_start or task > 0 else None
