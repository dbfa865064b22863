"""Where a number was measured: versions, machine, device, allocator settings, and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clmem.harness.text import clean

RECORDED = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_", "DNNL_", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DISABLE_FAST_MM"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD", "LD_AUDIT"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "TORCH_CUDNN_", "CUDNN_"),
    *("CUBLAS_WORKSPACE_CONFIG", "TORCH_CUBLAS", "CUBLASLT_", "TORCH_BLAS_PREFER_CUBLASLT", "CUDA_MODULE_LOADING"),
)
"""How the names of variables begin that decide what libraries allocate. Results say which were set, and to what."""

VECTORS_CAP = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""What holds oneDNN to older vectors than the processor has; the first that is set counts, in any case of letters."""


DECIDES_BYTES = ("torch", "vectors", "allocator")
"""Parts of an environment that decide how many bytes a step takes."""

DECIDES_BYTES_ON_CPU = ("threads",)
"""On a processor each thread has a workspace of its own."""

DECIDES_BYTES_ON_CUDA = ("device", "cuda", "cudnn", "driver")

DECIDES_BYTES_OF_A_PROCESS = ("python", "libc")


def decides_bytes(target: str, *, of_a_process: bool) -> tuple[str, ...]:
    """Return the keys of an environment in which runs must agree whose bytes are compared.

    of_a_process: whether bytes of whole processes are compared, and not of tensors alone.
    """
    on_device = DECIDES_BYTES_ON_CPU if target == "cpu" else DECIDES_BYTES_ON_CUDA
    return (*DECIDES_BYTES, *on_device, *(DECIDES_BYTES_OF_A_PROCESS if of_a_process else ()))


def environment() -> dict[str, Any]:
    """Describe this process's surroundings for a result file, without importing torch."""
    return {
        "clmem": _version("clmem"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "device": _cpu_name(),
        "vectors": vectors(),
        "cores": cores(),
        "allocator": allocator_settings(os.environ),
        **_commit(),
    }


def allocator_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Return which variables that decide what libraries allocate are set, and to what."""
    return {name: _shown(name, variables[name]) for name in sorted(variables) if name.startswith(RECORDED)}


def cores() -> int:
    """Return how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0))


def _shown(name: str, value: str) -> str:
    """Return a variable's value; of a path the file name alone, because folders say nothing about bytes."""
    is_path = name.startswith("LD_")
    parts = value.replace(":", " ").split() if is_path else [value]
    return " ".join(clean(Path(part).name if is_path else part) for part in parts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Return the processor's name: x86 writes `model name`, Arm boards `Model` (of the board) or nothing."""
    fields = _cpu_fields()
    return fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()


def vectors() -> str | None:
    """Return the widest vectors that torch's convolutions use on this processor; None where it is none of x86.

    They decide how many channels lie in a block, and so the size of what a convolution copies. torch's own cap
    (ATEN_CPU_CAPABILITY) does not bind oneDNN, whose convolutions these are.
    """
    flags = set(_cpu_fields().get("flags", "").split())
    cap = next((os.environ[name].upper() for name in VECTORS_CAP if os.environ.get(name)), "")
    if (
        {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags
        and not cap.startswith(("SSE", "AVX2"))
        and cap != "AVX"
    ):
        return "AVX512"
    if "avx2" not in flags:
        return None
    return cap if cap in ("SSE41", "AVX") else "AVX2"


@cache
def _cpu_fields() -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _commit() -> dict[str, Any]:
    """Return the git commit of this code and whether its tree was dirty; None where git cannot tell."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
