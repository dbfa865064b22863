"""How a worker process ends, whatever does it, and what is kept of it. The workers here are scripts of a few lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from clmem.harness.errors import UsageError
from clmem.harness.memory.ledger.cublas import PINNED_CUBLAS
from clmem.harness.memory.system.jetson import Meminfo, UnifiedSampler
from clmem.harness.results.record import RunResult
from clmem.harness.runs import processes
from clmem.harness.runs.job import Job, Outcome
from clmem.harness.runs.processes import Workers
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.run import RunSpec
from tests.harness.memory.test_jetson import board
from tests.harness.memory.test_tegrastats import LINES

PROGRESS = json.dumps({"progress": {"phase": "step", "task": 3, "steps": 21}}) + "\n"
OUTCOME = json.dumps({"outcome": {"steps": 21}}) + "\n"
BEGIN = (
    "import os, signal, sys, time; channel = int(os.environ['CLMEM_CHANNEL']); "
    f"answer = lambda text: os.write(channel, text.encode('latin-1')); answer({PROGRESS!r}); time.sleep(0.2); "
)
KILLED = BEGIN + "os.kill(os.getpid(), signal.SIGKILL)"
ASLEEP = BEGIN + "time.sleep(60)"
ROOT = Path(__file__).resolve().parents[3]
WHERE = "(in step of task 3, after 21 steps)"


def run(
    monkeypatch: pytest.MonkeyPatch, script: str, timeout_s: float = 60, target: str = "cpu", what: str = "process"
) -> Outcome:
    monkeypatch.setattr(processes, "BOOTSTRAP", script)
    job = Job(spec=RunSpec(method="sgd", target=target), what=what)  # type: ignore[arg-type]
    return Workers(1).run(job, timeout_s, lambda fields: None)


def test_the_end_of_a_process_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    killed, late = run(monkeypatch, KILLED), run(monkeypatch, ASLEEP, timeout_s=1)
    assert (killed.status, killed.killed) == ("crashed", True)
    assert killed.reason == f"the process pass was killed by SIGKILL {WHERE}"
    assert (late.status, late.reason) == ("timeout", f"the process pass took longer than 1 s {WHERE}")


def test_a_process_that_the_kernel_kills_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr(processes, "oom_kills", lambda: next(counts))
    outcome = run(monkeypatch, KILLED)
    assert (outcome.status, outcome.killed) == ("oom", True)
    assert outcome.reason == f"the process pass was killed by the kernel, which ran out of memory {WHERE}"


@pytest.mark.parametrize(("script", "timeout_s"), [(KILLED, 60), (ASLEEP, 2)])
def test_a_death_on_a_board_keeps_its_memory_ends_the_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, timeout_s: float
) -> None:
    emulator = f"import time; print({LINES['orin']!r}, flush=True); time.sleep(60)"
    sampler = partial(UnifiedSampler, root=board(tmp_path), tegrastats=[sys.executable, "-c", emulator])
    monkeypatch.setattr(processes, "UnifiedSampler", sampler)
    before = Meminfo.read(board(tmp_path))
    monkeypatch.setattr(processes.Meminfo, "read", lambda root=tmp_path: before)
    outcome = run(monkeypatch, script, timeout_s, target="jetson")
    assert outcome.unified is not None
    assert outcome.unified.total_bytes == 7802112 * 1024
    assert not [child for child in psutil.Process().children() if emulator in child.cmdline()]


def test_a_board_that_cannot_be_read_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.Meminfo, "read", partial(Meminfo.read, tmp_path))
    with pytest.raises(OSError, match="meminfo"):
        run(monkeypatch, ASLEEP, target="jetson")
    assert not [child for child in psutil.Process().children() if ASLEEP in child.cmdline()]


def test_runs_on_cuda_keep_one_workspace_and_torch_s_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUBLASLT_WORKSPACE_SIZE", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "1")
    script = BEGIN + "import json; answer(json.dumps({'outcome': {'environment': dict(os.environ)}}) + chr(10))"
    found = run(monkeypatch, script, target="cuda").environment
    assert {name: found[name] for name in PINNED_CUBLAS} == PINNED_CUBLAS
    assert not {"CUBLASLT_WORKSPACE_SIZE", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_ALLOC_CONF"} & found.keys()


NOISE = [
    *("1", "null", "{}", "[]", '"outcome"', '{"outcome": 1}', '{"progress": {}}', "\xff\x00", "[" * 9999),
    *(PROGRESS.strip().replace("21", number) for number in ("1e999", "NaN", "-1", "1" * 400, "null", "[]")),
    PROGRESS.strip().replace('"step"', "{}"),
]


@pytest.mark.parametrize("noise", NOISE)
def test_anything_else_on_the_channel_is_noise(monkeypatch: pytest.MonkeyPatch, noise: str) -> None:
    outcome = run(monkeypatch, f"{BEGIN}answer({noise!r} + chr(10)); answer({OUTCOME!r})")
    assert (outcome.status, outcome.steps) == ("ok", 21)


def test_the_phase_that_a_worker_reports_is_cleaned() -> None:
    heard: list[dict[str, Any]] = []
    fields = {"phase": "a\x1b[31m\nb" + "x" * 10_000, "task": 3, "steps": 21}
    assert processes._understood(json.dumps({"progress": fields}).encode(), heard.append) is None
    assert heard[0]["phase"].startswith("a bxxx")
    assert len(heard[0]["phase"]) < 1000


def test_what_a_worker_prints_is_never_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = json.dumps({"outcome": {"steps": 99}})
    outcome = run(monkeypatch, f"{BEGIN}print({forged!r}, flush=True); print('a banner'); answer({OUTCOME!r})")
    assert outcome.steps == 21


def test_a_worker_that_dies_after_a_banner_names_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, f"{BEGIN}print('a banner', flush=True); sys.exit('it is \x1b[31mbroken\x1b[0m [/red]')")
    assert outcome.reason == f"the process pass ended with code 1 {WHERE}: it is broken [/red]"


def test_a_reason_of_megabytes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, f"{BEGIN}sys.exit('x' * 10_000_000)")
    assert outcome.reason is not None
    assert len(outcome.reason) < 1000


@pytest.mark.parametrize(
    ("words", "budget", "status"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", None, "oom"),
        ("OSError: [Errno 12] Cannot allocate memory", None, "oom"),
        ("could not create a primitive", "1GiB", "oom"),
        ("could not create a primitive", None, "crashed"),
        ("libgomp: Thread creation failed: Resource temporarily unavailable", "1GiB", "oom"),
        ("assertion failed", "1GiB", "crashed"),
    ],
)
def test_last_words_tell_whether_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, words: str, budget: str | None, status: str
) -> None:
    said = f"print({words!r} + chr(10) + 'Aborted', file=sys.stderr, flush=True)"
    monkeypatch.setattr(processes, "BOOTSTRAP", f"{BEGIN}{said}; os.abort()")
    job = Job(spec=RunSpec(method="sgd", budget=budget), what="process")
    outcome = Workers(1).run(job, 60, lambda fields: None)
    assert (outcome.status, words in str(outcome.reason)) == (status, status == "oom")


CHECK = "check: no out of memory so far"


@pytest.mark.parametrize(
    "said",
    [
        f"print({CHECK!r}, flush=True)",
        f"print({CHECK!r}, *range(60), sep=chr(10), file=sys.stderr, flush=True)",
        f"print({CHECK!r}, flush=True); print('all good', file=sys.stderr, flush=True)",
    ],
)
def test_what_is_said_in_passing_makes_no_out_of_memory(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    outcome = run(monkeypatch, f"{BEGIN}{said}; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (outcome.status, outcome.reason) == ("crashed", f"the process pass was killed by SIGSEGV {WHERE}")


def test_a_worker_that_says_nothing_on_stderr_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, f"{BEGIN}print('it is broken', flush=True); os._exit(3)")
    assert outcome.reason == f"the process pass ended with code 3 {WHERE}: it is broken"


SLEEP = ["sleep", f"100.{os.getpid()}"]
"""A program that no other process runs with the same argument."""
START = f"__import__('subprocess').Popen({SLEEP}"
FORKS = {
    "keeps the channel": "os.fork() or time.sleep(100)",
    "leaves its group": "os.fork() or (os.setsid(), time.sleep(100))",
    "is another program": f"{START}, start_new_session=True)",
    "has another environment": f"{START}, env={{}}, start_new_session=True)",
    "lost its parent": f"os.fork() or ({START}, env={{}}, start_new_session=True), os._exit(0))",
}
ENDS = {"ok": f"answer({OUTCOME!r})", "crashed": "os._exit(3)", "timeout": "time.sleep(100)"}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fork", FORKS)
def test_what_a_worker_forked_goes_with_it_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, fork: str, end: str
) -> None:
    before = set(psutil.pids())
    start = time.monotonic()
    outcome = run(monkeypatch, f"{BEGIN}{FORKS[fork]}; {ENDS[end]}", timeout_s=3 if end == "timeout" else 60)
    assert outcome.status == end
    assert time.monotonic() - start < 50, "a child that keeps the channel open holds nobody up"
    assert left_of(os.getpid(), before) == []


def left_of(suite: int, before: set[int]) -> list[list[str]]:
    """Return the command lines of processes that outlive a suite's workers."""
    gone_by = time.monotonic() + 10
    while (left := children_of_workers(suite, before)) and time.monotonic() < gone_by:
        time.sleep(0.05)
    return left


