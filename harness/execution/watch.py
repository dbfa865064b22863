"""The outputs of modules that a loss looks at, and rows of them where several terms ran as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clmem.harness.errors import ClmemError, nearest


class Watch:
    """Collects the outputs of the named modules while it is entered: {module name: tensor}.

    Leaving it raises ClmemError for a module that did not run, and so does one that ran twice, or whose output is
    `overwritten` by a ReLU or a sum in place.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...], overwritten: bool) -> None:
        self.network, self.names, self.overwritten = network, names, overwritten

    def __enter__(self) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            def kept(module: nn.Module, inputs: object, output: Tensor) -> None:
                if name in maps:
                    raise ClmemError(
                        f"the watched module {name!r} ran more than once, as what is frozen does slice by slice and "
                        "term by term; watch one behind the trunk"
                    )
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and self.overwritten:
                    raise ClmemError(
                        f"inplace_relu and inplace_sum overwrite the output of the watched module {name!r}; watch "
                        "what the ReLU returns, or do without"
                    )
                maps[name] = output

            return kept

        self.maps = maps
        modules = dict(self.network.named_modules())
        for name in self.names:
            if name not in modules:
                raise ClmemError(
                    f"the watched module {name!r} is not part of the network: {nearest(name, [*filter(None, modules)])}"
                )
        self.handles = [modules[name].register_forward_hook(keep(name)) for name in self.names]
        return maps

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()
        missing = [name for name in self.names if name not in self.maps]
        if missing and kind is None:
            raise ClmemError(
                f"the watched module {missing[0]!r} did not run as one; watch a part of it, or use another checkpoint"
            )


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """Return a copy of some rows of a map, whose gradient is added to the map's own when that arrives.

    A view would keep the whole map alive, and its gradient would be a whole map of zeros but for these rows, made when
    the backward begins.
    """
    arrived: list[Tensor] = []

    def add(gradient: Tensor) -> Tensor:
        if not arrived:
            return gradient
        gradient = gradient.clone()  # it may be another node's too
        gradient[rows] += arrived.pop()
        return gradient

    tensor.register_hook(add)  # type: ignore[no-untyped-call]
    anchor = torch.zeros((), device=tensor.device, requires_grad=True)
    copy: Tensor = _Tapped.apply(anchor, tensor.detach()[rows].clone(), arrived)
    return copy


class _Tapped(torch.autograd.Function):
    """A tensor as it is, whose gradient goes into a list. As a leaf it would live until the whole graph is freed."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor, arrived: list[Tensor]) -> Tensor:
        ctx.arrived = arrived
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.arrived.append(gradient)
        return gradient.new_zeros(()), None, None
