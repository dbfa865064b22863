"""What NVIDIA's management library says of a GPU: bytes by process, which include the CUDA context.

Jetson boards lack it or answer NotSupported, and containers may hide other processes: then the answer is None, never 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psutil
import pynvml  # type: ignore[import-untyped]

Answer = TypeVar("Answer")

ENDING_S = 1.0
"""For how long a process that has ended may still be listed."""


@contextmanager
def _library() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _asked(question: Callable[[], Answer]) -> Answer | None:
    """Return NVML's answer, None where there is no NVML or it cannot tell."""
    try:
        with _library():
            return question()
    except pynvml.NVMLError:
        return None


def driver_version() -> str | None:
    """Return the version of the driver, None where NVML cannot tell."""
    return _asked(lambda: str(pynvml.nvmlSystemGetDriverVersion()))


def uuid(index: int) -> str | None:
    """Return the name of a GPU by NVML's own number, None where NVML cannot tell."""
    return _asked(lambda: str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))))


def _processes(uuid: str) -> dict[int, int | None]:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    held: dict[int, int | None] = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in ask(handle):
            known = held.get(process.pid)
            sizes = [size for size in (known, process.usedGpuMemory) if size is not None]
            held[process.pid] = max(sizes) if sizes else None
    return held


def process_bytes(uuid: str, pid: int | None = None) -> int | None:
    """Return what a process (default: this one) holds on a GPU, its context included; None where NVML cannot tell."""
    held = _asked(lambda: _processes(uuid))
    return None if held is None else held.get(os.getpid() if pid is None else pid)


def others(uuid: str) -> list[tuple[int, str, int]] | None:
    """Return (pid, name, bytes) of the processes on a GPU that do not belong to this measurement, the largest first.

    Those with a common ancestor in this suite are siblings; one that has just ended is listed for a moment longer, and
    its ancestors are unknown, so strangers are those that are still listed after that. None where NVML cannot tell how
    much any process holds.
    """
    suite = os.environ.get("CLMEM_PARENT", "")
    strangers: dict[int, int | None] = {}
    for again in (False, True):
        held = _asked(lambda: _processes(uuid))
        if held is None:
            return None
        listed = {pid: size for pid, size in held.items() if not _belongs(pid, suite)}
        strangers = {pid: size for pid, size in listed.items() if not again or pid in strangers}
        if not strangers:
            return []
        if not again:
            time.sleep(ENDING_S)
    if all(size is None for size in strangers.values()):
        return None
    found = [(pid, _name(pid), size or 0) for pid, size in strangers.items()]
    return sorted(found, key=lambda item: -item[2])


def _belongs(pid: int, suite: str) -> bool:
    if pid == os.getpid() or str(pid) == suite:
        return True
    try:
        return any(str(parent.pid) == suite for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "unknown"
