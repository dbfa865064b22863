"""A run's whole state in one file, so that it can go on in another process exactly where it was.

Written with `torch.save`, read with `weights_only=True`: nothing is ever unpickled. What a run's own code does not make
again from its spec is in it: weights, optimizer, the method's state and generator, the place in the stream, accuracies.
The file ends with a digest of everything before it, because torch's reader checks none and takes a flipped bit as a
weight. Without the right digest the run begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from pydantic import TypeAdapter
from torch import Tensor

from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.files import replacing
from clmem.harness.learning.build import Run
from clmem.harness.memory.system.process import high_water_bytes
from clmem.harness.results.source import measuring_digest, method_digest
from clmem.methods.base import Trunk

SCHEMA = 2

EVERY = "CLMEM_CHECKPOINT_S"
"""The variable that says how often an accuracy run saves its state, in seconds."""

DIGEST_BYTES = 32
"""Of SHA-256, at the end of the file. A zip archive may be followed by other bytes."""

Row = tuple[list[float | None], list[float | None]]
"""Accuracies on every task: class-IL, task-IL."""


@dataclass
class Course:
    """How far a run has come: it stands before step `step` of task `task`, whose `before_task` is done if `begun`.

    rows: accuracies after each finished task. steps: learnt in all. seconds: by phase name.
    """

    task: int = 0
    step: int = 0
    begun: bool = False
    untrained: Row | None = None
    rows: list[Row] = field(default_factory=list)
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class UnusableCheckpointError(ClmemError):
    """A checkpoint is whole and of this run, and yet cannot be put into it, so the run must be built anew."""


class Checkpoint:
    """The file of one run. It is only ever replaced whole.

    key: what must be equal for a checkpoint to be of use, beside the code and torch; another's is ignored.
    every_s: seconds between two savings; None takes those of the variable CLMEM_CHECKPOINT_S, or 30.
    resumed_at: steps after which the run went on in a new process.
    process_peak_bytes: the highest resident memory of the processes before this one.
    notes: sentences about what did not work, which cost time and no number.
    """

    def __init__(self, path: Path, key: Mapping[str, str], every_s: float | None = None) -> None:
        self.path = path
        self.key = {"schema": str(SCHEMA), "code": measuring_digest(), "torch": str(torch.__version__), **key}
        self.every_s = seconds_between_savings() if every_s is None else every_s
        self.resumed_at: list[int] = []
        self.process_peak_bytes = 0
        self.notes: list[str] = []
        self._saved_at = time.monotonic()

    def restore(self, run: Run) -> Course:
        """Put a freshly built run where the file says, and return how far that is; without a file, the beginning.

        Raises UnusableCheckpointError for a file that does not fit, and removes it; the run is spoilt then.
        """
        state = self._read(run)
        if state is None:
            return Course()
        try:
            return self._put(run, state)
        except Exception as error:  # whatever it is made of, the run can still start from its beginning
            self.path.unlink(missing_ok=True)
            raise UnusableCheckpointError(f"the checkpoint {self.path} does not fit its run: {error}") from error

    def _put(self, run: Run, state: Mapping[str, Any]) -> Course:
        method = run.method
        course = TypeAdapter(Course).validate_python(state["course"])
        method.load_state_dict(state["method"])
        method.network.load_state_dict(state["network"])
        method.trunk = None if state["trunk"] is None else Trunk(*state["trunk"])
        method.context.rng.bit_generator.state = json.loads(state["rng"])
        run.runner.prepared.load_state_dict(state["execution"])
        run.stream.fingerprint = str(state["fingerprint"])
        self.resumed_at = [*map(int, state["resumed_at"]), int(course.steps)]
        self.process_peak_bytes = int(state["process_peak_bytes"])
        return course

    def save_if_due(self, run: Run, course: Course) -> None:
        """Save when the last saving is `every_s` ago; a file that cannot be written is noted, and the run goes on.

        Raises ClmemError for declared state that is not saved.
        """
        if time.monotonic() - self._saved_at < self.every_s:
            return
        method = run.method
        state = {
            "key": self._key_of(run),
            "method": method.state_dict(),
            "network": method.network.state_dict(),
            "trunk": None if method.trunk is None else [method.trunk.boundary, method.trunk.bn],
            "rng": json.dumps(method.context.rng.bit_generator.state),
            "execution": run.runner.prepared.state_dict(),
            "fingerprint": run.stream.fingerprint,
            "course": asdict(course),
            "resumed_at": self.resumed_at,
            "process_peak_bytes": max(self.process_peak_bytes, high_water_bytes()),
        }
        _check_complete(run, state)
        try:
            with replacing(self.path) as file:
                digesting = _Digesting(file)
                digesting.save(state)
                file.write(digesting.digest.digest())
        except OSError as error:
            note = f"its state could not be saved in {self.path} ({error.strerror}), so an interruption costs more"
            self.notes += [] if note in self.notes else [note]
        self._saved_at = time.monotonic()

    def _key_of(self, run: Run) -> dict[str, str]:
        return {**self.key, "method": method_digest(type(run.method))}

    def _read(self, run: Run) -> dict[str, Any] | None:
        """Return the saved state; None when there is none, or one of another run, other code or another torch."""
        try:
            if not self.path.is_file():
                return None
            if not _is_whole(self.path):
                self.notes.append("its saved state was damaged, or of another version of clmem, so it began anew")
                return None
            state = torch.load(self.path, weights_only=True)
        except Exception:  # whatever is wrong with the file, the run can still start from its beginning
            return None
        return state if isinstance(state, dict) and state.get("key") == self._key_of(run) else None


class _Digesting:
    """Hands on what torch.save writes, and digests it. An error of the file below is raised as it was."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write like a file."""
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:  # torch would make a RuntimeError of it
            self._error = error
            raise

    def flush(self) -> None:
        """Do nothing: the file below is flushed when it is whole."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state with torch.save. Raises OSError if the file cannot take it."""
        try:
            torch.save(state, cast(IO[bytes], self))  # it writes and flushes, and does nothing else
        except Exception as error:
            if self._error is not None:
                raise self._error from error
            raise


def _is_whole(path: Path) -> bool:
    """Say whether a file ends with the digest of the rest."""
    digest = hashlib.sha256()
    left = path.stat().st_size - DIGEST_BYTES
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(left, 2**20))
            digest.update(block)
            left -= len(block)
            if not block:
                return False
        return file.read() == digest.digest()


def _check_complete(run: Run, state: Mapping[str, Any]) -> None:
    saved = {tensor.untyped_storage().data_ptr() for tensor in _tensors([state["method"], state["network"]])}
    declared = [tensor for tensors in run.method.memory_roles().values() for tensor in tensors]
    missing = [t for t in declared if t.untyped_storage().nbytes() and t.untyped_storage().data_ptr() not in saved]
    if missing:
        total = sum(tensor.untyped_storage().nbytes() for tensor in missing)
        raise ClmemError(
            f"method {run.method.name!r} declares {total:,} B in memory_roles() that its checkpoint does not hold (a "
            f"{missing[0].dtype} of shape {tuple(missing[0].shape)} for one), so an interrupted run could not go on: "
            "name the attribute in `checkpointed`"
        )


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def seconds_between_savings() -> float:
    """Return how often an accuracy run saves its state. Raises UsageError for what is no number of seconds."""
    text = os.environ.get(EVERY, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{EVERY} is {text!r} but must be seconds, between two savings of a run's state; 30 is usual")
    return seconds
