"""CUDA's ledger without a GPU: the allocator's own counters, its history, and a run on an emulated device."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.memory.ledger.cublas import cublas_workspace_bytes
from clmem.harness.memory.watching.cuda import DevicePeaks, History
from clmem.harness.runs.job import Job, Outcome
from clmem.harness.runs.measurement import assemble
from clmem.harness.specs.run import RunSpec
from tests.harness.memory import emulated

ROOT = Path(__file__).resolve().parents[3]


def entry(action: str, address: int, size: int, **more: Any) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "stream": 0, "frames": [], **more}


TRACE = [
    entry("segment_alloc", 0x1000, 2 << 20),
    entry("alloc", 0x1000, 1000),
    entry("annotate", 0x1000, 1000, user_metadata="parameters"),
    entry("segment_alloc", 0x2000, 20 << 20),
    {"action": "oom", "size": 9 << 30, "device_free": 1 << 30, "stream": 0, "frames": []},
    entry("segment_free", 0x9000, 2 << 20),
    entry("alloc", 0x2000, 8_519_680),
    entry("free_requested", 0x1000, 1000),
    entry("segment_map", 0x4000, 2 << 20),
    entry("free_completed", 0x1000, 1000),
    entry("segment_unmap", 0x4000, 2 << 20),
    entry("snapshot", 0, 0),
]


@pytest.mark.parametrize(
    ("setting", "size"), [(":4096:2:16:8", 8_519_680), (":16:8", 131_072), (":4096:8", 33_554_432)]
)
def test_a_workspace_is_as_large_as_its_setting_says(setting: str, size: int) -> None:
    assert cublas_workspace_bytes(setting) == size


@pytest.mark.parametrize("setting", ["", "4096", ":4096", ":4096:2,"])
def test_a_wrong_workspace_setting_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="must be pairs"):
        cublas_workspace_bytes(setting)


def test_peaks_are_read_phase_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    peaks = iter([500, 900, 700])
    now = {"peak": 0}

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments: calls.append(name)

    def stats(device: torch.device) -> dict[str, int]:
        counters = ("allocated_bytes", "requested_bytes", "active_bytes", "reserved_bytes")
        return {**{f"{name}.all.peak": now["peak"] for name in counters}, "num_alloc_retries": 1}

    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, note(name))
    monkeypatch.setattr(torch.cuda, "memory_stats", stats)
    watched = DevicePeaks("cuda:0")
    gc.unfreeze()  # what it froze: this process goes on
    for name in ("first_step", "step", "step"):
        with watched.phase(name, 1):
            now["peak"] = next(peaks)
    assert watched.by_phase == [(1, "first_step", 500), (1, "step", 900)]
    assert watched.highest() == {
        "allocated_bytes": 900,
        "requested_bytes": 900,
        "active_bytes": 900,
        "reserved_bytes": 900,
        "retries": 1,
    }
    assert calls[:2] == ["synchronize", "empty_cache"]
    assert calls[2:5] == ["synchronize", "reset_peak_memory_stats", "synchronize"]


def test_a_snapshot_is_kept_for_the_viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []
    found = {"segments": [], "device_traces": [TRACE, []]}
    memory = SimpleNamespace(
        _record_memory_history=lambda enabled, **options: asked.append((enabled, options)),
        _snapshot=lambda: found,
        _annotate_tensor=lambda tensor, role: asked.append((role, {})),
    )
    monkeypatch.setattr(torch.cuda, "memory", memory)
    history = History("cuda:0", tmp_path / "snapshot.pickle")
    history.start()
    history.annotate(torch.empty(1), "replay")
    assert history.stop() == TRACE
    assert asked == [("all", {"context": "alloc", "stacks": "python"}), ("replay", {}), (None, {})]
    assert pickle.loads((tmp_path / "snapshot.pickle").read_bytes()) == found


def test_without_a_snapshot_no_lines_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    memory = SimpleNamespace(
        _record_memory_history=lambda enabled, **options: asked.append(options.get("context")),
        _snapshot=lambda: {"device_traces": [[], TRACE]},
    )
    monkeypatch.setattr(torch.cuda, "memory", memory)
    history = History("cuda:1")
    history.start()
    history.annotate(torch.empty(1), "replay")
    assert history.stop() == TRACE
    assert asked == [None, None]


def emulate(spec: RunSpec, what: str, *runs_out: str, snapshot: Path | None = None) -> Outcome:
    """Do one pass on the emulated device, in a process of its own, as the recorder needs it."""
    kept = None if snapshot is None else str(snapshot)
    job = Job(spec=spec, what=what, snapshot=kept).model_dump_json()  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, emulated.__file__, *runs_out],
        input=job,
        capture_output=True,
        text=True,
        check=False,
        # one thread: spinning threads are slow on a busy machine
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return Outcome.model_validate_json(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_on_an_emulated_device_adds_up_to_the_byte() -> None:
    spec = RunSpec(
        method="derpp", stream="synthetic-cifar10", target="cuda", width=4, batch_size=8, buffer_size=8, replay_size=8
    )
    outcomes: dict[Any, Outcome] = {what: emulate(spec, what) for what in ("truth", "attribution")}
    assert [outcome.reason for outcome in outcomes.values()] == [None, None]
    outcomes["process"] = Outcome(data_digest=outcomes["truth"].data_digest)
    result = assemble(spec, outcomes, 1.0)
    assert (result.status, result.checks, result.observer_delta_bytes) == ("ok", [], 0)
    assert result.allocator is not None
    assert result.footprint is not None
    assert (result.allocator.kind, result.allocator.reserved_bytes) == ("cuda", 3)
    assert sum(result.footprint.at_peak.values()) == result.allocator.peak_bytes
    assert result.footprint.at_peak["rounding"] > 0


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_there_keeps_the_phase_and_the_footprint_so_far() -> None:
    spec = RunSpec(method="sgd", stream="synthetic-cifar10", target="cuda", width=4, batch_size=8, replay_size=8)
    outcome = emulate(spec, "attribution", "1")
    assert outcome.status == "oom"
    assert "in first_step of task 1" in str(outcome.reason)
    assert outcome.footprint is not None
    assert sum(outcome.footprint.at_peak.values()) == outcome.footprint.peak_bytes > 0
    assert outcome.footprint.at_peak["parameters"] > 0


@pytest.mark.slow
def test_a_lean_run_there_adds_up_too_and_its_history_names_roles(tmp_path: Path) -> None:
    spec = RunSpec(
        method="er", stream="synthetic-cifar10", target="cuda", width=4, batch_size=8, buffer_size=8, replay_size=8,
        execution="lean",
    )  # fmt: skip
    outcome = emulate(spec, "attribution", snapshot=tmp_path / "er.json")
    assert (outcome.status, outcome.reason) == ("ok", None)
    assert outcome.footprint is not None
    assert sum(outcome.footprint.at_peak.values()) == outcome.footprint.peak_bytes
    kept = json.loads((tmp_path / "er.json").read_text())
    assert {"parameters", "module_buffers", "replay"} <= set(kept["roles"])
    assert kept["device_traces"][0][-1]["action"] == "snapshot"
