"""A results directory survives anything, belongs to one suite, and never passes old numbers off as new ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from clmem.harness.errors import UsageError
from clmem.harness.learning.registry import method_class
from clmem.harness.results.metrics import scenario_metrics
from clmem.harness.results.record import Accuracy, RunResult, load_results, save_result
from clmem.harness.results.source import measuring_digest, method_digest
from clmem.harness.runs import directory as directory_module
from clmem.harness.runs.directory import run_suite
from clmem.harness.runs.runner import Present, Watcher, checkpoint_path
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.suite import Suite, load_suite
from tests.harness.tiny import TINY, write


def whole(spec: RunSpec) -> dict[str, Any]:
    """Return what a run that is ok has, by what it measures."""
    consumed = {"fingerprint": "f00d", "data_digest": "da7a"}
    if spec.measure == "accuracy":
        accuracy = Accuracy.model_validate(dict.fromkeys(Accuracy.model_fields) | {"task_il": [[0.5] * 5] * 5})
        return {**consumed, "accuracy": accuracy, "metrics": scenario_metrics(accuracy)}
    held = {"peak_bytes": 1, "at_peak": {"input": 1}, "role_peaks": {"input": 1}}
    footprint = {
        **held,
        "peak_task": 0,
        "peak_phase": "step",
        "peak_op": "aten::empty",
        "phases": {"step": 1},
        "by_phase": [{**held, "task": 0, "phase": "step", "op": "aten::empty"}],
        "timeline": {"time_s": [], "roles": {}, "marks": []},
        "workspace_at_peak": {},
    }
    allocator = {"kind": "cpu", "peak_bytes": 1, "by_phase": [(0, "step", 1)]}
    return {**consumed, "footprint": footprint, "allocator": allocator, "observer_delta_bytes": 0}


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the processes: every run succeeds at once; the ids of what was run are collected."""
    ran: list[str] = []

    def run_specs(specs: Any, on_result: Any, **options: Any) -> None:
        for spec in specs:
            ran.append(spec.run_id)
            status = "crashed" if spec.method == "er" and spec.seed == 1 else "ok"
            code = {"method": method_digest(method_class(spec.method)), "measuring": measuring_digest()}
            reason = "it was too much" if status == "crashed" else None
            found = whole(spec) if status == "ok" else {}
            on_result(RunResult(run_id=spec.run_id, spec=spec, status=status, reason=reason, code=code, **found))

    monkeypatch.setattr(directory_module, "run_specs", run_specs)
    return ran


def test_running_again_does_only_what_is_missing(tmp_path: Path, fake_runs: list[str]) -> None:
    suite = Suite.model_validate(load_suite(write(tmp_path, TINY)))
    out = tmp_path / "out"
    first = run_suite(suite, out)
    assert len(first) == len(fake_runs) == 6
    (out / f"{first[2].run_id}.json").unlink()
    fake_runs.clear()
    again = run_suite(suite, out)
    assert fake_runs == [first[2].run_id]
    assert [r.run_id for r in again] == [r.run_id for r in first]
    fake_runs.clear()
    run_suite(suite, out, retry=True)
    assert fake_runs == [r.run_id for r in first if r.status == "crashed"]


def test_a_run_by_a_preset_that_was_changed_since_is_run_again(tmp_path: Path, fake_runs: list[str]) -> None:
    suite = load_suite(write(tmp_path, TINY.replace("seeds = [0, 1]", 'measure = ["memory"]\nexecutions = ["lean"]')))
    out = tmp_path / "out"
    for result in run_suite(suite, out):
        preset = dict(method_class(result.spec.method).lean)
        result.execution = {
            "name": "lean",
            "optimizer": "sgd",
            **preset,
            **({"conv_slice": 2} if "er-" in result.run_id else {}),
        }
        save_result(out, result)
    fake_runs.clear()
    run_suite(suite, out)
    assert [run_id.partition("-")[0] for run_id in fake_runs] == ["er"]


