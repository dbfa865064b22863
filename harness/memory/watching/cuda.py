"""What CUDA's caching allocator says of itself: its own peaks, and its own history with what was asked for.

The peaks are the truth pass: nothing is recorded, the allocator counts anyway. The history is the attribution pass's;
`device_log` makes the log of it.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.files import write_bytes
from clmem.harness.memory.watching.observer import collect

_set_metadata: Callable[[str], None] | None = getattr(torch._C, "_cuda_setMemoryMetadata", None)

COUNTERS = ("allocated_bytes", "requested_bytes", "active_bytes", "reserved_bytes")
"""What the allocator counts: blocks given out, what was asked for, blocks that a stream may still use, segments."""


class DevicePeaks(Unwatched):
    """The monitor of the truth pass: reads the allocator's peaks phase by phase. It touches no tensor.

    by_phase: (task, phase, peaks by counter); a phase that comes again keeps its highest.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._peaks: dict[tuple[int, str], dict[str, int]] = {}
        collect()
        gc.freeze()  # what the imports made is never garbage: later collections need not look at it
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    @contextmanager
    def phase(self, name: str, task: int) -> Iterator[None]:
        """Bracket one phase of one task. Cyclic garbage is collected before it, never inside it."""
        collect()
        gc.disable()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield
        finally:
            gc.enable()
            torch.cuda.synchronize(self._device)
            stats = torch.cuda.memory_stats(self._device)
            held = self._peaks.setdefault((task, name), dict.fromkeys(COUNTERS, 0))
            for counter in COUNTERS:
                held[counter] = max(held[counter], int(stats[f"{counter}.all.peak"]))

    @property
    def by_phase(self) -> list[tuple[int, str, int]]:
        """(task, phase, peak of the blocks given out)."""
        return [(task, name, peaks["allocated_bytes"]) for (task, name), peaks in self._peaks.items()]

    def highest(self) -> dict[str, int]:
        """Return the highest value of every counter, and how often the allocator had to give back and try again."""
        stats = torch.cuda.memory_stats(self._device)
        highest = {name: max((peaks[name] for peaks in self._peaks.values()), default=0) for name in COUNTERS}
        return {**highest, "retries": int(stats["num_alloc_retries"])}


class History:
    """Torch's own history of its caching allocator. snapshot: where to keep it for the viewer at
    pytorch.org/memory_viz, with the lines that allocated; None keeps nothing and records no lines.
    """

    def __init__(self, device: str, snapshot: Path | None = None) -> None:
        self._device = torch.device(device)
        self._snapshot = snapshot

    def start(self) -> None:
        """Begin, before anything is allocated."""
        context = None if self._snapshot is None else "alloc"
        torch.cuda.memory._record_memory_history("all", context=context, stacks="python")

    def mark(self, number: int) -> None:
        """Let every later entry of this thread say that this mark came before it, where torch can (2.11 and newer)."""
        if _set_metadata is not None:
            _set_metadata(str(number))

    def annotate(self, tensor: Tensor, role: str) -> None:
        """Write a tensor's role into the history where torch can (2.15 and newer) and somebody will look at it."""
        if self._snapshot is not None and hasattr(torch.cuda.memory, "_annotate_tensor"):
            torch.cuda.memory._annotate_tensor(tensor, role)

    def stop(self) -> list[dict[str, Any]]:
        """End; return the device's entries, oldest first. Writes the snapshot where one was asked for."""
        found = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(None)
        if self._snapshot is not None:
            write_bytes(self._snapshot, pickle.dumps(found))
        entries: list[dict[str, Any]] = found["device_traces"][self._device.index or 0]
        return entries
