"""Batch norms under lean execution: whose statistics a forward takes, and which it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return every batch norm of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def running_statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Let batch norms in train mode normalise by the batch without updating their running statistics."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(network)]
    for norm, _, _ in kept:
        # not track_running_stats: without running statistics autograd would save other tensors than the forward did
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def part_batch_norms(network: nn.Module, parts: int) -> None:
    """Let the backward of every batch norm of a network, from now on, take its channels in `parts` parts.

    Torch's kernel takes one map beside its result on the CPU; of a part of the channels it takes a part of that map.
    """
    for norm in batch_norms(network):
        norm.backward_parts = parts  # type: ignore[assignment]
        norm.forward = partial(_normalise, norm, None)  # type: ignore[method-assign]


@contextmanager
def grouped(network: nn.Module, sizes: Sequence[int]) -> Iterator[None]:
    """Let one forward on several terms' images, one term behind the other, be the forwards of each.

    Every batch norm in train mode normalises each group by its own statistics, and updates its running statistics by
    one group after the other, as separate forwards in this order would.
    """
    norms = [norm for norm in batch_norms(network) if norm.training and len(sizes) > 1]
    before = [norm.__dict__.get("forward") for norm in norms]
    for norm in norms:
        norm.forward = partial(_normalise, norm, list(sizes))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, forward in zip(norms, before, strict=True):
            del norm.forward
            if forward is not None:
                norm.forward = forward  # type: ignore[method-assign]


def _normalise(norm: nn.modules.batchnorm._BatchNorm, sizes: list[int] | None, x: Tensor) -> Tensor:
    """Return x [n, C, ...] normalised group by group; sizes: of the groups, None for all of it as one.

    Raises ValueError for a group of one value per channel, as torch does.
    """
    if sizes is None and not (norm.training and torch.is_grad_enabled()):
        return type(norm).forward(norm, x)
    sizes = sizes or [len(x)]
    if 1 in sizes and x[0, 0].numel() == 1:  # of which the kernel makes NaN without a word
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(len(sizes))
    parts = getattr(norm, "backward_parts", 1)
    normalised: Tensor = _BatchNorm.apply(x, norm.weight, norm.bias, norm, sizes, parts)
    return normalised


class _BatchNorm(torch.autograd.Function):
    """x [n, C, ...] -> the same shape, groups of `sizes` samples each normalised by statistics of its own.

    The kernels of `F.batch_norm`, writing into one tensor: no copy of a map lies beside it. The backward takes the
    channels in `parts` parts, which changes nothing: every channel is normalised by itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: nn.modules.batchnorm._BatchNorm,
        sizes: list[int],
        parts: int,
    ) -> Tensor:
        result, statistics = torch.empty_like(x), []
        for part, into in zip(torch.split(x, sizes), torch.split(result, sizes), strict=True):
            mean, deviation = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps,
                out=into, save_mean=mean, save_invstd=deviation,
            )  # fmt: skip
            statistics += [mean, deviation]
        ctx.save_for_backward(x, weight, *statistics)
        ctx.sizes, ctx.parts, ctx.eps = sizes, parts, norm.eps
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        groups = zip(
            torch.split(grad, ctx.sizes), torch.split(x, ctx.sizes), torch.split(grad_x, ctx.sizes), strict=True
        )
        width = -(-x.shape[1] // ctx.parts)
        for number, (grad_part, part, into) in enumerate(groups):
            mean, deviation = statistics[2 * number : 2 * number + 2]
            for start in range(0, x.shape[1], width):
                of = slice(start, start + width)
                found = torch.ops.aten.native_batch_norm_backward(
                    grad_part[:, of].contiguous(), part[:, of].contiguous(), weight[of], None, None, mean[of],
                    deviation[of], True, ctx.eps, [True, True, True],
                )  # fmt: skip
                into[:, of] = found[0]
                grad_weight[of] += found[1]
                grad_bias[of] += found[2]
                del found
        return grad_x, grad_weight, grad_bias, None, None, None
