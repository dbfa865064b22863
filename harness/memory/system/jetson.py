"""A Jetson board's memory: GPU and processor share it, so the kernel's own account of all of it is the process level.

NVML knows no memory on these boards, and `cudaMemGetInfo` takes reclaimable cache for used, so neither is asked. What
is read is /proc/meminfo: what is no longer available, what the GPU's allocator (NvMap) holds of it, and swap, which
must not grow, or the peak lies somewhere else.
"""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmem.harness.memory.system.tegrastats import Reader
from clmem.harness.results.record import Unified

MODEL = "proc/device-tree/model"
RELEASE = "etc/nv_tegra_release"
MEMINFO = "proc/meminfo"

JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}
"""JetPack by major release of Jetson Linux (L4T)."""

INTERVAL_S = 0.02


def is_jetson(root: Path = Path("/")) -> bool:
    """Say whether this is a Jetson board, by its device tree or its release file; a container shows at least one."""
    return "jetson" in model(root).lower() or (root / RELEASE).exists()


def model(root: Path = Path("/")) -> str:
    """Return the board's name from the device tree, empty where there is none."""
    try:
        return (root / MODEL).read_bytes().decode("utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def release(root: Path = Path("/")) -> str | None:
    """Return "JetPack 6 (L4T 36.4.3)" from the release file, None where there is none."""
    try:
        text = (root / RELEASE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found is None:
        return None
    major, revision = int(found[1]), found[2]
    return f"JetPack {JETPACK.get(major, '?')} (L4T {major}.{revision})"


def jtop_says() -> dict[str, Any] | None:
    """Return what jetson-stats says of the board, None where it is not installed; an `error` where its service does
    not answer.

    It samples once a second behind a root service, so it describes and never measures.
    """
    try:
        module = importlib.import_module("jtop")
        with module.jtop() as board:
            memory = board.memory["RAM"]
            return {"total_bytes": 1024 * int(memory["tot"]), "power_mode": str(board.nvpmodel)}
    except ImportError:
        return None
    except Exception as error:  # whatever a service of another version says, it is no reason to stop
        return {"error": f"{type(error).__name__}: {error}"}


@dataclass(frozen=True)
class Meminfo:
    """Bytes as /proc/meminfo has them. nvmap: what the GPU's allocator holds, None where the kernel does not say."""

    total: int
    available: int
    swap_used: int
    nvmap: int | None

    @property
    def used(self) -> int:
        """What is neither free nor reclaimable."""
        return self.total - self.available

    @classmethod
    def read(cls, root: Path = Path("/")) -> Meminfo:
        """Read the kernel's present account. Raises OSError where it lacks a field."""
        fields: dict[str, int] = {}
        for line in (root / MEMINFO).read_text(encoding="ascii", errors="replace").splitlines():
            found = re.match(r"(\w+):\s+(\d+) kB", line)
            if found:
                fields[found[1]] = 1024 * int(found[2])
        try:
            return cls(
                total=fields["MemTotal"],
                available=fields["MemAvailable"],
                swap_used=fields.get("SwapTotal", 0) - fields.get("SwapFree", 0),
                nvmap=fields.get("NvMapMemUsed"),
            )
        except KeyError as error:
            raise OSError(f"{root / MEMINFO} has no field {error.args[0]}") from error


class UnifiedSampler:
    """Samples the board's memory in a thread while something runs. Short spikes fall between samples."""

    def __init__(
        self,
        running: Callable[[], bool],
        before: Meminfo,
        root: Path = Path("/"),
        tegrastats: Sequence[str] | None = None,
    ) -> None:
        """before: what was used before anything ran. tegrastats: the command for it; None looks for NVIDIA's."""
        self._running, self._root = running, root
        self._before = self._highest = before
        self._nvmap = self._before.nvmap
        self._swap = self._before.swap_used
        self._samples = 1
        self._tegrastats = Reader(tegrastats)
        self._tegrastats.start()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while self._running():
            try:
                now = Meminfo.read(self._root)
            except OSError:  # this look told nothing; `samples` says how many did
                time.sleep(INTERVAL_S)
                continue
            self._samples += 1
            self._highest = max(self._highest, now, key=lambda info: info.used)
            self._swap = max(self._swap, now.swap_used)
            if now.nvmap is not None:
                self._nvmap = max(self._nvmap or 0, now.nvmap)
            time.sleep(INTERVAL_S)

    def result(self) -> Unified:
        """Wait for the end; return what was used at most beyond what was used before."""
        self._thread.join()
        self._tegrastats.stop()
        before = self._before
        return Unified(
            total_bytes=before.total,
            before_bytes=before.used,
            peak_bytes=self._highest.used,
            nvmap_before_bytes=before.nvmap,
            nvmap_peak_bytes=self._nvmap,
            swap_growth_bytes=max(0, self._swap - before.swap_used),
            samples=self._samples,
            tegrastats_peak_bytes=self._tegrastats.peak_bytes,
        )
