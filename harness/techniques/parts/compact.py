"""Physical removal of pruned channels: tensors become smaller, and the function stays the same.

Which other tensors a channel reaches (batch norms, summed branches, the next layer's inputs, the head) is found by
torch-pruning's dependency graph (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch_pruning
from torch import Tensor

from clmem.methods.base import Network


def remove_channels(network: Network, kept: Mapping[str, Tensor], image_shape: tuple[int, int, int]) -> None:
    """Remove from a network, in place, every channel that is not kept.

    kept: by convolution, bool [channels out]; convolutions whose outputs are added must keep the same channels. Raises
    ValueError naming two of them that do not.
    """
    device = next(network.parameters()).device
    network.eval()
    graph = torch_pruning.DependencyGraph().build_dependency(network, torch.zeros(1, *image_shape, device=device))
    names = {module: name for name, module in network.named_modules()}
    done: set[str] = set()
    for name, mask in kept.items():
        if name in done:
            continue
        pruned = (~mask).nonzero().flatten().tolist()
        prune = torch_pruning.prune_conv_out_channels
        group = graph.get_pruning_group(network.get_submodule(name), prune, idxs=pruned)
        for dependency, _ in group:
            other = names.get(dependency.target.module, "")
            if dependency.handler == prune and other in kept:
                if not torch.equal(kept[other], mask):
                    raise ValueError(
                        f"the outputs of {name} and {other} are added, but not the same channels of them are kept: "
                        "rank them together (ranking=grouped)"
                    )
                done.add(other)
        if pruned:
            group.prune()
