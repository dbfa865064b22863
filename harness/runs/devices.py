"""Whether a target's device is there and free, what it is, and how much of it a run may take."""

from __future__ import annotations

import platform
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.memory.system import jetson, nvml
from clmem.harness.memory.system.process import data_bytes, resident_bytes
from clmem.harness.specs.budgets import budget
from clmem.harness.specs.run import RunSpec
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


class DeviceProcess(Unwatched):
    """The monitor of an un-profiled pass on CUDA: asks NVML at the end of each phase but of steady steps.

    What torch reserves it keeps, so a look after a phase sees the peak. peak_bytes: None where NVML cannot tell.
    """

    def __init__(self, target: str) -> None:
        self._uuid = identity(target)
        self.peak_bytes: int | None = None

    @contextmanager
    def phase(self, name: str, task: int) -> Iterator[None]:
        """Bracket one phase of one task, which may end in want of memory."""
        try:
            yield
        finally:
            held = None if self._uuid is None or name == "step" else nvml.process_bytes(self._uuid)
            if held is not None:
                self.peak_bytes = max(held, self.peak_bytes or 0)


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


def pin(target: str) -> None:
    """Fix what decides which kernels run, and so what workspace they take: no autotuning, no TF32."""
    if allocator_of(target) == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def limit_reserved(spec: RunSpec) -> None:
    """Let torch reserve no more than the run's budget on a GPU. Raises UsageError for one larger than the device."""
    if spec.budget is None or allocator_of(spec.target) == "cpu":
        return
    allowed = budget(spec.budget).limit_bytes(spec.target)
    if allowed <= 0:
        raise UsageError(f"a budget of {spec.budget} leaves nothing for tensors: all of it is deducted")
    device = torch.device(device_of(spec.target))
    total = torch.cuda.get_device_properties(device).total_memory
    if allowed > total:
        raise UsageError(f"a budget of {spec.budget} allows {allowed:,} B but {device} has {total:,} B")
    # torch multiplies and cuts off what is behind the point, and one byte less would be a segment less
    torch.cuda.set_per_process_memory_fraction(min(1.0, (allowed + 0.5) / total), device)


def limit_process(spec: RunSpec) -> None:
    """Let this process grow no further than the run's budget on the CPU. Raises MemoryError where it is larger already.

    The kernel's limit (RLIMIT_DATA) counts what is mapped to be written, touched or not, so it is set on what may come
    beyond the present. Call it when everything is imported and built: libraries' own pages do not count.
    """
    if spec.budget is None or allocator_of(spec.target) == "cuda":
        return
    allowed, held = budget(spec.budget).limit_bytes(spec.target), resident_bytes()
    if held > allowed:
        raise MemoryError(f"before its first step it takes {held:,} B, more than its budget of {allowed:,} B")
    most = data_bytes() + allowed - held
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def lift_limit() -> None:
    """Take back the limit of `limit_process`, so that there is memory to say how a run ended."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def describe(target: str, *, with_services: bool) -> dict[str, Any]:
    """Return what a result says of its device beside the machine's own description; nothing for the CPU.

    with_services: also ask jetson-stats, whose client takes memory in this process.
    """
    if allocator_of(target) == "cpu":
        return {}
    device = torch.device(device_of(target))
    properties = torch.cuda.get_device_properties(device)
    described: dict[str, Any] = {
        "device": properties.name,
        "device_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "integrated": bool(getattr(properties, "is_integrated", False)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": nvml.driver_version(),
    }
    if target == "jetson":
        described |= {"board": jetson.model(), "jetpack": jetson.release()}
        if with_services:
            described["jetson_stats"] = jetson.jtop_says()
    return described


def identity(target: str) -> str | None:
    """Return the device's NVML name (`GPU-...`), None where neither torch nor NVML knows it."""
    device = torch.device(device_of(target))
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:  # torch before 2.5
        return nvml.uuid(torch.cuda._get_nvml_device_index(device))
    return f"GPU-{uuid}"
