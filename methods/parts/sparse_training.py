"""Sparse training of SparCL: task-aware dynamic masks over weights (TDM), dynamic masks over gradients (DGM).

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022.

    start        open the (1 - s) largest |w| of every masked layer
    TDM          I = |w| + alpha |g|: close the least important open weights down to the lower bound, then open closed
                 weights by chance, with value 0, up to the upper bound; w <- M_w w
    DGM          M_g = the largest |g| among open weights, `gradient_keep` of the layer's elements; renewed every 30
                 batches, and whenever weights were opened, which could not learn before
    every step   g <- M_g g

Masked are the 3x3 convolutions behind the stem (sixteen in ResNet-18), unless they are depthwise; stem, shortcuts and
head stay dense.

Bounds, as the sparsity after closing and after opening, over the tenths of a task's steps (released: update k at
epoch 5k of 50), given for s = .75 and taken over for every s:

    k = 0: (s, s - .01)        k = 1 ... 8: (s + .01, s)        k = 9: (s, s)

M_g is a subset of M_w at all times, so a closed weight has no gradient and plain SGD leaves its 0 alone: w <- M_w w is
needed at an update only. Both masks are additional memory. In plain execution the weights and gradients that they zero
stay dense; `storage=sparse` stores open weights alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from clmem.methods.base import Method, MethodContext, Network
from clmem.methods.parts.bit_mask import MASKS, Mask, MaskKind
from clmem.methods.parts.trunk import trunk_modules

UPDATES = 10
"""Times in a task that weight masks move."""


class SparseConfig(Method.Config):
    """Hyper-parameters that the SparCL methods share; defaults of the released code unless noted."""

    lr: float = Field(0.03, gt=0, description="learning rate of SGD (released code)")
    head: Literal["class_il", "task_il"] = Field(
        "task_il",
        description="cross-entropy over all classes (class_il) or those of the current task (task_il, released code)",
    )
    sparsity: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="share of each masked layer's weights that are zero (paper: .75, .90, .95; LightCL's Table 1)",
    )
    margin: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="how far the sparsity moves away from its target (released code for a sparsity of .75, else ours)",
    )
    gradient_weight: float = Field(
        0.5, ge=0, description="alpha in a weight's importance, |weight| + alpha |gradient| (released code)"
    )
    gradient_keep: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of each masked layer's gradients that are kept (released code for a sparsity of .75)",
    )
    gradient_mask_every: int = Field(
        30, ge=1, description="batches after which gradient masks are made anew (released code)"
    )
    removal_share: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="share of a task's samples that is removed, in four rounds (released code); 0: none",
    )
    masks: MaskKind = Field(
        "bit", description="how masks are stored: 1 bit per weight (ours), or float32 (released code)"
    )

    @model_validator(mode="after")
    def _opens_less_than_is_closed(self) -> SparseConfig:
        if self.margin >= self.sparsity:
            raise ValueError(
                f"margin is {self.margin} at a sparsity of {self.sparsity}, so that everything would open; "
                "use a margin below the sparsity"
            )
        return self


def masked_weights(network: Network) -> dict[str, Tensor]:
    """Return {parameter name: weight} of the 3x3 convolutions behind the first stage, in the network's order."""
    stem = {id(module) for module in trunk_modules(network, network.boundaries[1])}
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.groups == 1
        and id(module) not in stem
    }


def open_count(elements: int, sparsity: float) -> int:
    """Return how many of a layer's weights are open at a sparsity, which is taken into 0 ... 1."""
    return elements - round(elements * min(max(sparsity, 0.0), 1.0))


