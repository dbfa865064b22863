"""Layers that need less beside what they compute with: sliced convolutions and ReLU masks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES_OF_MASKS = 4
"""Samples whose masks are as large as floats at a time."""


def slice_convolutions(network: nn.Module, size: int) -> None:
    """Let every convolution of a network, from now on, take `size` samples at a time.

    A library reorders what a convolution reads and writes, and its backward does so three times: of the whole batch, or
    of a slice. Only where the maps are larger than the weights: the gradient of a weight is added up over the slices,
    which takes one more of its size.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module._conv_forward = partial(_in_slices, module, size)  # type: ignore[method-assign]


def mask_relus(network: nn.Module) -> None:
    """Let every ReLU of a network, from now on, keep for its backward where it was closed: a byte per element.

    Its output, which torch keeps, costs nothing where the next convolution keeps it too. Where that one's segment
    forgets its inside, or is computed again, the output is a map for this alone.
    """
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.forward = partial(_masked, module)  # type: ignore[method-assign]


def _masked(module: nn.ReLU, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.relu_(x) if module.inplace else torch.relu(x)
    found: Tensor = _MaskedReLU.apply(x, module.inplace)
    return found


def _in_slices(module: nn.Conv2d, size: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None or len(x) <= size or x.numel() <= weight.numel():
        whole: Tensor = nn.Conv2d._conv_forward(module, x, weight, bias)
        return whole
    sliced: Tensor = _SlicedConvolution.apply(x, weight, shape_of(module), size)
    return sliced


def shape_of(module: nn.Conv2d) -> tuple[Any, ...]:
    """Return a convolution's stride, padding, dilation and groups."""
    return module.stride, module.padding, module.dilation, module.groups


def convolve(x: Tensor, weight: Tensor, shape: tuple[Any, ...], size: int) -> Tensor:
    """Return x [n, C, H, W] convolved with weight [D, C / groups, h, w]: [n, D, H', W'], `size` samples at a time."""
    parts = iter(torch.split(x, size))
    first = torch.conv2d(next(parts), weight, None, *shape)
    if len(first) == len(x):
        return first
    result = first.new_empty((len(x), *first.shape[1:]))
    result[: len(first)] = first
    del first
    for number, part in enumerate(parts, start=1):
        result[number * size : number * size + len(part)] = torch.conv2d(part, weight, None, *shape)
    return result


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, shape: tuple[Any, ...], size: int, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the weight, those that are needed, `size` samples at a time."""
    stride, padding, dilation, groups = shape
    need_x, need_weight = needed
    grad_x = torch.empty_like(x) if need_x and len(x) > size else None
    grad_weight: Tensor | None = None
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        found = torch.ops.aten.convolution_backward(
            grad[part], x[part], weight, None, stride, padding, dilation, False, [0, 0], groups,
            [need_x, need_weight, False],
        )  # fmt: skip
        if len(x) <= size:
            return found[0], found[1]
        if grad_x is not None:
            grad_x[part] = found[0]
        if need_weight:
            grad_weight = found[1] if grad_weight is None else grad_weight.add_(found[1])
        del found
    return grad_x, grad_weight


class _MaskedReLU(torch.autograd.Function):
    """x of any shape -> max(x, 0), in its place or beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        ctx.save_for_backward((x <= 0).logical_not_())
        if not inplace:
            return torch.relu(x)
        ctx.mark_dirty(x)
        return torch.relu_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (is_open,) = ctx.saved_tensors
        result = torch.empty_like(grad)
        # with the mask as numbers, a few samples at a time: filling by a mask takes torch thirty times as long
        for part, mask, into in zip(
            *(tensor.split(SAMPLES_OF_MASKS) for tensor in (grad, is_open, result)), strict=True
        ):
            torch.ops.aten.threshold_backward.grad_input(part, mask.to(grad.dtype), 0, grad_input=into)
        return result, None


class _SlicedConvolution(torch.autograd.Function):
    """x [n, C, H, W], weight [D, C / groups, h, w] -> [n, D, H', W'], `size` samples at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[Any, ...], size: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.size = shape, size
        return convolve(x, weight, shape, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = convolve_backward(grad, x, weight, ctx.shape, ctx.size, ctx.needs_input_grad[:2])
        return *found, None, None
