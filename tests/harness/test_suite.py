"""Suites: what a file may say, and a directory that survives anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness import suite as suite_module
from harness.errors import UsageError
from harness.registry import method_class
from harness.results import RunResult, load_results, save_result
from harness.suite import Suite, load_suite, run_suite

TINY = """
title = "tiny"
methods = ["sgd", "er"]
streams = ["split-fashion-mini"]
width = 1
batch_size = 8
buffer_size = 8
replay_size = 4
steps_per_task = 1
seeds = [0, 1]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def test_a_variation_may_name_methods_streams_and_executions_of_its_own(tmp_path: Path) -> None:
    text = (
        TINY.replace("steps_per_task = 1", 'measure = ["peak"]')
        + """
[[vary]]
executions = ["plain", "lean"]
methods = ["er"]
[[vary]]
executions = ["checkpoint=block"]
streams = ["split-fashion-mini"]
"""
    )
    specs = load_suite(write(tmp_path, text)).specs()
    found = [(spec.method, spec.execution) for spec in specs]
    assert found == [("er", "plain"), ("er", "lean"), ("sgd", "checkpoint=block"), ("er", "checkpoint=block")]


def test_a_variation_may_have_seeds_of_its_own_which_memory_does_not_follow(tmp_path: Path) -> None:
    text = TINY + '[[vary]]\n[[vary]]\nmethods = ["er"]\nseeds = [5]\n'
    specs = load_suite(write(tmp_path, text)).specs()
    assert [spec.method for spec in specs if spec.measure == "memory"] == ["sgd", "er"]
    assert [(spec.method, spec.seed) for spec in specs if spec.measure == "accuracy" and spec.seed > 0] == [
        ("sgd", 1),
        ("er", 1),
        ("er", 5),
    ]


def test_a_suite_measures_memory_once_and_accuracy_once_per_seed(tmp_path: Path) -> None:
    specs = load_suite(write(tmp_path, TINY)).specs()
    assert [(s.method, s.measure, s.seed) for s in specs] == [
        ("sgd", "memory", 0),
        ("er", "memory", 0),
        ("sgd", "accuracy", 0),
        ("er", "accuracy", 0),
        ("sgd", "accuracy", 1),
        ("er", "accuracy", 1),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("title = ", "not valid TOML"),
        (TINY.replace("methods", "method"), "did you mean 'methods'"),
        (TINY + '[[vary]]\nstreams = ["split-cifar10"]', "varies 'split-cifar10' but does not run it; its streams are"),
        (TINY.replace("seeds = [0, 1]", "seeds = []"), "seeds"),
        (TINY.replace("width = 1", "width = 'wide'"), "width is 'wide'"),
        (TINY.replace("seeds = [0, 1]", "seeds = [0, -1]"), "seeds.1 is -1"),
        (TINY.replace("seeds = [0, 1]", "seeds = [0, 0]"), "more than once"),
        (TINY.replace('measure = ["memory"]', "") + 'measure = ["speed"]', "measure"),
    ],
)
def test_a_typo_in_a_suite_is_one_sentence_that_names_it(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_suite(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_a_method_that_is_not_run_are_refused(tmp_path: Path) -> None:
    for text in ("[config.derpp]\nalpha = 0.1\n", "[[vary]]\nconfig.derpp.alpha = 0.1\n"):
        with pytest.raises(UsageError, match=r"wrong: it sets \[config\.derpp\] but does not run 'derpp'"):
            load_suite(write(tmp_path, TINY + text))
    with pytest.raises(UsageError, match="it varies 'derpp' but does not run it"):
        load_suite(write(tmp_path, TINY + "[[vary]]\nmethods = ['derpp']\n"))


def test_a_suite_is_run_once_under_each_of_its_variations(tmp_path: Path) -> None:
    text = TINY.replace("seeds = [0, 1]", "measure = ['peak']") + "config.er.lr = 0.1\n"
    text += "[[vary]]\n[[vary]]\nbatch_size = 4\nconfig.er.lr = 0.2\n[[vary]]\nmethods = ['er']\nreplay_size = 8\n"
    specs = load_suite(write(tmp_path, text)).specs()
    assert [(s.method, s.batch_size, s.replay_size, s.config) for s in specs] == [
        ("sgd", 8, 4, {}),
        ("er", 8, 4, {"lr": 0.1}),
        ("sgd", 4, 4, {}),
        ("er", 4, 4, {"lr": 0.2}),
        ("er", 8, 8, {"lr": 0.1}),
    ]
    assert {(s.measure, s.steps_per_task) for s in specs} == {("peak", None)}


def test_variations_that_come_to_the_same_are_run_once(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, TINY + "[[vary]]\n[[vary]]\nbatch_size = 8\n"))
    assert len(suite.specs()) == len({spec.run_id for spec in suite.specs()}) == 6


def test_every_shipped_suite_is_valid() -> None:
    shipped = sorted((Path(suite_module.__file__).parents[1] / "bench" / "suites").glob("*.toml"))
    assert {path.stem for path in shipped} >= {"quick", "table1-memory"}
    for path in shipped:
        assert load_suite(path).specs()


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the processes: every run succeeds at once; the ids of what was run are collected."""
    ran: list[str] = []

    def run_specs(specs: Any, on_result: Any, **options: Any) -> None:
        for spec in specs:
            ran.append(spec.run_id)
            status = "crashed" if spec.method == "er" and spec.seed == 1 else "ok"
            on_result(RunResult(run_id=spec.run_id, spec=spec, status=status))

    monkeypatch.setattr(suite_module, "run_specs", run_specs)
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
    with pytest.raises(UsageError, match="no results directory of clmem"):
        run_suite(load_suite(write(tmp_path, TINY)), tmp_path)


def test_what_a_killed_write_left_behind_does_not_block_a_directory(tmp_path: Path, fake_runs: list[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".suite.json.1.part").write_text("{")
    assert len(run_suite(load_suite(write(tmp_path, TINY)), out)) == 6
    assert list(out.glob(".*.part")) == []


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


def start(suite: Path, out: Path) -> subprocess.Popen[bytes]:
    # a background job of a shell ignores Ctrl-C, and so would everything it starts, these tests included
    command = ["env", "--default-signal=INT", sys.executable, "-m", "bench.cli", "run", str(suite), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def wait_for_results(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("*--*.json"))) < count:
        assert time.monotonic() < deadline, f"there were never {count} results"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_the_same_command_completes_what_kill_9_and_ctrl_c_interrupted(tmp_path: Path) -> None:
    text = TINY.replace('["sgd", "er"]', '["er"]').replace("batch_size = 8", "batch_size = 100")
    text = text.replace("[0, 1]", "[0, 1, 2]") + 'measure = ["accuracy"]\n'
    suite, out = write(tmp_path, text), tmp_path / "out"
    kept: dict[Path, int] = {}
    for blow in (signal.SIGKILL, signal.SIGINT):
        process = start(suite, out)
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
    process = start(suite, out)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(load_results(out))) == 3
    assert (out / "report.md").exists()
    assert b"report:" in output
