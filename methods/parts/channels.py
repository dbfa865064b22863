"""Channel pruning: which channels of a network are kept, and which weights fall with the others.

Pruned weights are masked, not removed: they are zero, and tensors keep their shapes and their bytes. Because whole
channels fall, the same weights can also be removed physically, with `grouped` ranking without changing the function.

What falls with a channel: the filter that makes it, the affine parameters of its batch norm, and its columns in the
next convolution or in the linear layer. A shortcut's columns stay: counted so, over everything called `weight`, a
network of width 64 has the 0.9038 zeros and 4.10 MiB of non-zeros known of the released code. With `grouped` ranking
those columns read channels that are always zero; removal takes them too, and leaves 1,054,542 parameters (4.02 MiB).

The running statistics of a pruned channel need no care: whatever they are, a batch norm whose scale and shift are zero
gives zero. They are of a channel that is constantly zero, so they move to zero and stay finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from clmem.methods.base import Convolution, Network

Ranking = Literal["grouped", "per_convolution"]
"""`grouped`: convolutions whose outputs are added share one ranking, of their mean scores. `per_convolution`: each has
its own; a channel that one branch of a sum prunes then lives on in another."""

KEEP_RATIO = (0.8, 0.8, 0.8, 0.3, 0.2)
"""Part of the channels kept, by the layer's number, of which the stem is 0: sparsity .2, .2, .2, .7 and .8."""


def convolutions(network: Network) -> list[Convolution]:
    """Return a network's convolutions. Raises ValueError where it does not say what a pruned channel takes with it."""
    found = network.convolutions()
    if not found or max(convolution.depth for convolution in found) >= len(KEEP_RATIO):
        raise ValueError(
            f"channels can be pruned in a ResNet of basic blocks and {len(KEEP_RATIO)} layers with the stem, and this "
            "network is none; use resnet18, or a method that does not prune"
        )
    return found


def kept_channels(network: Network, ranking: Ranking) -> dict[str, Tensor]:
    """Return, by convolution, a bool mask [C_out]: channels are scored by the signed mean of their filter's weights."""
    scores: dict[str, list[Tensor]] = {}
    for convolution in convolutions(network):
        weight = network.get_parameter(f"{convolution.name}.weight").detach()
        scores.setdefault(_ranked_with(convolution, ranking), []).append(weight.mean((1, 2, 3)))
    kept = {}
    for convolution in convolutions(network):
        together = torch.stack(scores[_ranked_with(convolution, ranking)]).mean(0)
        kept[convolution.name] = top_channels(together, KEEP_RATIO[convolution.depth])
    return kept


def _ranked_with(convolution: Convolution, ranking: Ranking) -> str:
    return convolution.summed if ranking == "grouped" else convolution.name


def top_channels(scores: Tensor, keep_ratio: float, channels: int | None = None) -> Tensor:
    """Return a bool mask [C] of the largest scores [C].

    n_keep = int(C keep_ratio + .5); the threshold is the (C - n_keep)-th smallest score, itself kept: n_keep + 1.
    channels: taken for C where channels were removed, whose scores were zero.
    """
    n_keep = int((channels or len(scores)) * keep_ratio + 0.5)
    return scores >= scores.topk(min(n_keep + 1, len(scores))).values[-1]


def pruned_weights(network: Network, kept: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Return, by parameter, bool masks that broadcast to its shape, True where any of them prunes.

    All masks of one channel set are views of one tensor, a byte per channel.
    """
    pruned = {name: ~mask for name, mask in kept.items()}
    masks: dict[str, list[Tensor]] = {}
    for convolution in convolutions(network):
        channels = pruned[convolution.name]
        masks[f"{convolution.name}.weight"] = [channels.view(-1, 1, 1, 1)]
        masks[f"{convolution.norm}.weight"] = masks[f"{convolution.norm}.bias"] = [channels]
        if convolution.reads is not None:
            masks[f"{convolution.name}.weight"].append(pruned[convolution.reads].view(1, -1, 1, 1))
    last = [convolution.name for convolution in convolutions(network) if convolution.relu is not None][-1]
    masks[f"{network.head_stage}.weight"] = [pruned[last].view(1, -1)]
    return masks


def in_full(network: Network, masks: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Return the same masks with one bool for every parameter of the network, pruned or not."""
    full = {}
    for name, parameter in network.named_parameters():
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        for part in masks.get(name, ()):
            mask |= part
        full[name] = [mask]
    return full
