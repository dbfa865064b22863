"""Where a number was measured: versions, machine, device, allocator settings, and the commit of the code."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ALLOCATOR_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_CUBLAS_WORKSPACE_CACHE",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
)


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
        "vectors": _vectors(),
        "cores": os.cpu_count(),
        "allocator": {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ},
        **_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_digest() -> str:
    """Return a digest of all source that decides what a run computes, committed or not: of methods and harness."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(file for folder in ("harness", "methods") for file in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_name() -> str:
    """Return the processor's name: x86 writes `model name`, Arm boards `Model` (of the board) or nothing."""
    fields = _cpu_fields()
    return fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()


def _vectors() -> str | None:
    """Return the widest vectors that torch's convolutions use on this processor; None where it is none of x86.

    They decide how many channels lie in a block, and so the size of what a convolution copies.
    """
    flags = set(_cpu_fields().get("flags", "").split())
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags:
        return "AVX512"
    return "AVX2" if "avx2" in flags else None


def _cpu_fields() -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _commit() -> dict[str, Any]:
    """Return the git commit of this code and whether its tree was dirty; None where git cannot tell."""
    root = Path(__file__).resolve().parent.parent

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
