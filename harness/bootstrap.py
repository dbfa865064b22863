"""The first thing a worker process does, before the slow imports: make sure that it dies with its parent."""

from __future__ import annotations

import ctypes
import os
import signal


def main() -> None:
    """Tie this process to its parent, then import torch and do the job."""
    os.set_inheritable(int(os.environ["CLMEM_JOB"]), False)
    os.set_inheritable(int(os.environ["CLMEM_CHANNEL"]), False)
    die_with_parent(int(os.environ["CLMEM_PARENT"]))
    os.register_at_fork(before=_remember_parent, after_in_child=_die_with_forker)
    from harness.worker import main

    main()


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, so that a killed suite leaves no orphans."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


_forker = 0


def _remember_parent() -> None:
    global _forker
    _forker = os.getpid()


def _die_with_forker() -> None:
    """What a method forks dies with this process, because the kernel does not pass the wish on to children."""
    die_with_parent(_forker)
