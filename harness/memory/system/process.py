"""What the operating system says a process holds: resident memory now, and its high-water mark."""

from __future__ import annotations

from pathlib import Path

PINNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Environment under which glibc returns freed blocks at once; without it, resident memory keeps what was freed."""
KEEPING_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Environment under which glibc keeps freed blocks. By default blocks of 32 MiB and more go back, and every new one is
page faults and zeros: a quarter of a step's time at full width."""


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no field {field}")


def resident_bytes() -> int:
    """Return this process's resident memory (VmRSS)."""
    return _status_bytes("VmRSS")


def data_bytes() -> int:
    """Return what this process has mapped for itself to write (VmData), touched or not."""
    return _status_bytes("VmData")


def high_water_bytes() -> int:
    """Return the highest resident memory (VmHWM) since the process began or since `reset_high_water`."""
    return _status_bytes("VmHWM")


def oom_kills() -> int:
    """Return how many processes this machine's kernel has killed for want of memory, 0 where it does not count them."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def reset_high_water() -> bool:
    """Let VmHWM start again from the present. False where the kernel forbids it, and it goes on from the import's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
