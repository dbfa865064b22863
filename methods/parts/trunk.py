"""The frozen trunk: which part of the network stops learning, and when."""

from __future__ import annotations

from typing import Literal, Protocol, cast

from torch import nn

from methods.base import Trunk

Freezing = Literal["first_task", "frozen"]
"""`frozen`: from the start, the weights being treated as pretrained. `first_task`: task 0 trains everything first."""


class Splittable(Protocol):
    """A network that can say which of its modules lie before a boundary."""

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return them. Raises for a boundary that the network lacks."""
        ...


def trunk_modules(network: nn.Module, boundary: str) -> list[nn.Module]:
    """Return the modules before `boundary`, with all that they contain. Raises for a boundary the network lacks."""
    stages = cast(Splittable, network).stage_modules(boundary)
    return [module for stage in stages for module in stage.modules()]


def frozen_trunk(
    network: nn.Module, boundary: str, freezing: Freezing, task: int, bn: Literal["eval", "train"] = "eval"
) -> Trunk | None:
    """Return the trunk that is frozen during `task`, None while all of the network learns.

    Raises for a boundary that the network lacks, in every task: not only once the trunk freezes.
    """
    if not trunk_modules(network, boundary):
        raise ValueError(
            f"nothing lies before boundary {boundary!r}, so there is no trunk to freeze; choose a later one"
        )
    return Trunk(boundary, bn) if freezing == "frozen" or task > 0 else None
