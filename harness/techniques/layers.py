"""Layers that need less beside what they compute with. No torch; `parts/layers` and `parts/batch_norm` compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from clmem.harness.techniques.technique import Count, Technique

if TYPE_CHECKING:
    from clmem.methods.base import Network


def _slice_convolutions(network: Network, size: int) -> None:
    from clmem.harness.techniques.parts.layers import slice_convolutions

    slice_convolutions(network, size)


def _mask_relus(network: Network, value: bool) -> None:
    from clmem.harness.techniques.parts.layers import mask_relus

    mask_relus(network)


def _part_batch_norms(network: Network, parts: int) -> None:
    from clmem.harness.techniques.parts.batch_norm import part_batch_norms

    part_batch_norms(network, parts)


class Layers(BaseModel):
    """Fields of the techniques of layers. Networks are prepared in this order."""

    conv_slice: Annotated[Count, Technique(in_slices=True, prepare=_slice_convolutions)] = Field(
        0, description="samples at a time through each convolution whose maps are larger than its weights"
    )
    inplace_relu: Annotated[bool, Technique(prepare=lambda network, value: network.relus_in_place())] = Field(
        False, description="let each ReLU overwrite its input, because no backward reads it"
    )
    inplace_sum: Annotated[bool, Technique(prepare=lambda network, value: network.sums_in_place())] = Field(
        False, description="let each residual sum overwrite the output of a batch norm that it adds"
    )
    relu_masks: Annotated[bool, Technique(prepare=_mask_relus)] = Field(
        False, description="keep one byte per element for the backward of a ReLU instead of its float output"
    )
    bn_parts: Annotated[Count, Technique(prepare=_part_batch_norms)] = Field(
        0, description="parts, by channels, that the backward of a batch norm computes one after the other"
    )