def children_of_workers(suite: int, before: set[int]) -> list[list[str]]:
    """Return the command lines of living processes that the workers of a suite started, and of these workers."""
    mine, found = f"CLMEM_PARENT={suite}\0".encode(), []
    for process in psutil.process_iter():
        if process.pid in before:
            continue
        try:
            marked = mine in Path(f"/proc/{process.pid}/environ").read_bytes()
            if (marked or process.cmdline() == SLEEP) and process.status() != "zombie":
                found.append(process.cmdline())
        except (OSError, psutil.Error):
            continue
    return found


SUITE = f"""
import sys
from clmem.harness.runs import processes
processes.BOOTSTRAP = {f"{BEGIN}{'; '.join(FORKS.values())}; time.sleep(100)"!r}
sys.argv = ["clmem", "measure", "sgd", "--width", "1"]
from clmem.bench.cli import main
main()
"""


@pytest.mark.parametrize(("blow", "code"), [("KILL", -9), ("TERM", 143), ("HUP", 129), ("INT", 130)])
def test_what_workers_started_goes_with_a_killed_suite(blow: str, code: int) -> None:
    before = set(psutil.pids())
    command = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-c", SUITE]
    suite = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    try:
        there_by = time.monotonic() + 100
        while children_of_workers(suite.pid, before).count(SLEEP) < 3 and time.monotonic() < there_by:
            assert suite.poll() is None
            time.sleep(0.05)
        suite.send_signal(signal.Signals[f"SIG{blow}"])
        _, said = suite.communicate(timeout=100)
    finally:
        suite.kill()
    assert left_of(suite.pid, before) == []
    assert suite.returncode == code
    begun, *rest = said.decode().splitlines()
    assert begun.strip() == "begins: sgd on synthetic-cifar10: memory"
    assert rest == ([] if blow == "KILL" else ["clmem: interrupted; the same command starts from the beginning"])


