"""The peak of every method on every shape, in bytes: the suite `table1-memory`, through pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.results import RunResult
from harness.spec import RunSpec
from harness.suite import load_suite

SPECS = load_suite(Path(__file__).parent / "suites" / "table1-memory.toml").specs()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.method}-{spec.stream}")
def test_peak_bytes(peak_bytes: Callable[[RunSpec], RunResult], spec: RunSpec) -> None:
    result = peak_bytes(spec)
    assert result.checks == []
    assert result.footprint is not None
    assert result.allocator is not None
    assert sum(result.footprint.at_peak.values()) == result.allocator.peak_bytes
