"""What cuDNN took on a card, shape by shape: which algorithm it chooses follows no rule that we know.

A file of `harness/data/devices` holds one card's answers with one release of cuDNN. Another release, or a card of
another architecture, chooses otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clmem.harness.errors import UsageError, nearest
from clmem.harness.text import clean

DEVICES = Path(__file__).parents[2] / "data" / "devices"

Shape = tuple[int, int, int, int, int, int, str]
"""Batch, channels in, channels out, side of the kernel, stride, side of the images, type: padded by half a kernel."""


@dataclass(frozen=True)
class Card:
    """A card with a release of cuDNN, called after its file.

    workspaces: by shape, bytes of the forward, of the gradient of the input, and of that of the weight.
    """

    name: str
    device: str
    capability: str
    cudnn: int
    workspaces: Mapping[Shape, tuple[int, int, int]]


@cache
def cards() -> list[Card]:
    """Return every card that clmem has answers of."""
    found = []
    for path in sorted(DEVICES.glob("*.json")):
        read = json.loads(path.read_text(encoding="utf-8"))
        workspaces = {tuple(row[:7]): tuple(row[7:]) for row in read["workspaces"]}
        found.append(Card(path.stem, read["device"], read["capability"], read["cudnn"], workspaces))
    return found


def card_named(name: str) -> Card:
    """Return the card of a name. Raises UsageError with the names that there are."""
    known = {card.name: card for card in cards()}
    if name not in known:
        raise UsageError(f"there is no card {clean(name, 80)!r}: {nearest(name, list(known))}")
    return known[name]


def card_of(capability: object, cudnn: object) -> Card | None:
    """Return the card of an architecture and a release of cuDNN, as results name them; None where there is none."""
    return next((card for card in cards() if (card.capability, card.cudnn) == (capability, cudnn)), None)
