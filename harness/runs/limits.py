"""What a worker holds itself to: a budget, and kernels that take the same workspace each time."""

from __future__ import annotations

import resource

import torch

from clmem.harness.errors import UsageError
from clmem.harness.memory.system.process import data_bytes, resident_bytes
from clmem.harness.specs.budgets import budget
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.targets import allocator_of, device_of


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
