"""The command `clmem`. Every command turns its options into specs, lets the harness run them, and shows the result.

Exit codes: 0 fine, 1 a check or a run failed, 2 bad usage, 130 interrupted (143 by SIGTERM, 129 by SIGHUP), 141 nobody
reads the output. Errors are one sentence; `--debug` shows the traceback. Everything is imported inside `main`, so that
Ctrl-C in the middle of an import is an interruption like any other. Torch is imported only by commands that run
something.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

COMPLETED = ("run", "pretrain")
"""Commands that go on where they were interrupted. The others save what they save at their end."""
LONGEST = 2000
"""Characters of a message; a path alone may have twice as many."""
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; make room, and run the same command again"),
    errno.EFBIG: "; raise the limit (`ulimit -f`), and run the same command again",
    errno.EROFS: "; choose a place that you can write to",
}
"""What to do where writing failed, by the system's number of the error."""
UNREAD = 141
"""What a shell says of a program that writes into a pipe that nobody reads."""
AT_ONCE_S = 1.0
"""Ctrl-C twice within this time is one wish."""


class _Interrupts:
    """Remembers Ctrl-C: what it interrupts, such as the import of a library in C, may make another error of it.

    SIGTERM and SIGHUP, by which a system or a terminal ends a program, are the same wish.
    """

    def __init__(self) -> None:
        self.happened = False
        self.code = 130
        self._last = -AT_ONCE_S
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):  # else ignored, as by nohup
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.happened else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.happened:
            self.code = 128 + number
        again, self.happened, self._last = now - self._last < AT_ONCE_S, True, now
        if not again:
            raise KeyboardInterrupt


def main() -> None:
    """Run the command line; print errors as one sentence."""
    # numpy multiplies nothing here, and under a limit of memory OpenBLAS's threads end the process as they start
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    debug = "--debug" in sys.argv[1:]
    with _Interrupts() as interrupts:
        try:
            code, message = _call([argument for argument in sys.argv[1:] if argument != "--debug"], debug)
        except KeyboardInterrupt:
            code, message = 130, _interrupted()
        except BaseException:
            if not interrupts.happened:
                raise
        if interrupts.happened:
            code, message = interrupts.code, _interrupted()
    # libraries print a traceback where what they do at exit is interrupted
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if message:  # without arguments the help has been printed, which says enough
        _say(message)
    if code and _is_limited():
        # what libraries do at exit needs memory too, and would print tracebacks behind the sentence
        _stop_writing()
        os._exit(code)
    sys.exit(code)


def _interrupted() -> str:
    """Say what the command does if it is given again: its name is the first argument that is no option."""
    named = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    then = "completes what is missing" if named in COMPLETED else "starts from the beginning"
    return f"interrupted; the same command {then}"


def _is_limited() -> bool:
    try:
        from clmem.harness.out_of_memory import is_limited
    except BaseException:  # so little memory that not even this is read
        return True
    return is_limited()


def _call(arguments: list[str], debug: bool) -> tuple[int, str]:
    """Call a command; return its exit code, and what is to be said at the end."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may have fewer characters than a message
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        import clmem.harness.out_of_memory  # noqa: F401  afterwards there may be no memory to import it
        from clmem.bench.app import call
        from clmem.harness.errors import ClmemError, blame

        try:
            code = call(arguments)
        except SystemExit as error:  # clmem itself ends no command like this
            raise ClmemError(f"a method or a library ended the command ({blame(error)})") from error
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception as error:
        code, message = _explained(error)
        if debug and code in (1, 2):
            raise
        from clmem.harness.text import clean

        return code, clean(message, LONGEST)
    return code, _interrupted() if code == 130 else ""  # typer may turn Ctrl-C into this code itself


def _explained(error: Exception) -> tuple[int, str]:
    """Return the exit code of an exception, and one sentence about it."""
    from clmem.harness.errors import ClmemError, UsageError, blame
    from clmem.harness.out_of_memory import is_limited, means_out_of_memory

    if isinstance(error, ClmemError):
        return 2 if isinstance(error, UsageError) else 1, str(error)
    if means_out_of_memory(error, limited=is_limited()):
        # numpy explains at length before it says what happened
        said = str(error).strip().rpartition("\n")[2] or "a request of Python was refused"
        return 1, f"this process is out of memory ({said}); give it less to do, or more memory"
    if isinstance(error, OSError):
        _stop_writing()
        if isinstance(error, BrokenPipeError):
            return UNREAD, ""
        said = error.strerror or str(error) or type(error).__name__
        advice = ADVICE.get(error.errno or 0, "")
        return 2, (said if error.filename is None else f"{said}: {os.fsdecode(error.filename)}") + advice
    if isinstance(error, RecursionError):
        return 1, f"something is nested too deeply to be worked on ({blame(error)})"
    from clmem.bench.app import ABORT, usage_sentence

    if isinstance(error, ABORT):
        return 130, _interrupted()
    wrong = usage_sentence(error)
    if wrong is not None:
        return 2, wrong
    return 1, f"unexpected {blame(error)}; this is a fault of clmem, and `clmem --debug ...` shows where"


def _stop_writing() -> None:
    """Write what is left for stdout. Where that can take nothing, drop it, because Python complains at its exit."""
    if sys.stdout is None:  # closed by whoever started this
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    if sys.stderr is None:  # closed by whoever started this; print would take stdout
        return
    try:
        print(f"clmem: {message}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads that either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    main()
