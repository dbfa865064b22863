"""What runs in a worker's processes before the slow imports: the supervisor, and the first lines of the worker itself.

The supervisor is the worker's parent. It is small and measures nothing. When the worker ends, or the suite is gone, it
ends everything that the worker started. It runs this file as a script, so nothing of ours is imported here.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Keep the job and the channel from what this process starts, then import torch and do the job."""
    os.set_inheritable(int(os.environ["CLMEM_JOB"]), False)
    os.set_inheritable(int(os.environ["CLMEM_CHANNEL"]), False)
    from clmem.harness.runs.worker import main

    main()


def supervise(told: int, command: list[str]) -> None:
    """Start a worker, wait until it ends, kill whatever it has started, and end as it did.

    The kernel gives this process every orphan of the worker, whatever its session and environment are. SIGTERM ends all
    of it early: the suite sends it to stop a worker, and the kernel sends it when the suite dies.

    told: a pipe that gets the worker's process id.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    _die_with_parent(int(os.environ["CLMEM_PARENT"]), signal.SIGTERM)
    os.set_inheritable(told, False)
    supervisor, worker = os.getpid(), os.fork()
    if worker == 0:
        os.setsid()
        _die_with_parent(supervisor, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.execv(command[0], command)
    os.write(told, str(worker).encode())
    for number in (told, int(os.environ["CLMEM_JOB"]), int(os.environ["CLMEM_CHANNEL"])):
        os.close(number)
    ended: dict[int, int] = {}
    while worker not in ended and signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) == signal.SIGCHLD:
        with suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                ended.update([end])
    with suppress(ChildProcessError):  # raised when no child is left
        while True:
            for child in _children(supervisor):
                with suppress(PermissionError):
                    os.kill(child, signal.SIGKILL)
            ended.update([os.waitpid(-1, 0)])
    _end_with(os.waitstatus_to_exitcode(ended[worker]))


def _die_with_parent(parent: int, number: int) -> None:
    """Ask the kernel to send this process a signal when its parent dies; end if that has happened already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _children(parent: int) -> list[int]:
    """Return the process ids of a process's children."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - pathlib takes memory and time here
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
            if int(stat.read().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


def _end_with(code: int) -> None:
    """End this process with an exit code; by a signal, without a core dump, if the code is negative."""
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code != signal.SIGKILL:  # nobody can handle that one
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(os.getpid(), -code)


if __name__ == "__main__":
    supervise(int(sys.argv[1]), sys.argv[2:])
