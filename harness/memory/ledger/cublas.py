"""What torch keeps for cuBLAS until the process ends: a workspace for every thread that multiplies matrices."""

from __future__ import annotations

import re

from clmem.harness.errors import UsageError

CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_SETTING = ":4096:2:16:8"
"""torch's own default before Hopper, pinned in every run so that architectures do not differ: 8,519,680 B."""

PINNED_CUBLAS = {
    CUBLAS_VARIABLE: CUBLAS_SETTING,
    "TORCH_CUBLAS_WORKSPACE_CACHE": "1",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1",
}
"""One workspace a thread, kept until the process ends and shared with cuBLASLt, whatever a release's default is: from
2.9 on torch kept one for each library, and later releases give theirs back after every product."""

UNPINNED_CUBLAS = ("CUBLASLT_WORKSPACE_SIZE",)
"""What a worker must not inherit: it would size what the pinned setting sizes."""


def cublas_workspace_bytes(setting: str = CUBLAS_SETTING) -> int:
    """Return the size of one workspace under a CUBLAS_WORKSPACE_CONFIG: `:SIZE:COUNT` pairs, sizes in KiB.

    Raises UsageError for something else.
    """
    pairs = re.findall(r":(\d+):(\d+)", setting)
    if not pairs or "".join(f":{size}:{number}" for size, number in pairs) != setting:
        raise UsageError(f"{CUBLAS_VARIABLE} is {setting!r} but must be pairs of :KiB:count, like {CUBLAS_SETTING}")
    return sum(1024 * int(size) * int(number) for size, number in pairs)


def multiplies(operator: str) -> bool:
    """Say whether an operator calls cuBLAS."""
    return operator.removeprefix("aten::").rstrip("_") in MULTIPLYING


MULTIPLYING = frozenset({"addbmm", "addmm", "addmv", "baddbmm", "bmm", "dot", "linear", "matmul", "mm", "mv"})
