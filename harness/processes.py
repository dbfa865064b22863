"""Starts worker processes, follows their progress, and turns every way they can end into an outcome.

One fresh process per pass: the allocator starts clean, and a crash or an out-of-memory kill stays in there. A worker
answers on a pipe of its own, so nothing that prints can be taken for an answer. Whatever it has forked goes with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
from memory_profiler import memory_usage
from pydantic import ValidationError

from harness.inherited import worker_environment
from harness.job import Job, Outcome
from harness.memory.jetson import Meminfo, UnifiedSampler
from harness.memory.process import oom_kills
from harness.out_of_memory import is_limited, says_out_of_memory

BOOTSTRAP = (
    "import os, sys, sysconfig; sys.path[:] = filter(None, sys.path); "
    "own = [number for number, path in enumerate(sys.path) if path == sysconfig.get_path('stdlib')]; "
    "sys.path.insert(own[-1] + 1 if own else len(sys.path), os.environ['CLMEM_ROOT']); "
    "from harness.bootstrap import main; main()"
)
"""Not `-m harness.bootstrap`: that would search the current folder first, where a folder `methods` may hide ours. Our
own folder comes after the standard library, because beside it may lie packages that are called like parts of that."""

LARGEST_ANSWER_BYTES = 256 * 2**20
"""Of one line on a worker's pipe; an outcome with its timeline takes less than one of them."""

LAST_WORDS_BYTES = 64 * 2**10
"""How much of the end of a worker's output is read when it died."""

LOOK_S = 0.2
"""Seconds after which a worker that says nothing is looked at."""

LOOKS, QUIET_LOOKS, BETWEEN_LOOKS_S = 50, 2, 0.02
"""How often at most a worker's children are looked for when it ends, and after how many looks without any no more."""

OnProgress = Callable[[dict[str, Any]], None]


class Workers:
    """The running worker processes of one suite, so that all of them can be stopped at once."""

    def __init__(self, threads: int) -> None:
        """threads: torch's intra-op threads in the worker of an accuracy run; passes that count bytes have one."""
        self._threads = threads
        self._running: set[_Worker] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Kill every worker and what it started; those started later die at once."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for worker in running:
            worker.kill()

    def run(self, job: Job, timeout_s: float, on_progress: OnProgress) -> Outcome:
        """Run one job in a fresh process and return its outcome, whatever it was.

        The `process` pass is sampled from outside too: its outcome carries the curve of resident memory.
        """
        before = Meminfo.read() if job.spec.target == "jetson" else None
        with tempfile.TemporaryFile() as log:
            with self._lock:
                worker = _Worker(job, worker_environment(job, self._threads, os.environ), log)
                self._running.add(worker)
                stopped = self._stopped
            if stopped:
                worker.kill()
            deadline = time.monotonic() + timeout_s
            kills, last, curve, board, unified = oom_kills(), {}, None, None, None

            def follow(fields: dict[str, Any]) -> None:
                last.update(fields)
                on_progress(fields)

            try:
                if job.what == "process":
                    curve = _Curve(worker.process)
                    board = None if before is None else UnifiedSampler(worker.is_alive, before)
                outcome = worker.converse(deadline, follow)
                timed_out = outcome is None and worker.is_alive()
            finally:
                code = worker.end()
                with self._lock:
                    self._running.discard(worker)
                unified = board.result() if board else None
            if outcome is None:
                where = f" (in {last['phase']} of task {last['task']}, after {last['steps']} steps)" if last else ""
                if timed_out:
                    reason = f"the {job.what} pass took longer than {timeout_s:g} s{where}"
                    outcome = Outcome(status="timeout", reason=reason)
                else:
                    outcome = _died(job, code, _last_words(log), where, by_kernel=oom_kills() > kills)
            outcome.curve = curve.points() if curve else []
            outcome.unified = unified
            return outcome


