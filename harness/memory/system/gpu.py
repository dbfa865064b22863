"""What torch and the driver say of a GPU: its name, its size, its versions."""

from __future__ import annotations

from typing import Any

import torch

from clmem.harness.memory.system import jetson, nvml
from clmem.harness.specs.targets import allocator_of, device_of


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