def test_a_supervisor_that_is_killed_takes_its_worker_along(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(psutil.pids())
    strike = f"os.getppid() == {os.getpid()} or os.kill(os.getppid(), signal.SIGKILL)"  # never this process
    outcome = run(monkeypatch, f"{BEGIN}{START}); {strike}; time.sleep(100)")
    assert (outcome.status, outcome.killed) == ("crashed", True)
    assert left_of(os.getpid(), before) == []


def test_a_worker_that_sleeps_by_a_signal_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BOOTSTRAP", f"{BEGIN}os.kill(os.getpid(), signal.SIGSTOP)")
    workers = Workers(1)
    job = Job(spec=RunSpec(method="sgd"), what="truth")
    outcome: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcome.append(workers.run(job, 100, lambda fields: workers.stop())))
    thread.start()
    thread.join(50)
    assert not thread.is_alive()
    assert (outcome[0].status, outcome[0].killed) == ("crashed", True)


def test_runs_that_share_a_board_s_memory_are_not_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[str] = []
    most = 0

    def one(workers: Workers, job: Job, timeout_s: float, on_progress: Any) -> Outcome:
        nonlocal most
        running.append(job.what)
        most = max(most, len(running))
        time.sleep(0.05)
        running.remove(job.what)
        return Outcome(peaks=[(0, "step", 1)])

    monkeypatch.setattr(Workers, "run", one)
    specs = [RunSpec(method="sgd", target="jetson")]
    run_specs(specs, lambda result: None)
    assert most == 1
    with pytest.raises(UsageError, match="--jobs is 2, but on target 'jetson'"):
        run_specs(specs, lambda result: None, jobs=2)


def test_a_device_that_others_hold_ends_a_whole_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(workers: Workers, job: Job, timeout_s: float, on_progress: Any) -> Outcome:
        return Outcome(status="crashed", reason="other processes hold 9 B", usage_error=True, unfit=True)

    monkeypatch.setattr(Workers, "run", taken)
    results: list[RunResult] = []
    with pytest.raises(UsageError, match="other processes hold 9 B"):
        run_specs([RunSpec(method=name, target="cuda") for name in ("sgd", "er")], results.append)
    assert results == []


def test_a_device_that_is_taken_later_fails_single_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[RunResult] = []

    def one(workers: Workers, job: Job, timeout_s: float, on_progress: Any) -> Outcome:
        if job.spec.method != "er":
            return Outcome()
        while not results:  # the one before it is kept first
            time.sleep(0.01)
        return Outcome(status="crashed", reason="other processes hold 9 B", usage_error=True, unfit=True)

    monkeypatch.setattr(Workers, "run", one)
    specs = [RunSpec(method=name, target="cuda", measure="peak") for name in ("sgd", "er", "fdr")]
    run_specs(specs, results.append, jobs=1)
    assert {run.spec.method: (run.status, run.reason) for run in results} == {
        "sgd": ("ok", None),
        "er": ("crashed", "other processes hold 9 B"),
        "fdr": ("ok", None),
    }
