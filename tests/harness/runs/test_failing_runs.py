"""Whatever goes wrong in a run is a recorded status with one sentence, and the other runs go on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.learning.registry import method_class
from clmem.harness.results.record import RunResult, load_result, save_result
from clmem.harness.results.source import measuring_digest, method_digest
from clmem.harness.runs.job import Job, Outcome
from clmem.harness.runs.processes import Workers
from clmem.harness.runs.runner import run_specs
from clmem.harness.runs.worker import is_out_of_memory
from clmem.harness.specs.run import RunSpec
from tests.harness import rogue


def spec(method: str, **fields: object) -> RunSpec:
    return RunSpec(method=method, stream="split-fashion-mini", width=1, batch_size=50, **fields)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """Run every rogue, with one honest method at the end, side by side."""
    folder = tmp_path_factory.mktemp("rogue")
    rogue.install(folder)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(folder))
    patch.syspath_prepend(str(folder))
    collected: dict[str, RunResult] = {}
    quick = {"measure": "accuracy", "steps_per_task": 1}
    specs = [
        spec("rogue-hoarder"),
        spec("rogue-exhausted", **quick),
        spec("rogue-segfault", **quick),
        spec("rogue-talker", **quick),
        spec("rogue-mouthy", **quick),
        spec("rogue-forker", **quick),
        spec("sgd", config={"lr": 1e30}, **quick),
        spec("er", **quick),
    ]
    run_specs(specs, lambda result: collected.__setitem__(result.spec.method, result), timeout_s=120)
    patch.undo()
    return collected


def test_undeclared_state_fails_with_its_size_and_the_line_that_allocated_it(results: dict[str, RunResult]) -> None:
    result = results["rogue-hoarder"]
    assert result.status == "crashed"
    assert result.reason is not None
    line = 1 + rogue.MODULE.splitlines().index("        self.kept = torch.zeros(1000)")
    assert "4,000 B" in result.reason
    assert f"rogue_methods.py:{line} (after_step)" in result.reason
    assert "memory_roles()" in result.reason


def test_a_declared_tensor_that_torch_did_not_allocate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rogue.install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = Workers(1).run(Job(spec=spec("rogue-foreign"), what="attribution"), 120, lambda fields: None)
    assert outcome.status == "crashed"
    assert "not allocated by torch" in (outcome.reason or "")


def test_running_out_of_memory_is_recorded_with_its_phase(results: dict[str, RunResult]) -> None:
    assert results["rogue-exhausted"].status == "oom"
    assert "before_task of task 0" in (results["rogue-exhausted"].reason or "")


def test_a_crash_of_the_process_is_recorded_with_its_signal(results: dict[str, RunResult]) -> None:
    assert results["rogue-segfault"].status == "crashed"
    assert "SIGSEGV" in (results["rogue-segfault"].reason or "")


def test_an_infinite_loss_is_recorded_as_diverged(results: dict[str, RunResult]) -> None:
    assert results["sgd"].status == "diverged"
    assert "smaller lr" in (results["sgd"].reason or "")


def test_what_a_method_prints_does_not_disturb_the_harness(results: dict[str, RunResult]) -> None:
    assert results["rogue-talker"].status == "ok", results["rogue-talker"].reason


def test_a_message_of_any_kind_becomes_one_bounded_line(results: dict[str, RunResult], tmp_path: Path) -> None:
    result = results["rogue-mouthy"]
    assert result.status == "crashed"
    assert str(result.reason).startswith("RuntimeError: [/red] [enforce fail] \N{REPLACEMENT CHARACTER} xxx")
    assert len(str(result.reason)) < 1000
    assert load_result(save_result(tmp_path, result)).reason == result.reason


def test_a_method_that_forks_is_measured_and_leaves_nothing(results: dict[str, RunResult]) -> None:
    assert results["rogue-forker"].status == "ok", results["rogue-forker"].reason
    mine = f"CLMEM_PARENT={os.getpid()}\0".encode()
    left = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            left += [path] if mine in path.read_bytes() else []
    assert left == []


def test_every_result_says_which_code_made_it(results: dict[str, RunResult]) -> None:
    assert results["er"].code == {"method": method_digest(method_class("er")), "measuring": measuring_digest()}


def test_the_honest_run_beside_them_is_whole(results: dict[str, RunResult]) -> None:
    result = results["er"]
    assert result.status == "ok"
    assert result.accuracy is not None
    assert len(result.accuracy.task_il) == 5
    assert result.process is not None
    assert result.process.peak_bytes > result.process.baseline_bytes > 0


def test_what_torch_loads_for_itself_lies_in_the_baseline_of_a_process(results: dict[str, RunResult]) -> None:
    process = results["er"].process
    assert process is not None
    assert process.peak_bytes - process.baseline_bytes < 100 * 2**20


def test_a_pass_that_takes_too_long_is_recorded_as_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rogue.install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = Workers(1).run(Job(spec=spec("rogue-sleeper"), what="accuracy"), 8, lambda fields: None)
    assert outcome.status == "timeout"
    assert "longer than 8 s" in (outcome.reason or "")


def test_a_folder_of_the_users_does_not_hide_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    quick = spec("sgd", measure="accuracy", steps_per_task=1)
    outcome = Workers(1).run(Job(spec=quick, what="process"), 120, lambda fields: None)
    assert outcome.status == "ok", outcome.reason


def test_a_pass_that_runs_out_of_memory_beside_others_is_tried_once_more_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[str] = []

    def run(workers: Workers, job: Job, timeout_s: float, on_progress: Any) -> Outcome:
        alone.append(job.what)
        first = alone.count(job.what) == 1
        return Outcome(status="oom" if first and job.what == "truth" else "ok", peaks=[(0, "step", 1)])

    monkeypatch.setattr(Workers, "run", run)
    results: list[RunResult] = []
    run_specs([spec("sgd")], results.append, jobs=2)
    assert sorted(alone) == ["attribution", "process", "truth", "truth"]
    assert [result.status for result in results] == ["ok"]


def test_an_impossible_request_is_a_usage_error_not_a_result() -> None:
    impossible = spec("sgd", measure="accuracy").model_copy(update={"batch_size": 100_000})
    with pytest.raises(UsageError, match=r"batch"):
        run_specs([impossible], lambda result: None, timeout_s=60)


def test_a_convolution_without_an_engine_ran_out_of_memory_where_the_allocator_refused_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("GET was unable to find an engine to execute this computation")
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_ooms": 2 if device == "cuda:1" else 0})
    assert not is_out_of_memory(error, "cuda")
    assert is_out_of_memory(error, "cuda:1"), "the run's own device is asked"


def test_a_result_that_cannot_be_stored_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(workers: Workers, job: Job, timeout_s: float, on_progress: Any) -> Outcome:
        config = {"order": list(range(1200))} if job.spec.method == "er" else {}
        return Outcome(status="crashed", reason="it was tried", method_config=config)

    monkeypatch.setattr(Workers, "run", run)
    results: dict[str, RunResult] = {}
    quick = {"measure": "accuracy"}
    run_specs([spec(name, **quick) for name in ("er", "sgd")], lambda one: results.__setitem__(one.spec.method, one))
    assert {name: result.status for name, result in results.items()} == {"er": "crashed", "sgd": "crashed"}
    assert "cannot be stored: " in str(results["er"].reason)
    assert results["sgd"].reason == "it was tried"


def test_a_run_whose_process_died_says_which_code_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "run", lambda *_: Outcome(status="timeout", reason="it took too long"))
    results: list[RunResult] = []
    run_specs([spec("er", measure="accuracy")], results.append)
    assert results[0].code == {"method": method_digest(method_class("er")), "measuring": measuring_digest()}
