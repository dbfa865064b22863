"""Where a run can be measured, by name. Torch is not imported here; `devices` asks whether it is there."""

from __future__ import annotations

import re
from typing import Literal

from clmem.harness.errors import UsageError, nearest
from clmem.harness.text import clean

TARGETS = {
    "cpu": "this machine's processor, counted by torch's CPU allocator",
    "cuda": "an NVIDIA GPU (cuda:1 for the second), counted by torch's caching allocator",
    "jetson": "a Jetson board, whose GPU shares the board's memory",
}
"""Where a run can be measured."""

PREDICTED = "predicted-"
"""Before a target's name: where a run was predicted and not measured."""


def device_of(target: str) -> str:
    """Return torch's name of a target's device. Raises UsageError for a target that does not exist."""
    name, _, index = target.partition(":")
    if name not in TARGETS or (":" in target and (name != "cuda" or not re.fullmatch(r"0|[1-9][0-9]?", index))):
        raise UsageError(f"there is no target {clean(target, 80)!r}: {nearest(name, TARGETS)}")
    return "cpu" if name == "cpu" else f"cuda:{index or 0}"


def allocator_of(target: str) -> Literal["cpu", "cuda"]:
    """Return which of torch's allocators serves a target, predicted ones too."""
    return "cpu" if device_of(target.removeprefix(PREDICTED)) == "cpu" else "cuda"
