"""Budgets: how much memory a run may take, given as a board's name or in bytes. Torch is not imported here.

A board's budget is what Linux sees of its memory less what else lies in it (`data/budgets.toml` has every number with
its source). A budget is a limit that clmem sets, and so emulated, also on the board whose name it has; the word is
printed beside every number that it shaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clmem.harness.errors import UsageError, nearest
from clmem.harness.files import read_toml
from clmem.harness.specs.targets import allocator_of
from clmem.harness.text import clean

MIB = 2**20
LARGEST_BYTES = 2**62
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Budget:
    """What a run may take. deductions: bytes of what else lies in the same memory, by name; empty for plain bytes.

    process_bytes of a board includes the interpreter; tensors_bytes is what is left for torch's tensors on its GPU.
    """

    name: str
    title: str
    total_bytes: int
    deductions: Mapping[str, int]
    note: str = ""

    @property
    def process_bytes(self) -> int:
        """What a process without CUDA may take: all but the system."""
        return self.total_bytes - self.deductions.get("system", 0)

    @property
    def tensors_bytes(self) -> int:
        """What torch may reserve on the GPU of a board: all but system, CUDA context and the process itself."""
        return self.total_bytes - sum(self.deductions.values())

    def limit_bytes(self, target: str) -> int:
        """Return what is limited on a target: a process's memory on the CPU, what torch reserves on CUDA."""
        return self.process_bytes if allocator_of(target) == "cpu" else self.tensors_bytes


@cache
def boards() -> dict[str, Budget]:
    """Return the budgets of boards by name, the smallest first."""
    values = read_toml(Path(__file__).parents[1] / "data" / "budgets.toml")
    deductions = {name: size * MIB for name, size in values["deductions"].items()}
    found = [
        Budget(name, board["title"], board["usable"] * MIB, deductions, board.get("note", ""))
        for name, board in values["boards"].items()
    ]
    return {budget.name: budget for budget in sorted(found, key=lambda budget: budget.total_bytes)}


def budget(text: str) -> Budget:
    """Return the budget of a board's name, or of bytes such as 2000000000, 2GB or 2GiB. Raises UsageError."""
    if text in boards():
        return boards()[text]
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([kmg]?i?)b?", text.strip().lower())
    if found is None or found[2] == "i":
        raise UsageError(
            f"there is no budget {clean(text, 80)!r}: give bytes, such as 2000000000 or 2GiB, or a board: "
            f"{nearest(text, boards())}"
        )
    size = int(float(found[1]) * UNITS[found[2]])
    if size > LARGEST_BYTES:
        raise UsageError(f"a budget of {text!r} is more than any machine has; give at most {LARGEST_BYTES:,} B")
    if size == 0:
        raise UsageError(f"a budget of {text!r} leaves nothing to run in; give the bytes that a run may take")
    return Budget(text, f"{size:,} B", size, {})