class _Worker:
    """One worker process with the pipe on which it answers, and everything that it forks."""

    def __init__(self, job: Job, environment: dict[str, str], log: IO[bytes]) -> None:
        self._mark = f"CLMEM_WORKER={os.urandom(16).hex()}"
        self._channel, theirs = os.pipe()
        try:
            with tempfile.TemporaryFile() as asked:
                asked.write(json.dumps(job.model_dump()).encode())  # pydantic's own JSON has no paths beyond UTF-8
                asked.seek(0)
                name, _, value = self._mark.partition("=")
                given = {"CLMEM_JOB": str(asked.fileno()), "CLMEM_CHANNEL": str(theirs), name: value}
                self.process = subprocess.Popen(
                    [sys.executable, "-c", BOOTSTRAP],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**environment, **given},
                    pass_fds=(asked.fileno(), theirs),
                    start_new_session=True,  # Ctrl-C reaches the suite alone, which then stops its workers
                )
        except BaseException:
            os.close(self._channel)
            raise
        finally:
            os.close(theirs)

    def is_alive(self) -> bool:
        """Say whether the process itself still runs."""
        return self.process.poll() is None

    def converse(self, deadline: float, on_progress: OnProgress) -> Outcome | None:
        """Follow the progress and return the outcome; None if the worker died, or the deadline came, without one.

        The pipe stays open as long as anything that the worker forked lives, so its end tells nothing.
        """
        pending, channel = b"", select.poll()  # which knows descriptors beyond 1,023, as select does not
        channel.register(self._channel, select.POLLIN)
        while time.monotonic() < deadline:
            ended = not self.is_alive()
            if not channel.poll(0 if ended else 1000 * LOOK_S):
                if ended:
                    return None
                continue
            chunk = os.read(self._channel, 2**16)
            if not chunk:  # the worker closed it, and is about to end
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(max(0.0, deadline - time.monotonic()))
                return None
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                outcome = _understood(line, on_progress)
                if outcome is not None:
                    return outcome
            if len(pending) > LARGEST_ANSWER_BYTES:
                return Outcome(status="crashed", reason="the worker's answer is longer than any answer can be")
        return None

    def kill(self) -> None:
        """Kill the worker and everything that it started, also what has left its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            self.process.kill()
        quiet = 0
        for _ in range(LOOKS):  # a program that is just being started has no environment yet, so one look is not enough
            found = _marked(self._mark)
            for pid in found:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            quiet = 0 if found else quiet + 1
            if quiet == QUIET_LOOKS:
                return
            time.sleep(BETWEEN_LOOKS_S)

    def end(self) -> int:
        """Kill whatever is left, and return the process's exit code."""
        code = self.process.poll()
        self.kill()
        self.process.wait()
        os.close(self._channel)
        return self.process.returncode if code is None else code


def _marked(mark: str) -> list[int]:
    """Return the processes whose environment holds a mark: a worker's children inherit it."""
    wanted, found = f"{mark}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            if wanted in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
    return found


def _understood(line: bytes, on_progress: OnProgress) -> Outcome | None:
    """Return the outcome that a line holds; report the progress that it holds. Anything else is noise."""
    try:
        message = json.loads(line)
        if "outcome" in message:
            return Outcome.model_validate(message["outcome"])
        progress = message["progress"]
        fields = {"phase": str(progress["phase"]), "task": int(progress["task"]), "steps": int(progress["steps"])}
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
        return None
    on_progress(fields)
    return None


class _Curve:
    """Samples a process's resident memory with memory-profiler until it ends. Short spikes fall between samples."""

    INTERVAL_S = 0.05
    POINTS = 200

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._sample, args=(process,), daemon=True)
        self._thread.start()

    def _sample(self, process: subprocess.Popen[bytes]) -> None:
        # one sample a call: a process that ends in the middle of a longer call would take all its samples with it
        with suppress(psutil.NoSuchProcess):
            while process.poll() is None:
                pid, pause = process.pid, self.INTERVAL_S
                self._samples += memory_usage(pid, interval=pause, max_iterations=1, timestamps=True)

    def points(self) -> list[tuple[float, int]]:
        """Return (seconds since the start, bytes), at most POINTS of them, each the highest of its stretch."""
        self._thread.join()
        alive = [(when, int(mib * 2**20)) for mib, when in self._samples if mib > 0]
        width = max(1, -(-len(alive) // self.POINTS))
        highest = [max(alive[i : i + width], key=lambda point: point[1]) for i in range(0, len(alive), width)]
        return [(round(when - alive[0][0], 3), held) for when, held in highest]


def _last_words(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LAST_WORDS_BYTES))
    return log.read().decode("utf-8", errors="replace")


def _died(job: Job, code: int, said: str, where: str, *, by_kernel: bool) -> Outcome:
    """Return what to say of a process that ended without an answer.

    said: the end of what it printed. by_kernel: whether the kernel killed something for want of memory meanwhile; it
    counts such ends for the whole machine.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if code == -signal.SIGKILL and by_kernel:
        reason = f"the {job.what} pass was killed by the kernel, which ran out of memory{where}"
        return Outcome(status="oom", reason=reason, killed=True)
    end = f"was killed by {_signal_name(-code)}{where}" if code < 0 else f"ended with code {code}{where}"
    if says_out_of_memory(said, limited=job.spec.budget is not None or is_limited()):
        return Outcome(status="oom", reason=f"the {job.what} pass {end}: {lines[-1]}")
    if code < 0:
        return Outcome(status="crashed", reason=f"the {job.what} pass {end}", killed=-code == signal.SIGKILL)
    return Outcome(status="crashed", reason=f"the {job.what} pass {end}: {lines[-1] if lines else 'it said nothing'}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
