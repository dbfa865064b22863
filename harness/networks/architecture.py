"""What is known of a network before it is made: its form in the registry, and in the entry points `clmem.networks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from clmem.harness.networks.staged import Stages
from clmem.methods.base import Network

STANDARD_WIDTH = 64
"""The width of a network as it was published; another one has channels, or units, in proportion."""


class Build(Protocol):
    """Makes a network, drawing its weights from torch's global generator.

    width: 64 is the network as published. image_shape: (channels, height, width) of the images.
    """

    def __call__(self, *, num_classes: int, width: int, image_shape: tuple[int, int, int]) -> Network:
        """Return the network."""
        ...


@dataclass(frozen=True)
class Architecture:
    """One network by name.

    description: one line. stages: those of the network that `build` makes. scales: whether it has other widths than 64.
    side_step: sides of images that `fit` looks at are multiples of it; the network's whole stride is one.
    """

    description: str
    build: Build
    stages: Stages
    scales: bool = True
    side_step: int = 8

    def narrowest(self, width: int) -> int:
        """Return the width itself, or the only one that there is."""
        return width if self.scales else STANDARD_WIDTH


@dataclass(frozen=True)
class Family:
    """Networks of one source, each asked for as `name:model`.

    description: one line. models: their names. architecture: what is known of one of them; it may raise UsageError.
    """

    description: str
    models: Callable[[], Sequence[str]]
    architecture: Callable[[str], Architecture]
