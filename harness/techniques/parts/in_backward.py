"""Optimizer in backward: a gradient is applied and dropped as soon as it is whole, so few live at once.

Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources", 2023 (arXiv 2306.09782); torch
calls it optimizer in backward. A parameter moves only when every node that reads it has run, for its gradient is whole
only then: the update is that of a step after the backward, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from clmem.harness.techniques.parts.stored import OpenWeight

Arriving = Literal["whole", "partial"]


class InBackward:
    """Steps the optimizer of each parameter when its gradient is whole.

    optimizers: one by parameter name. adjust: changes a gradient before it is applied. stored: parameters that are
    whole only while they change.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        adjust: Callable[[str, nn.Parameter], None],
        stored: Mapping[str, OpenWeight],
    ) -> None:
        self.network, self.optimizers, self.adjust, self.stored = network, optimizers, adjust, stored
        self.arriving: Arriving | None = None
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        ]

    @contextmanager
    def arrive(self, what: Arriving) -> Iterator[None]:
        """Let a backward bring `whole` gradients, or `partial` ones that those of other terms will be added to.

        Outside of it gradients are left alone.
        """
        self.arriving = what
        try:
            yield
        finally:
            self.arriving = None

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self.handles:
            handle.remove()

    def finish(self) -> None:
        """Apply what no backward brought whole."""
        for name, parameter in self.network.named_parameters():
            if parameter.grad is not None or (name in self.stored and self.stored[name].pending is not None):
                self._apply(name, parameter)

    def _hook(self, name: str) -> Callable[[nn.Parameter], None]:
        def applied(parameter: nn.Parameter) -> None:
            if self.arriving == "whole":
                self._apply(name, parameter)
            elif self.arriving == "partial" and name in self.stored:
                self.stored[name].postpone()

        return applied

    def _apply(self, name: str, parameter: nn.Parameter) -> None:
        with torch.no_grad(), self.stored[name].changing() if name in self.stored else nullcontext():
            self.adjust(name, parameter)
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
