"""Starts worker processes, follows their progress, and turns every way they can end into an outcome.

One fresh process per pass: the allocator starts clean, and a crash or an out-of-memory kill stays in there. A worker
answers on a pipe of its own, so nothing that prints can be taken for an answer. Its parent is a small supervisor
(`bootstrap.supervise`), which ends whatever the worker has started when the worker or the suite ends.
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
from pydantic import BaseModel, Field, ValidationError

from clmem.harness.memory.system.jetson import Meminfo, UnifiedSampler
from clmem.harness.memory.system.process import oom_kills
from clmem.harness.out_of_memory import is_limited, says_out_of_memory
from clmem.harness.runs import bootstrap
from clmem.harness.runs.inherited import worker_environment
from clmem.harness.runs.job import Job, Outcome
from clmem.harness.text import Said

BOOTSTRAP = (
    "import os, sys, sysconfig; sys.path[:] = filter(None, sys.path); "
    "own = [number for number, path in enumerate(sys.path) if path == sysconfig.get_path('stdlib')]; "
    "sys.path.insert(own[-1] + 1 if own else len(sys.path), os.environ['CLMEM_ROOT']); "
    "from clmem.harness.runs.bootstrap import main; main()"
)
"""Not `-m clmem.harness.runs.bootstrap`: that would search the current folder first, where other files may hide ours.
Our own folder comes after the standard library, because beside it may lie packages that are called like parts of that.
"""

SUPERVISOR = (sys.executable, "-I", "-S", str(Path(bootstrap.__file__).resolve()))
"""Without `site` and the user's settings of Python, so that it is small and starts quickly."""

LARGEST_ANSWER_BYTES = 256 * 2**20
"""Of one line on a worker's pipe; an outcome with its timeline takes less than one of them."""

LAST_WORDS_BYTES = 64 * 2**10
"""How much of the end of a worker's output is read when it died."""

LAST_LINES = 60
"""Lines at the end of stderr that may say that memory ran out: an error of torch's C++ has a stack of 40 after it."""

PATIENCE_S = 30.0
"""Seconds that a supervisor has to end everything before it is killed itself."""

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
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            with self._lock:
                worker = _Worker(job, worker_environment(job, self._threads, os.environ), stdout, stderr)
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
                    curve = _Curve(worker)
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
                    outcome = _died(job, code, _lines(stdout), _lines(stderr), where, by_kernel=oom_kills() > kills)
            outcome.curve = curve.points() if curve else []
            outcome.unified = unified
            return outcome