def test_a_directory_of_another_suite_is_refused_and_left_alone(tmp_path: Path, fake_runs: list[str]) -> None:
    out = tmp_path / "out"
    run_suite(load_suite(write(tmp_path, TINY)), out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"another suite \(different batch_size\)"):
        run_suite(load_suite(write(tmp_path, TINY.replace("batch_size = 8", "batch_size = 4"))), out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_directory_with_other_files_is_refused(tmp_path: Path, fake_runs: list[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="no results directory of this suite"):
        run_suite(load_suite(write(tmp_path, TINY)), tmp_path)


@pytest.mark.parametrize("manifest", ["half of one", None])
def test_a_lost_manifest_costs_no_results(tmp_path: Path, fake_runs: list[str], manifest: str | None) -> None:
    suite, out = load_suite(write(tmp_path, TINY)), tmp_path / "out"
    run_suite(suite, out)
    if manifest is not None:
        (out / "suite.json").write_text(manifest)
        with pytest.raises(UsageError, match="not whole, or of another version; delete it, and the same command"):
            run_suite(suite, out)
    (out / "suite.json").unlink()
    (out / "report.md").write_text("a report")
    fake_runs.clear()
    run_suite(suite, out)
    assert fake_runs == []
    assert (out / "suite.json").exists()


def test_results_of_no_suite_are_no_directory_of_one(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out = load_suite(write(tmp_path, TINY)), tmp_path / "out"
    run_suite(suite, out)
    (out / "suite.json").unlink()
    other = load_suite(write(tmp_path, TINY.replace("batch_size = 8", "batch_size = 4")))
    with pytest.raises(UsageError, match="no results directory of this suite"):
        run_suite(other, out)


class Seen(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.present: list[Present] = []

    def begins(self, present: Present) -> None:
        self.present.append(present)


def stale(out: Path, **code: str) -> None:
    """Let the results of ER seem to be of other code."""
    for result in load_results(out):
        if result.spec.method == "er":
            result.code = {**result.code, **code}
            save_result(out, result)


def test_a_method_that_changed_is_measured_again(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    run_suite(suite, out)
    stale(out, method="0123")
    fake_runs.clear()
    run_suite(suite, out, watcher=seen)
    assert {run_id.partition("--")[0] for run_id in fake_runs} == {"er"}
    assert seen.present == [Present(total=6, kept=3, changed=("er",))]
    fake_runs.clear()
    run_suite(suite, out)
    assert fake_runs == []


def test_code_that_measures_otherwise_measures_again(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    run_suite(suite, out)
    stale(out, measuring="0123")
    fake_runs.clear()
    run_suite(suite, out, watcher=seen)
    assert len(fake_runs) == 3
    assert seen.present == [Present(total=6, kept=3, measuring_changed=3)]


def test_older_numbers_stand_if_they_are_asked_for(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    run_suite(suite, out)
    stale(out, method="0123", measuring="0123")
    fake_runs.clear()
    run_suite(suite, out, reuse="all", watcher=seen)
    assert fake_runs == []
    assert seen.present == [Present(total=6, kept=6, ended_badly=1)]


def test_everything_is_measured_afresh_if_asked(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    run_suite(suite, out)
    state = checkpoint_path(out, suite.specs()[-1])
    state.write_bytes(b"half way")
    fake_runs.clear()
    run_suite(suite, out, reuse="none", watcher=seen)
    assert len(fake_runs) == 6
    assert not state.exists(), "a run that begins anew does not go on"
    assert seen.present == [Present(total=6, unwanted=6)]


def test_what_is_tried_again_is_counted(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    run_suite(suite, out)
    run_suite(suite, out, retry=True, watcher=seen)
    assert seen.present == [Present(total=6, kept=5, failed=1)]


@pytest.mark.parametrize(
    "surroundings",
    [{"torch": "1.13.0"}, {"vectors": "no such"}, {"allocator": {"LD_PRELOAD": "libjemalloc.so"}}, {"threads": 2}],
    ids=str,
)
def test_bytes_counted_in_other_surroundings_are_counted_again(
    tmp_path: Path, fake_runs: list[str], surroundings: dict[str, Any]
) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    for result in run_suite(suite, out):
        result.environment |= surroundings
        save_result(out, result)
    fake_runs.clear()
    run_suite(suite, out, reuse="all")
    assert fake_runs == []
    run_suite(suite, out, watcher=seen)
    assert {run_id.split("--")[2] for run_id in fake_runs} == {"memory"}
    assert seen.present == [Present(total=6, kept=4, ended_badly=1, elsewhere=2)]


def test_bytes_counted_in_the_same_surroundings_stand(tmp_path: Path) -> None:
    text = TINY.replace('["sgd", "er"]', '["sgd"]').replace("seeds = [0, 1]", 'measure = ["peak"]')
    suite, out, seen = load_suite(write(tmp_path, text)), tmp_path / "out", Seen()
    (measured,) = run_suite(suite, out)
    assert {"torch", "vectors", "allocator", "threads"} <= measured.environment.keys()
    run_suite(suite, out, watcher=seen)
    assert seen.present == [Present(total=1, kept=1)]


def test_a_wrong_time_between_savings_starts_nothing(
    tmp_path: Path, fake_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLMEM_CHECKPOINT_S", "soon")
    with pytest.raises(UsageError, match="'soon' but must be seconds"):
        run_suite(load_suite(write(tmp_path, TINY)), tmp_path / "out")
    assert fake_runs == []


def test_results_that_name_no_code_stand_and_are_counted(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out, seen = load_suite(write(tmp_path, TINY)), tmp_path / "out", Seen()
    for result in run_suite(suite, out):
        result.code = {}
        save_result(out, result)
    fake_runs.clear()
    run_suite(suite, out, watcher=seen)
    assert fake_runs == []
    assert seen.present == [Present(total=6, kept=6, ended_badly=1, undated=6)]


def test_what_a_killed_write_left_behind_is_removed(tmp_path: Path, fake_runs: list[str]) -> None:
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)
    theirs = [out / ".download.part", out / ".git" / ".index.1.clmem-part"]
    for path in theirs:
        path.write_text("mine")
    (out / ".suite.json.1.clmem-part").write_text("{")
    assert len(run_suite(load_suite(write(tmp_path, TINY)), out)) == 6
    assert set(out.rglob("*part")) == set(theirs)


def test_hidden_files_are_no_results(tmp_path: Path, fake_runs: list[str]) -> None:
    suite, out = load_suite(write(tmp_path, TINY)), tmp_path / "out"
    first = run_suite(suite, out)[0].run_id
    (out / f"._{first}.json").write_bytes(b"\x00\x05\x16\x07 a resource fork")
    assert len(list(load_results(out))) == 6
    assert len(run_suite(suite, out)) == 6


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, fake_runs: list[str]) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UsageError, match="cannot write results"):
        run_suite(load_suite(write(tmp_path, TINY)), blocker / "out")


def test_two_processes_never_fill_one_directory(tmp_path: Path, fake_runs: list[str]) -> None:
    out = tmp_path / "out"
    suite = load_suite(write(tmp_path, TINY))
    run_suite(suite, out)
    with FileLock(out / ".lock"), pytest.raises(UsageError, match="another process is filling"):
        run_suite(suite, out)


def test_suites_started_at_once_never_mix_in_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = []
    for batch_size in (4, 8):
        text = TINY.replace("batch_size = 8", f"batch_size = {batch_size}")
        suites.append(load_suite(write(tmp_path, text)))
    ends: list[str] = []

    def run_specs(specs: Any, on_result: Any, **options: Any) -> None:
        for spec in specs:
            time.sleep(0.01)
            on_result(RunResult(run_id=spec.run_id, spec=spec, **whole(spec)))

    def fill(suite: Suite, out: Path, start: threading.Barrier) -> None:
        start.wait()
        try:
            run_suite(suite, out)
            ends.append("filled")
        except UsageError as error:
            ends.append("refused" if "another" in str(error) else str(error))

    monkeypatch.setattr(directory_module, "run_specs", run_specs)
    for number in range(5):
        ends.clear()
        out, start = tmp_path / f"out{number}", threading.Barrier(2)
        both = [threading.Thread(target=fill, args=(suite, out, start)) for suite in suites]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert sorted(ends) == ["filled", "refused"]
        found = list(load_results(out))
        manifest = json.loads((out / "suite.json").read_text())
        assert len(found) == 6
        assert {result.spec.batch_size for result in found} == {manifest["batch_size"]}


def test_weights_that_moved_are_the_same_weights(tmp_path: Path, fake_runs: list[str]) -> None:
    out = tmp_path / "out"
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trunk.safetensors").write_bytes(b"weights")
    path = write(tmp_path, f'{TINY}weights = "here/trunk.safetensors"\n')
    run_suite(load_suite(path), out)
    shutil.rmtree(tmp_path / "here")
    fake_runs.clear()
    moved = load_suite(write(tmp_path, f'{TINY}weights = "there/trunk.safetensors"\n'))
    run_suite(moved, out)
    assert fake_runs == []
    (tmp_path / "there" / "trunk.safetensors").write_bytes(b"other weights")
    with pytest.raises(UsageError, match=r"another suite \(different weights\)"):
        run_suite(moved, out)


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers that name this parent in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"CLMEM_PARENT={parent}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def start(suite: Path, out: Path, plugin: Path) -> subprocess.Popen[bytes]:
    # a background job of a shell ignores Ctrl-C, and so would everything it starts, these tests included
    command = ["env", "--default-signal=INT", sys.executable, "-m", "clmem.bench.cli", "run", str(suite)]
    variables = {**os.environ, "PYTHONPATH": f"{plugin}{os.pathsep}{Path(__file__).parents[3]}"}
    return subprocess.Popen(
        [*command, "--out", str(out), "--jobs", "1"],
        env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for_results(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("*--*.json"))) < count:
        assert time.monotonic() < deadline, f"there were never {count} results"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


PATIENT = """
import os, time
from pathlib import Path
from clmem.methods.er import ER

HERE = Path(__file__).parent

class Patient(ER):
    name = "patient"

    def before_task(self, task):
        gate = HERE / "one-may-pass"
        if "CLMEM_CHANNEL" in os.environ and task.index == 0 and (HERE / "closed").exists():
            gate.unlink() if gate.exists() else time.sleep(600)
        super().before_task(task)
"""


@pytest.mark.slow
def test_the_same_command_completes_what_kill_9_and_ctrl_c_interrupted(
    tmp_path: Path, install: Callable[..., None]
) -> None:
    """One run of a suite comes to its end before each blow, and the next waits for it."""
    install({"patient_method.py": PATIENT}, {"patient": "patient_method:Patient"})
    text = TINY.replace('["sgd", "er"]', '["patient"]').replace("[0, 1]", "[0, 1, 2]")
    text = text.replace("batch_size = 8", "batch_size = 100") + 'measure = ["accuracy"]\n'
    suite, out = write(tmp_path, text), tmp_path / "out"
    kept: dict[Path, int] = {}
    plugin = tmp_path / "plugin"
    (plugin / "closed").touch()
    for blow in (signal.SIGKILL, signal.SIGINT):
        (plugin / "one-may-pass").touch()
        process = start(suite, out, plugin)
        wait_for_results(process, out, len(kept) + 1)
        os.kill(process.pid, blow)
        _, errors = process.communicate(timeout=30)
        if blow is signal.SIGINT:
            assert process.returncode == 130
            assert b"the same command completes" in errors
        deadline = time.monotonic() + 10
        while workers_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert workers_of(process.pid) == []
        now = {path: path.stat().st_mtime_ns for path in out.glob("*--*.json")}
        assert now.items() > kept.items()
        for path in now:
            json.loads(path.read_text())  # whole, whatever happened
        kept = now
    (plugin / "closed").unlink()
    process = start(suite, out, plugin)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(load_results(out))) == 3
    assert (out / "report.md").exists()
    assert b"report:" in output
