"""The byte benchmarks through the tool people run: pytest-benchmark stores, shows and gates bytes at 0 %."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clmem.harness.results.record import Allocator, RunResult, load_result, save_result
from clmem.harness.specs.run import RunSpec
from clmem.reports.data.units import MIB, mib

ROOT = Path(__file__).parents[2]

BENCHMARK = """
from pathlib import Path

from clmem.harness.results.record import save_result
from clmem.harness.specs.run import RunSpec

SPEC = RunSpec(method="sgd", stream="split-fashion-mini", width=1, batch_size=4)


def test_bytes(peak_bytes):
    result = peak_bytes(SPEC)
    assert result.checks == []
    save_result(Path(__file__).parent, result)
"""

REPLAYED = """
from pathlib import Path

import clmem.bench.conftest
from clmem.harness.results.record import load_results


def test_bytes(peak_bytes, monkeypatch):
    result = next(load_results(Path(__file__).parent))
    monkeypatch.setattr(clmem.bench.conftest, "run_specs", lambda specs, on_result: on_result(result))
    peak_bytes(result.spec)
"""

GATE = ("--benchmark-only", "--benchmark-compare", "--benchmark-compare-fail=max:0%")


def run_pytest(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run pytest with the project's own settings."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


class Nightly:
    """A folder with one benchmark file, which uses the fixtures of `bench/conftest.py`, and its storage."""

    def __init__(self, folder: Path, benchmark: str) -> None:
        self.folder = folder
        (folder / "test_tiny.py").write_text(benchmark)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        storage = f"--benchmark-storage=file://{self.folder / 'store'}"
        where = ("-c", ROOT / "pyproject.toml", "--rootdir", self.folder, "-p", "clmem.bench.conftest")
        return run_pytest(*where, storage, *options, self.folder / "test_tiny.py")

    @property
    def stored(self) -> Path:
        (path,) = (self.folder / "store").glob("*/*.json")
        return path

    def read(self) -> dict[str, Any]:
        return dict(json.loads(self.stored.read_text()))

    def result_path(self) -> Path:
        (path,) = self.folder.glob("*--*.json")
        return path


@pytest.fixture(scope="module")
def nightly(tmp_path_factory: pytest.TempPathFactory) -> Nightly:
    return Nightly(tmp_path_factory.mktemp("nightly"), BENCHMARK)


@pytest.fixture(scope="module")
def first_night(nightly: Nightly) -> subprocess.CompletedProcess[str]:
    done = nightly.run("--benchmark-only", "--benchmark-autosave")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def measured(nightly: Nightly, first_night: subprocess.CompletedProcess[str]) -> RunResult:
    return load_result(nightly.result_path())


@pytest.mark.slow
def test_what_is_stored_are_the_bytes_of_the_allocator_and_roles_that_sum_to_them(
    nightly: Nightly, measured: RunResult
) -> None:
    (stored,) = nightly.read()["benchmarks"]
    assert measured.allocator is not None
    assert stored["stats"]["max"] == stored["stats"]["min"] == measured.allocator.peak_bytes > 0
    assert sum(stored["extra_info"]["at_peak_bytes"].values()) == measured.allocator.peak_bytes
    assert stored["extra_info"]["process_bytes"]["malloc"] == "pinned"


@pytest.mark.slow
def test_the_terminal_shows_mib_and_the_table_of_roles(
    first_night: subprocess.CompletedProcess[str], measured: RunResult
) -> None:
    assert measured.allocator is not None
    assert "MiB, not second" in first_night.stdout
    assert f"{measured.allocator.peak_bytes / MIB:.4f}" in first_night.stdout  # pytest-benchmark's own table
    _, _, table = first_night.stdout.partition("memory at the peak")
    assert "activations" in table
    assert mib(measured.allocator.peak_bytes) in table


@pytest.mark.slow
def test_the_gate_of_0_percent_holds_until_a_byte_is_added(nightly: Nightly, measured: RunResult) -> None:
    same = nightly.run(*GATE)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "Comparing against benchmarks from" in same.stdout + same.stderr
    assert "machine_info is different" not in same.stdout + same.stderr

    record = nightly.read()
    record["benchmarks"][0]["stats"]["max"] -= 1
    nightly.stored.write_text(json.dumps(record))
    (nightly.folder / "test_tiny.py").write_text(REPLAYED)  # the same bytes once more, without measuring them again
    grown = nightly.run(*GATE)
    assert grown.returncode != 0
    assert "Performance has regressed" in grown.stdout + grown.stderr
    assert "memory at the peak" in grown.stdout  # whoever looks for the cause needs the roles


@pytest.mark.slow
def test_the_machine_is_described_without_what_changes_from_commit_to_commit(
    nightly: Nightly, first_night: subprocess.CompletedProcess[str]
) -> None:
    machine = nightly.read()["machine_info"]["clmem"]
    assert machine["torch"]
    assert machine.keys().isdisjoint({"commit", "dirty", "allocator"})


def with_more_workspace(measured: RunResult, more_bytes: int) -> RunResult:
    """Return a result whose attribution pass held more at its peaks than the pass that nobody looks at."""
    observed = measured.model_copy(deep=True)
    footprint = observed.footprint
    assert footprint is not None
    highest = [entry for entry in footprint.by_phase if entry.peak_bytes == footprint.peak_bytes]
    observed.checks += [f"{entry.phase} of task {entry.task} peaks higher when observed" for entry in highest]
    for part in (footprint, *highest):
        part.peak_bytes += more_bytes
        part.at_peak["workspace"] += more_bytes
        part.role_peaks["workspace"] += more_bytes
    for phase in {entry.phase for entry in footprint.by_phase if entry.peak_bytes == footprint.peak_bytes}:
        footprint.phases[phase] = footprint.peak_bytes
    footprint.role_peaks["workspace"] = max(entry.role_peaks["workspace"] for entry in footprint.by_phase)
    footprint.workspace_at_peak["what observing takes"] = more_bytes
    observed.observer_delta_bytes = more_bytes
    return observed


@pytest.mark.slow
def test_what_observing_adds_is_not_in_the_stored_bytes(tmp_path: Path, measured: RunResult) -> None:
    assert measured.allocator is not None
    save_result(tmp_path, with_more_workspace(measured, 4096))
    replay = Nightly(tmp_path, REPLAYED)
    done = replay.run("--benchmark-only", "--benchmark-autosave")
    assert done.returncode == 0, done.stdout + done.stderr
    (stored,) = replay.read()["benchmarks"]
    assert stored["stats"]["max"] == measured.allocator.peak_bytes
    assert stored["extra_info"]["observer_delta_bytes"] == 4096


def test_a_run_that_failed_fails_its_benchmark_and_stores_no_bytes(tmp_path: Path) -> None:
    spec = RunSpec(method="sgd")
    early = Allocator(kind="cpu", peak_bytes=4096, by_phase=[(0, "first_step", 4096)])
    reason = "the process was killed at 4 KiB"
    save_result(tmp_path, RunResult(run_id=spec.run_id, spec=spec, status="oom", reason=reason, allocator=early))
    replay = Nightly(tmp_path, REPLAYED)
    done = replay.run("--benchmark-only", "--benchmark-autosave")
    assert done.returncode == 1
    assert reason in done.stdout
    assert replay.read()["benchmarks"] == []


def test_plain_pytest_skips_the_benchmarks(tmp_path: Path) -> None:
    done = Nightly(tmp_path, BENCHMARK).run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "memory at the peak" not in done.stdout


@pytest.mark.parametrize(("option", "in_seconds"), [((), False), (("--clmem-time",), True)], ids=["bytes", "seconds"])
def test_bytes_and_seconds_are_never_collected_together(option: tuple[str, ...], in_seconds: bool) -> None:
    done = run_pytest("bench", "--collect-only", "-q", *option)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert collected
    assert {line.startswith("bench/time/") for line in collected} == {in_seconds}
