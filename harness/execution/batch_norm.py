"""Batch norms under lean execution: whose statistics a forward takes, and which it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def grouped(network: nn.Module, sizes: Sequence[int]) -> Iterator[None]:
    """Let one forward on several terms' images, one term behind the other, be the forwards of each.

    Every batch norm in train mode normalises each group by its own statistics, and updates its running statistics by
    one group after the other, as separate forwards in this order would.
    """
    norms = [norm for norm in batch_norms(network) if norm.training and len(sizes) > 1]

    def group_by_group(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(len(sizes))
        normalised: Tensor = _GroupedBatchNorm.apply(x, norm.weight, norm.bias, norm, list(sizes))
        return normalised

    for norm in norms:
        norm.forward = group_by_group.__get__(norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


class _GroupedBatchNorm(torch.autograd.Function):
    """x [n, C, ...] -> the same shape, groups of `sizes` samples each normalised by statistics of its own.

    The kernels of `F.batch_norm`, writing into one tensor: no copy of a map lies beside it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.modules.batchnorm._BatchNorm, sizes: list[int]
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
        ctx.sizes, ctx.eps = sizes, norm.eps
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        groups = zip(
            torch.split(grad, ctx.sizes), torch.split(x, ctx.sizes), torch.split(grad_x, ctx.sizes), strict=True
        )
        for number, (grad_part, part, into) in enumerate(groups):
            mean, deviation = statistics[2 * number : 2 * number + 2]
            found = torch.ops.aten.native_batch_norm_backward(
                grad_part, part, weight, None, None, mean, deviation, True, ctx.eps, [True, True, True]
            )
            into.copy_(found[0])
            grad_weight += found[1]
            grad_bias += found[2]
        return grad_x, grad_weight, grad_bias, None, None
