"""Starts worker processes, follows their progress, and turns every way they can end into an outcome.

One fresh process per pass: the allocator starts clean, and a crash or an out-of-memory kill stays in there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
from memory_profiler import memory_usage

from harness.job import Job, Outcome, Pass
from harness.memory.cublas import PINNED_CUBLAS, UNPINNED_CUBLAS
from harness.memory.jetson import Meminfo, UnifiedSampler
from harness.memory.process import KEEPING_MALLOC, PINNED_MALLOC, oom_kills
from harness.targets import allocator_of

BOOTSTRAP = "import sys; sys.path[:] = filter(None, sys.path); from harness.bootstrap import main; main()"
"""Not `-m harness.bootstrap`: that would search the current folder first, where a folder `methods` may hide ours."""

MALLOC: dict[Pass, dict[str, str]] = {
    "process": PINNED_MALLOC,
    "truth": KEEPING_MALLOC,
    "attribution": KEEPING_MALLOC,
}
"""What malloc does with freed blocks, by pass. Counting allocations does not depend on it; accuracy runs keep glibc's
defaults, for their process peak is to be that of an ordinary process."""

CUDA_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")
"""Settings of torch's caching allocator, which a measurement on CUDA leaves at their defaults."""

OnProgress = Callable[[dict[str, Any]], None]


class Workers:
    """The running worker processes of one suite, so that all of them can be stopped at once."""

    def __init__(self, threads: int) -> None:
        """threads: torch's intra-op threads in each worker."""
        self._threads = threads
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Kill every worker; those started later die at once."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def run(self, job: Job, timeout_s: float, on_progress: OnProgress) -> Outcome:
        """Run one job in a fresh process and return its outcome, whatever it was.

        The `process` pass is sampled from outside too: its outcome carries the curve of resident memory.
        """
        before = Meminfo.read() if job.spec.target == "jetson" else None
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            with self._lock:
                process = subprocess.Popen(
                    [sys.executable, "-c", BOOTSTRAP],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment(job),
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches the suite alone, which then stops its workers
                )
                self._running.add(process)
                if self._stopped:
                    process.kill()
            timer = threading.Timer(timeout_s, process.kill)
            timer.start()
            kills, last, curve, board, unified = oom_kills(), {}, None, None, None

            def follow(fields: dict[str, Any]) -> None:
                last.update(fields)
                on_progress(fields)

            try:
                if job.what == "process":
                    curve = _Curve(process)
                    board = None if before is None else UnifiedSampler(lambda: process.poll() is None, before)
                outcome = _converse(process, job, follow)
                code = process.wait()
            finally:
                timed_out = not timer.is_alive()
                timer.cancel()
                process.kill()
                process.wait()
                with self._lock:
                    self._running.discard(process)
                unified = board.result() if board else None
            if outcome is None:
                where = f" (in {last['phase']} of task {last['task']}, after {last['steps']} steps)" if last else ""
                if timed_out:
                    reason = f"the {job.what} pass took longer than {timeout_s:g} s{where}"
                    outcome = Outcome(status="timeout", reason=reason)
                else:
                    outcome = _died(job, code, log, where, by_kernel=oom_kills() > kills)
            outcome.curve = curve.points() if curve else []
            outcome.unified = unified
            return outcome

    def _environment(self, job: Job) -> dict[str, str]:
        """Return the worker's environment: pinned threads, quiet profiler, the malloc the pass asks for."""
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        pinned = {*PINNED_MALLOC, *((*CUDA_ALLOCATOR, *UNPINNED_CUBLAS) if self._on_cuda(job) else ())}
        inherited = {key: value for key, value in os.environ.items() if key not in pinned}
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(paths),
            "CLMEM_PARENT": str(os.getpid()),
            "OMP_NUM_THREADS": str(self._threads),
            "KINETO_LOG_LEVEL": "5",
            **MALLOC.get(job.what, {}),
            **(PINNED_CUBLAS if self._on_cuda(job) else {}),
        }

    @staticmethod
    def _on_cuda(job: Job) -> bool:
        return allocator_of(job.spec.target) == "cuda"


class _Curve:
    """Samples a process's resident memory with memory-profiler until it ends. Short spikes fall between samples."""

    INTERVAL_S = 0.05
    POINTS = 200

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._sample, args=(process,), daemon=True)
        self._thread.start()

    def _sample(self, process: subprocess.Popen[str]) -> None:
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


def _converse(process: subprocess.Popen[str], job: Job, on_progress: OnProgress) -> Outcome | None:
    """Send the job, follow the progress, return the outcome; None when the worker died without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job.model_dump_json())
        process.stdin.close()
    except BrokenPipeError:
        return None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:  # it was killed in the middle of a line
            return None
        if "outcome" in message:
            return Outcome.model_validate(message["outcome"])
        on_progress(message["progress"])
    return None


def _died(job: Job, code: int, log: IO[str], where: str, *, by_kernel: bool) -> Outcome:
    """Return what to say of a process that ended without an answer. by_kernel: whether the kernel killed something for
    want of memory meanwhile; it counts such ends for the whole machine.
    """
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    if code == -signal.SIGKILL and by_kernel:
        reason = f"the {job.what} pass was killed by the kernel, which ran out of memory{where}"
        return Outcome(status="oom", reason=reason, killed=True)
    if code < 0:
        reason = f"the {job.what} pass was killed by {signal.Signals(-code).name}{where}"
        return Outcome(status="crashed", reason=reason, killed=-code == signal.SIGKILL)
    last = lines[-1] if lines else "it said nothing"
    return Outcome(status="crashed", reason=f"the {job.what} pass ended with code {code}{where}: {last}")