def update_at(step: int, total: int) -> int | None:
    """Return the number 0 ... 9 of the update at `step` of a task of `total` steps, None if there is none.

    Update k falls on step floor(k total / 10). Of several on one step only the last takes place.
    """
    return max((k for k in range(UPDATES) if k * total // UPDATES == step), default=None)


def bounds(update: int, sparsity: float, margin: float) -> tuple[float, float]:
    """Return the sparsity after closing and the sparsity after opening of an update."""
    if update == 0:
        return sparsity, sparsity - margin
    return (sparsity, sparsity) if update == UPDATES - 1 else (sparsity + margin, sparsity)


class SparseTraining:
    """The two masks of every masked layer, and when they change. Making it prunes the network given.

    Layers may be adjusted in any order, as a step that updates weights during the backward does: each draws from a
    generator of its own, made from a seed that the method's generator gives once per update.
    """

    def __init__(self, context: MethodContext, config: SparseConfig) -> None:
        self.context, self.config = context, config
        self.weights: dict[str, Mask] = {}
        self.gradients: dict[str, Mask] = {}
        self.bounds: tuple[float, float] | None = None
        self.seed = 0
        self.refresh = False
        for name, parameter in masked_weights(context.network).items():
            weight = parameter.detach().view(-1)
            kept = weight.abs().topk(open_count(len(weight), config.sparsity), sorted=False).indices
            open_ = torch.zeros_like(weight, dtype=torch.bool).index_fill_(0, kept, True)
            self.weights[name], self.gradients[name] = (MASKS[config.masks](open_) for _ in range(2))
            self.weights[name].multiply(weight)
        if not self.weights:
            raise ValueError(
                "the network has no 3x3 convolution behind its first stage that joins channels, so there is nothing to "
                "mask; use a network that has, such as resnet18"
            )

    def begin_step(self, step: int, total: int) -> None:
        """Decide what `step` of a task of `total` steps changes."""
        update = update_at(step, total)
        self.bounds = None if update is None else bounds(update, self.config.sparsity, self.config.margin)
        self.seed = 0 if update is None else int(self.context.rng.integers(2**63))
        self.refresh = update is not None or step % self.config.gradient_mask_every == 0

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Move the masks that are due to move, then mask the gradient; a dense parameter is left alone."""
        if name not in self.weights or parameter.grad is None:
            return
        weight, gradient = parameter.detach().view(-1), parameter.grad.view(-1)
        if self.bounds is not None:
            self._move_weight_mask(name, weight, gradient, *self.bounds)
        if self.refresh:
            self._renew_gradient_mask(name, gradient)
        self.gradients[name].multiply(gradient)

    def usable_gradient(self, name: str) -> Tensor:
        """Return bool [n]: the elements of a layer's gradient that `adjust_gradient` will look at or let through."""
        usable = self.weights[name].read()
        if self.bounds is not None:  # what opens may move at once
            lower, upper = (open_count(len(usable), sparsity) for sparsity in self.bounds)
            if upper > lower:
                usable.index_fill_(0, drawn_from(~usable, upper - lower, self._rng(name)), True)
        return usable

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, list(self.weights).index(name)])

    def _move_weight_mask(self, name: str, weight: Tensor, gradient: Tensor, lower: float, upper: float) -> None:
        mask = self.weights[name]
        open_ = mask.read()
        close_least_important(open_, weight, gradient, open_count(len(weight), lower), self.config.gradient_weight)
        mask.write(open_)
        mask.multiply(weight)  # before any is opened again: those begin at 0
        open_by_chance(open_, open_count(len(weight), upper) - open_count(len(weight), lower), self._rng(name))
        mask.write(open_)

    def _renew_gradient_mask(self, name: str, gradient: Tensor) -> None:
        candidates = self.weights[name].read().nonzero().squeeze(1)
        keep = round(self.config.gradient_keep * len(gradient))
        if len(candidates) > keep:
            candidates = candidates[gradient[candidates].abs_().topk(keep, sorted=False).indices]
        open_ = torch.zeros_like(gradient, dtype=torch.bool).index_fill_(0, candidates, True)
        self.gradients[name].write(open_)

    def tensors(self) -> Iterable[Tensor]:
        """Return everything stored, for `memory_roles`."""
        return [mask.stored for masks in (self.weights, self.gradients) for mask in masks.values()]

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, for a checkpoint between two steps."""
        return {"stored": list(self.tensors())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the masks of another process; the weights are the network's affair."""
        for own, other in zip(self.tensors(), state["stored"], strict=True):
            own.copy_(other)


def close_least_important(open_: Tensor, weight: Tensor, gradient: Tensor, keep: int, gradient_weight: float) -> None:
    """Close open weights with the smallest I = |w| + gradient_weight |g| until `keep` are left; all flat, in place.

    Only what is open is looked at and copied, a tenth of a layer at a sparsity of .9. Closed weights do not compete:
    they come back by chance alone.
    """
    candidates = open_.nonzero().squeeze(1)
    importance = weight[candidates].abs_().add_(gradient[candidates].abs_(), alpha=gradient_weight)
    least = importance.topk(len(candidates) - keep, largest=False, sorted=False).indices
    open_.index_fill_(0, candidates[least], False)


def open_by_chance(open_: Tensor, number: int, rng: np.random.Generator) -> None:
    """Open `number` closed elements, each with the same chance; bool [n], in place."""
    if number > 0:
        open_.index_fill_(0, drawn_from(~open_, number, rng), True)


def drawn_from(closed: Tensor, number: int, rng: np.random.Generator) -> Tensor:
    """Return int64 [number]: the first distinct positions drawn from all that are closed; bool [n].

    Takes the memory of what is drawn, not of what is drawn from. Closing more beforehand only adds positions to those
    that could come first: the order of all draws is that of the generator.
    """
    drawn = np.empty(0, dtype=np.int64)
    while True:
        drawn = np.concatenate([drawn, rng.integers(len(closed), size=max(number, len(drawn)))])
        positions = torch.from_numpy(drawn[np.sort(np.unique(drawn, return_index=True)[1])]).to(closed.device)
        found = torch.masked_select(positions, closed[positions])
        if len(found) >= number:
            return found[:number]
