"""Teaches pytest-benchmark to measure bytes, and keeps the benchmarks in seconds apart.

Bytes and seconds never share a session: a gate of `max:0%` is right for the one and absurd for the other. Without
`--clmem-time` only bytes are collected; with it only `bench/time/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmem.harness.results.environment import environment
from clmem.harness.results.record import RunResult
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.run import RunSpec
from clmem.reports.data.grouping import sections
from clmem.reports.data.units import MIB
from clmem.reports.terminal.runs import summary

RESULTS = pytest.StashKey[list[RunResult]]()


class MemoryClock:
    """A timer whose reading is the allocator's peak in the last measurement, so that 'durations' are bytes."""

    def __init__(self) -> None:
        self.held_bytes = 0

    def __call__(self) -> float:
        return float(self.held_bytes)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--clmem-time", action="store_true", help="run the benchmarks in seconds instead of those in bytes"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    if config.getoption("--clmem-time"):
        config.option.benchmark_columns = ["min", "median", "max", "rounds"]
        config.option.benchmark_sort = "min"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix != ".py" or Path(__file__).parent not in collection_path.parents:
        return None
    in_seconds = collection_path.parent.name == "time"
    return True if in_seconds != config.getoption("--clmem-time") else None


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_scale_unit(config: pytest.Config, unit: str) -> tuple[str, float] | None:
    """Print MiB. pytest-benchmark writes "time in {unit}s" above the table, whatever is measured."""
    if config.getoption("--clmem-time"):
        return None
    return ("MiB, not second", 1 / MIB) if unit == "seconds" else ("", 1.0)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    # what changes with every commit, shell or second is no property of the machine: each comparison would warn
    passing = ("commit", "dirty", "allocator")
    machine_info["clmem"] = {key: value for key, value in environment().items() if key not in passing}
    for key in ("hz_actual", "hz_actual_friendly"):
        machine_info["cpu"].pop(key, None)


@pytest.fixture
def peak_bytes(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[RunSpec], RunResult]:
    """Measure a spec in fresh processes and record the allocator's peak in bytes; the roles go into `extra_info`.

    What is timed is the un-instrumented pass: what observing adds must not move the gated number.
    """

    def measure(spec: RunSpec) -> RunResult:
        clock = MemoryClock()
        results: list[RunResult] = []

        def target() -> None:
            run_specs([spec], results.append)
            request.config.stash[RESULTS].extend(results)
            # inside the timed call, so that the bytes of a run that ended early are never stored
            assert results[0].status == "ok", results[0].reason
            assert results[0].allocator is not None
            clock.held_bytes = results[0].allocator.peak_bytes

        benchmark._timer = clock
        benchmark.group = f"peak bytes on {spec.stream_title}"
        benchmark.pedantic(target, rounds=1, iterations=1)
        result = results[0]
        if result.footprint is not None:
            benchmark.extra_info["at_peak_bytes"] = result.footprint.at_peak
            benchmark.extra_info["role_peaks_bytes"] = result.footprint.role_peaks
            benchmark.extra_info["phases_bytes"] = result.footprint.phases
            benchmark.extra_info["observer_delta_bytes"] = result.observer_delta_bytes
        if result.process is not None:
            benchmark.extra_info["process_bytes"] = result.process.model_dump()
        return result

    return measure


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark's own summary raises when the gate fails
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if results:
        terminalreporter.section("memory at the peak")
        terminalreporter.write_line(summary(sections(results)))
