"""Whether a target's device is there and free, before anything is measured on it."""

from __future__ import annotations

import platform
import warnings

import torch

from clmem.harness.errors import UsageError
from clmem.harness.memory.system import jetson, nvml
from clmem.harness.memory.system.gpu import identity
from clmem.harness.specs.targets import allocator_of, device_of


def check_device(target: str) -> None:
    """Raise UsageError, one sentence, where the device of a target is not there or cannot be used.

    No context is made on the device, which would hold memory there.
    """
    device = device_of(target)
    if allocator_of(target) == "cpu":
        return
    if torch.version.cuda is None:
        raise UsageError(
            f"target {target!r} needs CUDA but this torch ({torch.__version__}) is built without it; install a CUDA "
            "build, or use --target cpu, or `clmem predict --target cuda`"
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(
            f"target {target!r} needs CUDA but torch finds no device: {_why(said)}; use --target cpu, or "
            "`clmem predict --target cuda`, which needs none"
        )
    index = int(device.partition(":")[2])
    if index >= count:
        known = ", ".join(f"cuda:{number}" for number in range(count))
        raise UsageError(f"there is no device {device}: this machine has {known}")
    if target == "jetson" and not (jetson.is_jetson() or _shares_memory(index)):
        raise UsageError(
            "target 'jetson' counts memory that GPU and processor share, and this machine does not say that it is a "
            "Jetson board (in a container, mount its /etc/nv_tegra_release); else use --target cuda"
        )


def _why(said: list[warnings.WarningMessage]) -> str:
    """Return torch's own reason in one clause: a driver too old, no driver, a failure."""
    if said:
        text = " ".join(str(said[0].message).split())
        return text.partition(" (Triggered")[0].partition(". ")[0].rstrip(".")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return "it says no reason"


def _shares_memory(index: int) -> bool:
    """Say whether a GPU shares the memory of an ARM processor: a container may hide what names the board."""
    properties = torch.cuda.get_device_properties(index)
    return platform.machine() == "aarch64" and bool(getattr(properties, "is_integrated", False))


def check_others(target: str, allowed_bytes: int) -> bool:
    """Raise UsageError where processes that do not belong to this measurement hold more than that on a GPU.

    Return whether that could be told: NVML is missing on Jetson boards, and some containers hide other processes.
    """
    if allocator_of(target) == "cpu":
        return True
    uuid = identity(target)
    found = None if uuid is None else nvml.others(uuid)
    if not found:
        return found is not None
    held = sum(size for _, _, size in found)
    if held > allowed_bytes:
        pid, name, size = found[0]
        raise UsageError(
            f"other processes hold {held:,} B on {device_of(target)} (the largest: {name}, pid {pid}, {size:,} B) "
            f"where {allowed_bytes:,} B are allowed; stop them, or allow them with --others {held}"
        )
    return True
