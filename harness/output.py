"""Keeps what methods and libraries print out of the output of commands, which is read by programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from threading import RLock

_one_thread = RLock()
"""Two threads that divert the same stream would each restore what the other had put there."""


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Send to stderr whatever is printed to stdout, by Python or by a library: it is no result of ours."""
    with _one_thread:
        _flush_stdout()
        kept = _copy_of_stdout()
        try:
            _send_stdout_to_stderr()
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _flush_stdout()
            if kept is None:
                os.close(1)
            else:
                os.dup2(kept, 1)
                os.close(kept)


def _copy_of_stdout() -> int | None:
    try:
        return fcntl(1, F_DUPFD_CLOEXEC, 3)  # beyond stderr, which may be closed
    except OSError:  # closed by whoever started this
        return None


def _flush_stdout() -> None:
    with suppress(OSError, ValueError):  # the command says so at its end
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()


def _send_stdout_to_stderr() -> None:
    try:
        os.dup2(2, 1)
    except OSError:  # stderr is closed
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
