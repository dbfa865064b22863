"""A function of images, computed a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_slices(function: Callable[[Tensor], Tensor], images: Sequence[Tensor], size: int) -> Tensor:
    """Return a function of images [n, ...], one behind the other, computed `size` at a time (0: each part whole).

    The results are written into one tensor, so that only a slice's temporaries lie beside it.
    """
    slices = [part for whole in images for part in (torch.split(whole, size) if size else (whole,))]
    first = function(slices[0])
    if len(slices) == 1:
        return first
    total = sum(map(len, slices))
    result = first.new_empty((total, *first.shape[1:]))
    end = len(first)
    result[:end] = first
    del first
    for part in slices[1:]:
        start, end = end, end + len(part)
        result[start:end] = function(part)
    return result
