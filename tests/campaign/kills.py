"""Kills suites, workers and whole groups at random moments, and completes them with the same command."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from clmem.harness.results.record import load_result
from tests.campaign.tally import Tally
from tests.harness import rogue

SUITE = """
title = "to be killed"
methods = ["er", "rogue-forker", "rogue-starter"]
streams = ["split-fashion-mini"]
width = 1
batch_size = 50
buffer_size = 20
replay_size = 10
steps_per_task = 4
epochs = 12
seeds = [0, 1]
measure = ["accuracy", "peak"]
[[vary]]
methods = ["er"]
[[vary]]
methods = ["rogue-forker", "rogue-starter"]
seeds = [0]
"""
"""Small runs. One forks processes that sleep, and one starts programs that do."""

COMPARED = (
    "spec",
    "status",
    "allocator",
    "accuracy",
    "metrics",
    "fingerprint",
    "data_digest",
    "flops_per_step",
    "steps",
)
"""What of a result no interruption may change."""

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240
"""After which a command that should have ended counts as a hang."""

BLOWS: dict[str, Callable[[subprocess.Popen[bytes]], None]] = {
    "suite KILL": lambda suite: os.kill(suite.pid, signal.SIGKILL),
    "suite TERM": lambda suite: os.kill(suite.pid, signal.SIGTERM),
    "suite HUP": lambda suite: os.kill(suite.pid, signal.SIGHUP),
    "suite INT": lambda suite: os.kill(suite.pid, signal.SIGINT),
    "suite INT twice": lambda suite: _twice(suite),
    "suite STOP, CONT": lambda suite: _pause(suite.pid),
    "worker KILL": lambda suite: _one(suite, signal.SIGKILL),
    "worker TERM": lambda suite: _one(suite, signal.SIGTERM),
    "worker STOP, CONT": lambda suite: _pause(*workers_of(suite.pid)[:1]),
    "all workers KILL": lambda suite: _each(suite, signal.SIGKILL),
    "group KILL": lambda suite: _together(suite),
}
BLOWS_A_START = 6
SURVIVED = {"suite STOP, CONT", "worker KILL", "worker TERM", "worker STOP, CONT", "all workers KILL"}
"""Blows after which the suite itself goes on."""


def kill_at_random(tally: Tally, folder: Path, seconds: float, seed: int) -> None:
    """Run a small suite again and again, interrupted at random moments, until the time is over."""
    rng = random.Random(seed)
    suite = folder / "suite.toml"
    suite.write_text(SUITE)
    (folder / "rogue").mkdir()
    rogue.install(folder / "rogue")
    reference = folder / "reference"
    expected = _complete(tally, suite, reference)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        out = folder / f"out{number}"
        for _ in range(rng.randint(3, 8)):
            if time.monotonic() > end:
                break
            _disturb(tally, suite, out, rng)
        found = _complete(tally, suite, out)
        for name, values in expected.items():
            if found.get(name) != values:
                differing = [key for key in COMPARED if found.get(name, {}).get(key) != values[key]]
                tally.wrong.append(f"{name} differs in {', '.join(differing)} in {out}")


def _start(suite: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "clmem.bench.cli", "run", str(suite), "--out", str(out), *options]
    # a background job of a shell ignores Ctrl-C, and so would everything it starts
    return subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "CLMEM_CHECKPOINT_S": "0.5", "PYTHONPATH": f"{suite.parent / 'rogue'}{os.pathsep}{ROOT}"},
    )


def _disturb(tally: Tally, suite: Path, out: Path, rng: random.Random) -> None:
    """Start the suite, strike it some times at random moments, and check what is left."""
    before = _snapshot(out)
    process = _start(suite, out)
    struck: list[str] = []
    while process.poll() is None and len(struck) < BLOWS_A_START:
        time.sleep(rng.choice((0.3, 2.0, 6.0)) * rng.uniform(0.0, 2.0))
        if process.poll() is not None:
            break
        blow = rng.choice(list(BLOWS))
        struck.append(blow)
        with suppress(ProcessLookupError):
            BLOWS[blow](process)
        tally.kills += 1
        if blow not in SURVIVED:
            break
    said = _finish(tally, process, f"{out.name} after {', '.join(struck) or 'nothing'}")
    if b"Traceback" in said:
        tally.tracebacks.append(f"{out.name} after {', '.join(struck)}: {said[-400:]!r}")
    gone_by = time.monotonic() + 20
    while (left := workers_of(process.pid)) and time.monotonic() < gone_by:
        time.sleep(0.1)
    for pid in left:
        tally.orphans.append(f"process {pid} outlives {out.name} after {', '.join(struck)}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _check_kept(tally, before, out, struck)


def _check_kept(tally: Tally, before: dict[str, bytes], out: Path, struck: list[str]) -> None:
    now = _snapshot(out)
    for name, content in before.items():
        if name not in now:
            tally.lost.append(f"{name} is gone from {out.name} after {', '.join(struck)}")
        elif now[name] != content and json.loads(content)["status"] == "ok":
            tally.lost.append(f"{name} was written again in {out.name} after {', '.join(struck)}")
    for name in now:
        try:
            load_result(out / name)
        except Exception as error:
            tally.wrong.append(f"{name} is not whole in {out.name}: {error}")


def _complete(tally: Tally, suite: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Let the same command complete what is missing; return what must be equal, by file name."""
    said = _finish(tally, _start(suite, out, "--retry"), f"completing {out.name}")  # a killed worker's end is a result
    if b"Traceback" in said:
        tally.tracebacks.append(f"completing {out.name}: {said[-400:]!r}")
    found = {name: json.loads(content) for name, content in _snapshot(out).items()}
    return {name: {key: values[key] for key in COMPARED} for name, values in found.items()}


def _finish(tally: Tally, process: subprocess.Popen[bytes], what: str) -> bytes:
    try:
        return process.communicate(timeout=PATIENCE_S)[0]
    except subprocess.TimeoutExpired:
        tally.hangs.append(what)
        _together(process)
        return process.communicate()[0]


def _snapshot(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("[!.]*--*.json")} if out.is_dir() else {}


def workers_of(parent: int) -> list[int]:
    """Return the processes that a suite started, by their environment, or by the number that rogue-starter gives."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"CLMEM_PARENT={parent}\0".encode() in (path / "environ").read_bytes()
            if marked or (path / "cmdline").read_bytes() == f"sleep\000600.{parent}\0".encode():
                found.append(int(path.name))
    return found


def _twice(suite: subprocess.Popen[bytes]) -> None:
    os.kill(suite.pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(suite.pid, signal.SIGINT)


def _pause(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)


def _one(suite: subprocess.Popen[bytes], number: int) -> None:
    """Strike one process, but no supervisor: without it, a program with an empty environment belongs to nobody."""
    for pid in workers_of(suite.pid):
        with suppress(OSError):
            if b"bootstrap.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)
                return


def _each(suite: subprocess.Popen[bytes], number: int) -> None:
    for pid in workers_of(suite.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _together(suite: subprocess.Popen[bytes]) -> None:
    """Kill the suite and its workers, as the end of a session or of a container does."""
    workers = workers_of(suite.pid)
    with suppress(ProcessLookupError):
        os.killpg(suite.pid, signal.SIGKILL)
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
