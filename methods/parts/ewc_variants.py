"""Usual ways to carry out EWC's penalty, which exist to be measured next to its own (`methods/ewc.py`).

`penalty=graph` adds the penalty to the loss. Autograd keeps theta - anchor, and as the penalty comes last its backward
comes first: one more copy of the parameters while all activations live.

`vectors=flattened` holds F and anchor as one vector each and computes the drift of all parameters at once. That takes
one more vector after the backward, which shows where activations are small; with a graph it takes five, four of them at
the peak.

The combinations of `penalty=inplace` and `penalty=graph` with both `vectors` take the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

ALL = "all parameters"
"""The one key of F and anchor if they are flattened."""


def with_penalty(
    loss: Tensor,
    theta: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    strength: float,
) -> Tensor:
    """Return loss + lambda sum F (theta - anchor)^2 with its graph.

    theta: all parameters by name. strength: lambda.
    """
    if ALL in fisher:
        theta = {ALL: parameters_to_vector(theta.values())}
    drifts = [(fisher[name] * (theta[name] - anchor[name]) ** 2).sum() for name in theta]
    return loss + strength * torch.stack(drifts).sum()


def flattened_zeros(parameters: Iterable[Tensor], device: str) -> dict[str, Tensor]:
    """Return F or anchor as one vector of zeros, as long as all parameters together."""
    return {ALL: torch.zeros(sum(parameter.numel() for parameter in parameters), device=device)}


def by_parameter(vectors: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return F or anchor in the shapes of all parameters: its tensors, or views of its one vector."""
    if ALL not in vectors:
        return tuple(vectors.values())
    parameters = tuple(parameters)
    parts = torch.split(vectors[ALL], [parameter.numel() for parameter in parameters])
    return tuple(part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True))


def adjust_flattened(
    parameters: Iterable[nn.Parameter],
    fisher: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    strength: float,
    damping: Callable[[Tensor, Tensor], Tensor] | None,
) -> None:
    """Add 2 lambda F (theta - anchor) to the gradients of all parameters, computed as one vector.

    strength: lambda. damping: maps (F, memory to write to) to what the sums are divided by; None leaves them as they
    are.
    """
    parameters = tuple(parameters)
    drift = parameters_to_vector(parameter.detach() for parameter in parameters)
    drift.sub_(anchor[ALL]).mul_(fisher[ALL])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # all have
    torch._foreach_add_(gradients, by_parameter({ALL: drift}, parameters), alpha=2 * strength)
    if damping is not None:
        torch._foreach_div_(gradients, by_parameter({ALL: damping(fisher[ALL], drift)}, parameters))