class _Worker:
    """One worker process with its supervisor, the pipe on which it answers, and everything that it starts.

    process: the supervisor, which lives as long as the worker and ends as it does.
    """

    def __init__(self, job: Job, environment: dict[str, str], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self._mark = f"CLMEM_WORKER={os.urandom(16).hex()}"
        self._channel, theirs = os.pipe()
        self._told, told = os.pipe()
        try:
            with tempfile.TemporaryFile() as asked:
                asked.write(json.dumps(job.model_dump()).encode())  # pydantic's own JSON has no paths beyond UTF-8
                asked.seek(0)
                name, _, value = self._mark.partition("=")
                given = {"CLMEM_JOB": str(asked.fileno()), "CLMEM_CHANNEL": str(theirs), name: value}
                self.process = subprocess.Popen(
                    [*SUPERVISOR, str(told), sys.executable, "-c", BOOTSTRAP],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env={**environment, **given},
                    pass_fds=(asked.fileno(), theirs, told),
                    start_new_session=True,  # Ctrl-C reaches the suite alone, which then stops its workers
                )
        except BaseException:
            os.close(self._channel)
            os.close(self._told)
            raise
        finally:
            os.close(theirs)
            os.close(told)

    def is_alive(self) -> bool:
        """Say whether the worker still runs."""
        return self.process.poll() is None

    def pid(self) -> int | None:
        """Return the worker's own process id, once; None if its supervisor could not start it."""
        with os.fdopen(os.dup(self._told), "rb") as told:
            return int(told.read() or 0) or None

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
        """Kill the worker and everything that it started.

        The supervisor does this. If it was killed or is stuck, the processes that carry the worker's mark are killed.
        """
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
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
        os.close(self._told)
        return self.process.returncode if code is None else code


def _marked(mark: str) -> list[int]:
    """Return the processes whose environment holds a mark: a worker's children inherit it."""
    wanted, found = f"{mark}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            if wanted in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
    return found


class _Progress(BaseModel):
    """What a worker says about where it is."""

    phase: Said
    task: int = Field(ge=0, le=2**53)
    steps: int = Field(ge=0, le=2**53)


def _understood(line: bytes, on_progress: OnProgress) -> Outcome | None:
    """Return the outcome that a line holds; report the progress that it holds. Anything else is noise."""
    try:
        message = json.loads(line)
        if "outcome" in message:
            return Outcome.model_validate(message["outcome"])
        progress = _Progress.model_validate(message["progress"])
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
        return None
    on_progress(progress.model_dump())
    return None


class _Curve:
    """Samples a worker's resident memory with memory-profiler until it ends. Short spikes fall between samples."""

    INTERVAL_S = 0.05
    POINTS = 200

    def __init__(self, worker: _Worker) -> None:
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._sample, args=(worker,), daemon=True)
        self._thread.start()

    def _sample(self, worker: _Worker) -> None:
        pid = worker.pid()
        if pid is None:
            return
        # one sample a call: a process that ends in the middle of a longer call would take all its samples with it
        with suppress(psutil.NoSuchProcess):
            while worker.is_alive():
                self._samples += memory_usage(pid, interval=self.INTERVAL_S, max_iterations=1, timestamps=True)

    def points(self) -> list[tuple[float, int]]:
        """Return (seconds since the start, bytes), at most POINTS of them, each the highest of its stretch."""
        self._thread.join()
        alive = [(when, int(mib * 2**20)) for mib, when in self._samples if mib > 0]
        width = max(1, -(-len(alive) // self.POINTS))
        highest = [max(alive[i : i + width], key=lambda point: point[1]) for i in range(0, len(alive), width)]
        return [(round(when - alive[0][0], 3), held) for when, held in highest]


def _lines(log: IO[bytes]) -> list[str]:
    """Return the last lines of what a worker printed, without empty ones."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LAST_WORDS_BYTES))
    said = log.read().decode("utf-8", errors="replace")
    return [line.strip() for line in said.splitlines() if line.strip()]


def _died(job: Job, code: int, stdout: list[str], stderr: list[str], where: str, *, by_kernel: bool) -> Outcome:
    """Return what to say of a process that ended without an answer.

    stdout, stderr: the last lines of each. Only errors count as a sign that memory ran out, because a method may print
    anything. by_kernel: whether the kernel killed something for want of memory meanwhile; it counts such ends for the
    whole machine.
    """
    if code == -signal.SIGKILL and by_kernel:
        reason = f"the {job.what} pass was killed by the kernel, which ran out of memory{where}"
        return Outcome(status="oom", reason=reason, killed=True)
    end = f"was killed by {_signal_name(-code)}{where}" if code < 0 else f"ended with code {code}{where}"
    limited = job.spec.budget is not None or is_limited()
    for line in reversed(stderr[-LAST_LINES:]):
        if says_out_of_memory(line, limited=limited):
            return Outcome(status="oom", reason=f"the {job.what} pass {end}: {line}")
    if code < 0:
        return Outcome(status="crashed", reason=f"the {job.what} pass {end}", killed=-code == signal.SIGKILL)
    last = (stderr or stdout or ["it said nothing"])[-1]
    return Outcome(status="crashed", reason=f"the {job.what} pass {end}: {last}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
