"""The first thing a worker process does, before the slow imports: make sure that it dies with its parent."""

from __future__ import annotations

import ctypes
import os
import signal


def main() -> None:
    """Tie this process to its parent, then import torch and do the job."""
    die_with_parent()
    from harness.worker import main

    main()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that a killed suite leaves no orphans."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ["CLMEM_PARENT"]):
        os._exit(1)
