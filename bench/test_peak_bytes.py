"""Every method's peak in bytes, through pytest-benchmark: the suite `table1-memory`, and lean on the CIFAR shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clmem.harness.results.record import RunResult
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.suite import load_suite
from clmem.harness.specs.techniques import LEAN, PLAIN

SUITES = Path(__file__).parent / "suites"
LEAN_SPECS = [
    spec
    for spec in load_suite(SUITES / "lean.toml").specs()
    if (spec.stream, spec.execution) == ("synthetic-cifar10", LEAN)
]
SPECS = [*load_suite(SUITES / "table1-memory.toml").specs(), *LEAN_SPECS]


def named(spec: RunSpec) -> str:
    """Return a benchmark's name, which does not change with the order of the others."""
    return "-".join([spec.method, spec.stream, *([] if spec.execution == PLAIN else [spec.execution])])


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_peak_bytes(peak_bytes: Callable[[RunSpec], RunResult], spec: RunSpec) -> None:
    result = peak_bytes(spec)
    assert result.checks == []
    assert result.footprint is not None
    assert result.allocator is not None
    assert sum(result.footprint.at_peak.values()) == result.allocator.peak_bytes
