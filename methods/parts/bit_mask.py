"""Masks over the elements of one tensor: one bit per element, or one float32 as published code often holds them.

A mask says which elements are open (1) and which are closed (0). It is kept flat; what is read from it and written to
it is a bool [n] over the n elements in order. Both kinds multiply, so they give the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["bit", "float32"]


class BitMask:
    """One bit per element, ceil(n / 8) bytes of uint8 in `stored`.

    Bit j of byte i is element j * ceil(n / 8) + i: eight contiguous planes, so that no operation strides over bits, and
    multiplying unpacks an eighth of the mask at a time.
    """

    def __init__(self, open_: Tensor) -> None:
        self.elements = len(open_)
        self.stored = torch.empty(-(-self.elements // 8), dtype=torch.uint8, device=open_.device)
        self.write(open_)

    def read(self) -> Tensor:
        """Return a bool [n], a copy: True where open."""
        open_ = torch.empty(self.elements, dtype=torch.uint8, device=self.stored.device)
        for plane, bits in self._planes(open_):
            plane.copy_(bits)
        return open_.view(torch.bool)  # no cast: a bool is a byte of 0 or 1

    def write(self, open_: Tensor) -> None:
        """Take over a bool [n], in the bytes already held."""
        self.stored.zero_()
        size = len(self.stored)
        for j in range(8):
            plane = open_[j * size : (j + 1) * size].view(torch.uint8)
            self.stored[: len(plane)].bitwise_or_(plane << j)

    def multiply(self, values: Tensor) -> None:
        """Multiply float32 values [n] by 0 or 1, in place."""
        for plane, bits in self._planes(values):
            plane.mul_(bits)

    def _planes(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each plane of a flat [n], a view, with its bits: uint8, 0 or 1."""
        size = len(self.stored)
        for j in range(8):
            plane = flat[j * size : (j + 1) * size]
            yield plane, (self.stored[: len(plane)] >> j).bitwise_and_(1)


class FloatMask:
    """One float32 per element, 0 or 1, in `stored`."""

    def __init__(self, open_: Tensor) -> None:
        self.stored = open_.to(torch.float32)

    def read(self) -> Tensor:
        """Return a bool [n], a copy: True where open."""
        return self.stored != 0

    def write(self, open_: Tensor) -> None:
        """Take over a bool [n], in the bytes already held."""
        self.stored.copy_(open_)

    def multiply(self, values: Tensor) -> None:
        """Multiply float32 values [n] by 0 or 1, in place."""
        values.mul_(self.stored)


Mask = BitMask | FloatMask

MASKS: Mapping[MaskKind, type[BitMask] | type[FloatMask]] = {"bit": BitMask, "float32": FloatMask}
