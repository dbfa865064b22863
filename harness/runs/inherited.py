"""What a worker process inherits: what decides bytes is pinned or dropped, and what cannot be is recorded.

A measurement must not depend on the shell that it was started from. Settings that steer threads, malloc and Python
itself are dropped; those of the kernels' libraries stay, because users need them, and stand in every result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import clmem
from clmem.harness.memory.ledger.cublas import PINNED_CUBLAS, UNPINNED_CUBLAS
from clmem.harness.memory.system.process import KEEPING_MALLOC, PINNED_MALLOC
from clmem.harness.runs.job import Job, Pass
from clmem.harness.specs.targets import allocator_of

MALLOC: dict[Pass, dict[str, str]] = {
    "process": PINNED_MALLOC,
    "truth": KEEPING_MALLOC,
    "attribution": KEEPING_MALLOC,
}
"""What malloc does with freed blocks, by pass. Counting allocations does not depend on it; accuracy runs keep glibc's
defaults, because their process peak is to be that of an ordinary process."""

COUNTING_THREADS = 1
"""Threads of the passes that count bytes: at width 4 a second thread moves the peak, and machines differ in cores."""

DROPPED = (
    *("MALLOC_", "GLIBC_TUNABLES", "TCMALLOC_", "MIMALLOC_", "LD_BIND_NOW"),
    *("OMP_", "GOMP_", "KMP_", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_DOMAIN_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("PYTHONMALLOC", "PYTHONTRACEMALLOC", "PYTHONDEVMODE", "PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONWARNINGS"),
    *("PYTHONFAULTHANDLER", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE", "PYTHONDEBUG", "PYTHONHASHSEED"),
)
"""How the names of variables begin that no worker gets: settings of malloc, of threads, and of Python itself."""

DROPPED_ON_CUDA = (
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", *UNPINNED_CUBLAS),
)
"""Settings of torch's caching allocator and of TF32, which a measurement on CUDA leaves at their defaults."""


def worker_environment(job: Job, threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the worker that does `job`.

    threads: of an accuracy run. inherited: the environment of whoever starts it.
    """
    on_cuda = allocator_of(job.spec.target) == "cuda"
    dropped = (*DROPPED, *DROPPED_ON_CUDA) if on_cuda else DROPPED
    return {
        **{name: value for name, value in inherited.items() if not name.startswith(dropped)},
        "CLMEM_PARENT": str(os.getpid()),
        "CLMEM_ROOT": str(Path(clmem.__file__).absolute().parents[1]),
        "OMP_NUM_THREADS": str(threads if job.what == "accuracy" else COUNTING_THREADS),
        "KINETO_LOG_LEVEL": "5",
        **MALLOC.get(job.what, {}),
        **(PINNED_CUBLAS if on_cuda else {}),
    }
