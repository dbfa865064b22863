"""Saved activations in the host's memory: moved there when autograd saves them, and back when it reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

SMALLEST_BYTES = 2**16
"""Smaller tensors stay: moving them costs more than their memory."""


class _OnHost(NamedTuple):
    """A tensor's copy, and where it came from."""

    device: torch.device
    tensor: Tensor


class Offload(saved_tensors_hooks):
    """Around a step, its backward too. host: where saved tensors wait; weights stay where they are, as they live on."""

    def __init__(self, host: str = "cpu") -> None:
        def pack(tensor: Tensor) -> Tensor | _OnHost:
            if tensor.is_leaf and tensor.requires_grad:
                return tensor
            if tensor.nbytes < SMALLEST_BYTES:
                return tensor
            # a copy even where it lies there already, so that this can be tested without a device
            return _OnHost(tensor.device, tensor.detach().to(host, copy=True))

        def unpack(packed: Tensor | _OnHost) -> Tensor:
            return packed.tensor.to(packed.device) if isinstance(packed, _OnHost) else packed

        super().__init__(pack, unpack)
