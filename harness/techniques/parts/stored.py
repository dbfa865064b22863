"""Weights that are stored otherwise than they are computed with, and whole only while something computes with them.

Forward, backward and update of a layer each put its weight together and let go of it: one layer's is whole at a time.
`OpenWeight` stores the open elements of a masked weight; the method's mask says where they belong, nothing else does.
`RoundedWeight` stores a frozen weight in fewer bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clmem.harness.techniques.parts.layers import convolve, convolve_backward, shape_of
from clmem.methods.base import Network, OpenElements

SEARCHED = 2**16
"""Elements of a mask that are searched at a time: at most 512 KiB of positions."""


class StoredWeight:
    """One convolution's weight; the parameter itself has no memory of its own. A subclass says what is stored."""

    def __init__(self, module: nn.Conv2d, size: int) -> None:
        self.module = module
        self.nbytes = module.weight.untyped_storage().nbytes()
        self.store()
        self._forward = module._conv_forward
        module._conv_forward = partial(_run, self, size)  # type: ignore[method-assign]
        self._hooks = [
            module.register_state_dict_post_hook(lambda *given: self._write_whole(*given)),  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(lambda *given: self._grow()),  # type: ignore[no-untyped-call]
            module.register_load_state_dict_post_hook(lambda *given: self.store()),  # type: ignore[no-untyped-call]
        ]

    def tensors(self) -> list[Tensor]:
        """Return what is stored in place of the weight."""
        raise NotImplementedError

    def _keep(self, flat: Tensor) -> None:
        """Store a whole weight [n]."""
        raise NotImplementedError

    def _fill(self, flat: Tensor) -> None:
        """Write the whole weight into a float32 [n]."""
        raise NotImplementedError

    @property
    def _flat(self) -> Tensor:
        return self.module.weight.data.view(-1)

    def release(self) -> None:
        """Leave the layer with a whole weight, as others have it."""
        self._load()
        self.module._conv_forward = self._forward  # type: ignore[method-assign]
        for hook in self._hooks:
            hook.remove()

    def _grow(self) -> None:
        self.module.weight.untyped_storage().resize_(self.nbytes)

    def _load(self) -> None:
        self._grow()
        self._fill(self._flat)

    def _drop(self) -> None:
        self.module.weight.untyped_storage().resize_(0)

    def store(self) -> None:
        """Store a whole weight as it is now, and let go of it."""
        self._keep(self._flat)
        self._drop()

    @contextmanager
    def whole(self) -> Iterator[Tensor]:
        """Lend the whole weight; changes to it are not kept."""
        self._load()
        try:
            yield self.module.weight.data
        finally:
            self._drop()

    def _write_whole(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        with self.whole() as weight:
            state[f"{prefix}weight"] = weight.clone()


class OpenWeight(StoredWeight):
    """A masked weight: the values of its open elements.

    A gradient that waits for those of other terms is held at the elements that the method can make use of in this step,
    as `usable` says: bool [n].
    """

    def __init__(self, module: nn.Conv2d, size: int, mask: OpenElements, usable: Callable[[], Tensor]) -> None:
        self.mask, self.usable = mask, usable
        self.values: Tensor
        self.pending: Tensor | None = None
        super().__init__(module, size)

    def tensors(self) -> list[Tensor]:
        """Return the values of the open elements."""
        return [self.values]

    def _keep(self, flat: Tensor) -> None:
        self.values = flat.index_select(0, _positions(self.mask.read()))

    def _fill(self, flat: Tensor) -> None:
        flat.zero_().index_copy_(0, _positions(self.mask.read()), self.values)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Lend the whole weight, with the whole gradient, and keep what it becomes."""
        self._load()
        self._add_pending()
        try:
            yield
        finally:
            self.store()

    def postpone(self) -> None:
        """Keep what the method can use of the parameter's gradient for the term whose backward comes last."""
        gradient = self.module.weight.grad
        assert gradient is not None
        part = gradient.view(-1).index_select(0, _positions(self.usable()))
        self.module.weight.grad = None
        self.pending = part if self.pending is None else self.pending.add_(part)

    def _add_pending(self) -> None:
        if self.pending is None:
            return
        weight = self.module.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.view(-1).index_add_(0, _positions(self.usable()), self.pending)
        self.pending = None


def _positions(mask: Tensor) -> Tensor:
    """Return where a mask [n] is open: torch selects and scatters by positions in half the time of by the mask.

    On the CPU numpy finds them in less than half of torch's time, a part at a time, so that next to nothing of it lies
    outside of torch's allocator.
    """
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(1)
    positions = torch.empty(int(mask.count_nonzero()), dtype=torch.int64)
    flags, into, end = mask.numpy(), positions.numpy(), 0
    for start in range(0, len(flags), SEARCHED):
        found = np.flatnonzero(flags[start : start + SEARCHED])
        np.add(found, start, out=into[end : end + len(found)])
        end += len(found)
    return positions


class RoundedWeight(StoredWeight):
    """A frozen weight rounded to bfloat16 or float16, or to int8 with one scale for every channel that it makes.

    Scales are powers of two, so that what was rounded once does not change when it is rounded again.
    """

    def __init__(self, module: nn.Conv2d, size: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rounded: Tensor
        self.scale: Tensor | None = None
        super().__init__(module, size)

    def tensors(self) -> list[Tensor]:
        """Return the rounded weight, and its scales."""
        return [self.rounded] if self.scale is None else [self.rounded, self.scale]

    def _keep(self, flat: Tensor) -> None:
        if self.dtype != torch.int8:
            self.rounded = flat.to(self.dtype)
            return
        rows = flat.view(len(self.module.weight), -1)
        largest = rows.abs().amax(1, keepdim=True).clamp_(min=1e-30)
        self.scale = largest.div_(127).log2_().ceil_().exp2_()
        self.rounded = (rows / self.scale).round_().to(torch.int8)

    def _fill(self, flat: Tensor) -> None:
        flat.copy_(self.rounded.view(-1))
        if self.scale is not None:
            flat.view(len(self.module.weight), -1).mul_(self.scale)


def store_open(
    network: Network, masks: Mapping[str, OpenElements], usable: Callable[[str], Tensor], size: int
) -> dict[str, OpenWeight]:
    """Store the masked weights of a network, and return them by parameter name."""
    return {
        name: OpenWeight(convolution(network, name.removesuffix(".weight")), size, mask, partial(usable, name))
        for name, mask in masks.items()
    }


def round_trunk(
    stored: dict[nn.Module, RoundedWeight], network: Network, boundary: str | None, dtype: torch.dtype, size: int
) -> None:
    """Bring `stored` up to date: the convolutions before the boundary are rounded, and no other.

    What leaves a trunk keeps the rounded values.
    """
    stages = [] if boundary is None else network.stage_modules(boundary)
    frozen = [module for stage in stages for module in stage.modules() if isinstance(module, nn.Conv2d)]
    for module in [module for module in stored if module not in frozen]:
        stored.pop(module).release()
    for module in frozen:  # in order, because a peak of weights alone depends on it
        if module not in stored:
            stored[module] = RoundedWeight(module, size, dtype)


def convolution(network: nn.Module, name: str) -> nn.Conv2d:
    """Return a convolution of a network by name."""
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _run(stored: StoredWeight, size: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert bias is None
    # a slice holds as much as the weight, which is reordered for every slice
    at_once = max(size, -(-weight.numel() // x[0].numel())) if size else len(x)
    result: Tensor = _StoredConvolution.apply(x, weight, stored, at_once)
    return result


class _StoredConvolution(torch.autograd.Function):
    """x [n, C, H, W] and a parameter without memory -> [n, D, H', W'], `size` samples at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, stored: StoredWeight, size: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.stored, ctx.size = stored, size
        with stored.whole() as weight:
            return convolve(x, weight, shape_of(stored.module), size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        with ctx.stored.whole() as weight:
            found = convolve_backward(grad, x, weight, shape_of(ctx.stored.module), ctx.size, needed)
        return *found, None, None
