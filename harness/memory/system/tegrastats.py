"""Reads tegrastats, NVIDIA's monitor for Jetson boards. Its lines differ between boards and releases and drift.

So nothing is required but RAM: what a line does not have, or has in a form nobody has seen, is left out of the answer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

MB = 2**20
"""tegrastats says MB and divides by 1024 twice."""


@dataclass(frozen=True)
class Core:
    """One processor core: load in percent and frequency in MHz, None where the line does not say."""

    load: int
    mhz: int | None


@dataclass(frozen=True)
class TegraStats:
    """One line. Sizes in bytes, temperatures in °C by sensor, powers in mW by rail, now and on average.

    cores: None for a core that is off. gpu_load: percent. largest_free: (number, bytes) of the largest free blocks.
    """

    ram_used_bytes: int
    ram_total_bytes: int
    largest_free: tuple[int, int] | None = None
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    cores: list[Core | None] = field(default_factory=list)
    gpu_load: int | None = None
    temperatures: dict[str, float] = field(default_factory=dict)
    powers: dict[str, tuple[int, int]] = field(default_factory=dict)


# no more digits than a number of bytes has, in ASCII: Python refuses to read thousands of them
RAM = re.compile(r"\bRAM ([0-9]{1,15})/([0-9]{1,15})([kM]?)B")
FREE = re.compile(r"\(lfb ([0-9]{1,15})x([0-9]{1,15})([kM]?)B\)")
SWAP = re.compile(r"\bSWAP ([0-9]{1,15})/([0-9]{1,15})([kM]?)B")
CORES = re.compile(r"\bCPU \[([^\]]*)\]")
CORE = re.compile(r"^([0-9]{1,15})%(?:@([0-9]{1,15}))?$")
GPU = re.compile(r"\bGR3D_FREQ ([0-9]{1,15})%")
TEMPERATURE = re.compile(r"\b([A-Za-z][\w-]*)@(-?[0-9]{1,15}(?:\.[0-9]{1,15})?)C\b")
POWER = re.compile(r"\b([A-Z][A-Z0-9_]*) ([0-9]{1,15})(?:mW)?/([0-9]{1,15})(?:mW)?(?![\w.])")
UNITS = {"": 1, "k": 2**10, "M": MB}


def parse_line(line: str) -> TegraStats | None:
    """Return what a line of tegrastats says, None for one without RAM."""
    ram = RAM.search(line)
    if ram is None:
        return None
    unit = UNITS[ram[3]]
    free, swap, cores, gpu = (pattern.search(line) for pattern in (FREE, SWAP, CORES, GPU))
    rest = RAM.sub(" ", SWAP.sub(" ", line))
    return TegraStats(
        ram_used_bytes=int(ram[1]) * unit,
        ram_total_bytes=int(ram[2]) * unit,
        largest_free=None if free is None else (int(free[1]), int(free[2]) * UNITS[free[3]]),
        swap_used_bytes=None if swap is None else int(swap[1]) * UNITS[swap[3]],
        swap_total_bytes=None if swap is None else int(swap[2]) * UNITS[swap[3]],
        cores=[] if cores is None else [_core(text) for text in cores[1].split(",") if text.strip()],
        gpu_load=None if gpu is None else int(gpu[1]),
        temperatures={name: float(value) for name, value in TEMPERATURE.findall(rest)},
        powers={name: (int(now), int(mean)) for name, now, mean in POWER.findall(rest)},
    )


class Reader:
    """Runs tegrastats and reads along. command: what to start; None looks for tegrastats and may find none.

    lines, unread: how many lines had RAM in them, and how many had not.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        found = shutil.which("tegrastats") if command is None else None
        self._command = list(command) if command is not None else [found, "--interval", "100"] if found else None
        self._process: subprocess.Popen[str] | None = None
        self.peak_bytes: int | None = None
        self.lines = self.unread = 0

    def start(self) -> None:
        """Begin to read, if there is something to start."""
        if self._command is None:
            return
        try:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
            )
        except OSError:  # it is there and may not be run: as if it were not
            return
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            stats = parse_line(line)
            if stats is None:
                self.unread += 1
            else:
                self.lines += 1
                self.peak_bytes = max(stats.ram_used_bytes, self.peak_bytes or 0)

    def stop(self) -> None:
        """End tegrastats and read what it had said."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()


def _core(text: str) -> Core | None:
    found = CORE.match(text.strip())
    if found is None:
        return None
    return Core(int(found[1]), None if found[2] is None else int(found[2]))
