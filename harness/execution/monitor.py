"""What looks on while a method learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from clmem.methods.base import Method

Held = Callable[[], Mapping[str, Iterable[Tensor]]]
"""Returns tensors by role."""


class Monitor(Protocol):
    """What looks on while a method learns. `Unwatched` does nothing; the memory passes record."""

    def phase(self, name: str, task: int) -> AbstractContextManager[None]:
        """Bracket one phase of one task."""
        ...

    def attach(self, method: Method, optimizers: list[torch.optim.Optimizer], held: Held) -> None:
        """Tell whose memory it is, once everything is built. held: what the execution itself holds."""
        ...

    def inputs(self, *tensors: Tensor) -> None:
        """Tell that these tensors are the current batch."""
        ...

    def scan(self) -> None:
        """Look at parameters, gradients, optimizer state and declared state as they are now."""
        ...


class Unwatched:
    """The monitor of an ordinary run."""

    def phase(self, name: str, task: int) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def attach(self, method: Method, optimizers: list[torch.optim.Optimizer], held: Held) -> None:
        """Do nothing."""

    def inputs(self, *tensors: Tensor) -> None:
        """Do nothing."""

    def scan(self) -> None:
        """Do nothing."""
