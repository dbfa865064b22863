"""LightCL with channel sparsity: most channels of the start weights fall, and LightCL learns with the others.

Wang et al., "LightCL: Compact Continual Learning with Low Memory Footprint For Edge Device", arXiv 2407.10545v3, 2025.

    s_c = mean of filter c's weights
    kept: the largest 80 % of conv1, layer1 and layer2, 30 % of layer3, 20 % of layer4

once, before task 0 and on the loaded weights when there are any; width 64 keeps 52, 103, 78 and 103 channels, one more
than asked as for the channels that LightCL holds. What falls with a channel is in `parts.channels`. The rest is
LightCL, except that with a trunk frozen from the start task 0 learns from `first_boundary` on.

Masked, hence dense in plain execution: weights, gradients and activations keep their sizes, so this needs as much
memory as LightCL. Carried out lean, pruned channels are removed. Pruned weights stay zero exactly, for plain SGD moves
nothing whose gradient is zero: with `grouped` ranking those gradients are zero by themselves; with `per_convolution`
they are not, because a pruned channel lives on in the sum with another branch, and are set to zero before each step.

Differs from the paper / the released code in:
- `ranking=grouped`: convolutions whose outputs are added share one ranking, so the channels can be removed physically
  without changing the function. As released each is ranked alone (`per_convolution`).
- one bool per channel is held, and `weight_masks=bool` holds one per parameter as released.
- otherwise what `lightcl` says of itself.

The preset `released` holds what the released code holds: bool masks over all parameters (10.66 MiB at width 64 with 10
classes), drifting batch norms in the trunk, and the graphs of an evaluation without `no_grad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clmem.methods.base import MethodContext
from clmem.methods.lightcl import LightCL
from clmem.methods.parts.channels import Ranking, convolutions, in_full, kept_channels, pruned_weights


class LightCLSparse(LightCL):
    """LightCL with channel sparsity: prunes channels before the first task and learns with those that are left."""

    name = "lightcl-sparse"
    checkpointed = (*LightCL.checkpointed, "pruned")

    class Config(LightCL.Config):
        """Hyper-parameters; defaults of the released code unless noted."""

        first_boundary: str | None = Field(
            "before_tail",
            description="first stage that learns in task 0 if the trunk is frozen from the start; `before_tail` is the "
            "stage before the tail (released code: layer3.1); none: the one that `boundary` names",
        )
        ranking: Ranking = Field(
            "grouped",
            description="how channels are ranked: together in convolutions whose outputs are added (grouped), or in "
            "each convolution alone (per_convolution, released code)",
        )
        weight_masks: Literal["none", "bool"] = Field(  # type: ignore[assignment]
            "none",
            description="what masks hold: one bool per element of every parameter (bool, released code) or per channel "
            "(none)",
        )

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        convolutions(context.network)  # raises for a network that cannot be pruned, whatever else is wrong
        super().__init__(context, config)
        network = context.network
        kept = kept_channels(network, config.ranking)
        self.ranked = list(kept)
        """The convolutions whose channels were ranked, by name."""
        self.pruned = pruned_weights(network, kept)
        """By parameter name, bool masks that broadcast to it: True where a weight is pruned."""
        if config.weight_masks == "bool":
            self.pruned = in_full(network, self.pruned)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                self._prune(name, parameter)

    def kept_channels(self) -> Mapping[str, Tensor]:
        """The channels that were not pruned, where the others can be removed: ranked together, with no mask held."""
        if self.config.ranking != "grouped" or self.config.weight_masks != "none" or not self.pruned:
            return {}
        return {name: ~self.pruned[f"{name}.weight"][0].flatten() for name in self.ranked}

    def channels_removed(self) -> None:
        """Nothing pruned is left; LightCL's share of important channels remains one of all that there were."""
        relus = {convolution.name: convolution.relu for convolution in self.network.convolutions()}
        kept = self.kept_channels().items()
        self.channels = {relu: len(mask) for name, mask in kept if (relu := relus[name]) is not None}
        self.pruned = {}

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Leave pruned weights where they are: at zero. Those ranked together have no gradient to begin with."""
        if parameter.grad is not None and self.config.ranking != "grouped":
            self._prune(name, parameter.grad)

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """LightCL's, and the masks of what is pruned."""
        roles = super().memory_roles()
        masks = [mask for masks in self.pruned.values() for mask in masks]
        return {**roles, "method_state": [*roles["method_state"], *masks]}

    def _prune(self, name: str, tensor: Tensor) -> None:
        for mask in self.pruned.get(name, ()):
            tensor.masked_fill_(mask, 0)
