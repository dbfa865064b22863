"""Claims, and runs that measure their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clmem.harness.results.record import RunResult
from clmem.reports.claims.claim import Claim, load_claim

MakeRun = Callable[..., RunResult]
SHAPE: dict[str, Any] = {"width": 64, "stream": "synthetic-tinyimagenet", "buffer_size": 15, "replay_size": 15}


@pytest.fixture(scope="module")
def claim() -> Claim:
    return load_claim("lightcl")


@pytest.fixture
def run(memory_run: MakeRun) -> MakeRun:
    def make(method: str, mib: float, **changes: Any) -> RunResult:
        config = {"config": {"trunk": "frozen"}} if method.startswith("lightcl") else {}
        result = memory_run(
            method, {"parameters": min(40.0, mib), "activations": max(0.0, mib - 40)}, **{**SHAPE, **config, **changes}
        )
        defaults = {"sparsity": 0.9, "trunk": "task0", "memory_size": 15}
        result.method_config = {**defaults, **result.spec.config}
        return result

    return make


@pytest.fixture
def runs(run: MakeRun) -> list[RunResult]:
    """SparCL-DER++ and both LightCL rows at two batch sizes, and SGD."""
    peaks = {"sgd": 640.0, "sparcl-derpp": 1200.0, "lightcl": 200.0, "lightcl-sparse": 200.0}
    made = [run(method, mib) for method, mib in peaks.items()]
    made += [run(method, 2 * mib, batch_size=64) for method, mib in peaks.items() if method != "lightcl-sparse"]
    return [*made, run("lightcl-sparse", 210.0, batch_size=64)]
