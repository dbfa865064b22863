"""Runs one command of clmem and judges how it ended."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaign.tally import Tally

CODES = {0, 1, 2, 130, 141}
"""How a command may end: well, with a failed check, by bad usage, interrupted, or because nobody reads on."""


@dataclass(frozen=True)
class Command:
    """A command and the machine that it meets.

    limits: of `resource`, by name, such as RLIMIT_FSIZE. harmless: it must find what it finds undisturbed.
    """

    name: str
    arguments: Sequence[str | bytes]
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    python: Sequence[str] = ()
    seconds: float = 60.0
    harmless: bool = False


def judge(tally: Tally, command: Command, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder; note a traceback, a hang, an unknown exit code, and escape sequences.

    There is no terminal, so what is printed must be plain text.
    """

    def limit() -> None:
        for name, value in command.limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, **command.environment}
    process = subprocess.Popen(
        [sys.executable, *command.python, "-m", "clmem.bench.cli", *command.arguments],
        cwd=folder,
        env={name: value for name, value in environment.items() if value != "(unset)"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limit if command.limits else None,
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=command.seconds)
    except subprocess.TimeoutExpired:
        tally.hangs.append(f"{command.name}: more than {command.seconds:g} s")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        printed, complaints = process.communicate()
    done = subprocess.CompletedProcess(process.args, process.returncode, printed, complaints)
    said = complaints + printed
    faulty = b"Traceback (most recent call last)" in said or b"this is a fault of clmem" in said
    if faulty or process.returncode not in CODES:
        last = complaints.decode(errors="replace").strip().splitlines()[-3:]
        tally.tracebacks.append(f"{command.name} ended with {process.returncode}: {' / '.join(last)[-400:]}")
    elif b"\x1b[" in complaints + printed:
        tally.tracebacks.append(f"{command.name} printed escape sequences where no terminal is")
    return done
