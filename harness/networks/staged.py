"""What our networks share: named stages, known before a network is made, and refusals that name the nearest ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clmem.harness.errors import UsageError, nearest
from clmem.methods.base import Network, layer_of

ROLES = ("tail", "before_tail", "head")
"""What a method's settings can ask for without knowing a network's names."""


@dataclass(frozen=True)
class Stages:
    """The stages of a network in order, of which the last is the head.

    tail: the first stage that learns where a trunk is frozen, unless a method is told otherwise; a layer's name stands
    for its first stage.
    """

    names: tuple[str, ...]
    tail: str

    def __post_init__(self) -> None:
        """Refuse a tail that is no stage."""
        if self.tail not in self.names and self.tail not in map(layer_of, self.names):
            raise ValueError(f"the tail {self.tail!r} is none of the stages {', '.join(self.names)}")

    def index(self, boundary: str) -> int:
        """Return the position of a stage, as `Network.stage_index`. Raises UsageError with the nearest names."""
        for index, name in enumerate(self.names):
            if boundary in (name, layer_of(name)):
                return index
        if boundary in ROLES:
            return self.index(self.by_role[boundary])
        raise UsageError(f"this network has no boundary {boundary!r}: {nearest(boundary, self.names[1:])}")

    @property
    def layers(self) -> list[str]:
        """Return the layers in order: what stages of one name before the last dot are called together."""
        return list(dict.fromkeys(map(layer_of, self.names)))

    @property
    def by_role(self) -> Mapping[str, str]:
        """Return the stage of each of the `ROLES`."""
        return {
            "tail": self.tail,
            "before_tail": self.names[max(0, self.index(self.tail) - 1)],
            "head": self.names[-1],
        }


class StagedNetwork(Network):
    """A network that has its stages from a `Stages`, which a subclass sets."""

    stages: Stages

    @property
    def boundaries(self) -> list[str]:
        """Names of the stages in order; the network can be split before any of them but the first."""
        return list(self.stages.names)

    @property
    def tail_stage(self) -> str:
        """The first stage that learns where a trunk is frozen, unless a method is told otherwise."""
        return self.stages.tail

    def stage_index(self, boundary: str) -> int:
        """Return the position of a boundary. Raises UsageError with the nearest names."""
        return self.stages.index(boundary)
