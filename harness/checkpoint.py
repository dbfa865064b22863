"""A run's whole state in one file, so that it can go on in another process exactly where it was.

Written with `torch.save`, read with `weights_only=True`: nothing is ever unpickled. What a run's own code does not make
again from its spec is in it: weights, optimizer, the method's state and generator, the place in the stream, accuracies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.build import Run
from harness.environment import code_digest
from harness.errors import ClmemError
from harness.files import replacing
from harness.memory.process import high_water_bytes
from methods.base import Trunk

SCHEMA = 1

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


class Checkpoint:
    """The file of one run. It is only ever replaced whole.

    key: what must be equal for a checkpoint to be of use, beside the code and torch; another's is ignored.
    every_s: seconds between two savings. resumed_at: steps after which the run went on in a new process.
    process_peak_bytes: the highest resident memory of the processes before this one.
    """

    def __init__(self, path: Path, key: Mapping[str, str], every_s: float = 30.0) -> None:
        self.path = path
        self.key = {"schema": str(SCHEMA), "code": code_digest(), "torch": str(torch.__version__), **key}
        self.every_s = every_s
        self.resumed_at: list[int] = []
        self.process_peak_bytes = 0
        self._saved_at = time.monotonic()

    def restore(self, run: Run) -> Course:
        """Put a freshly built run where the file says, and return how far that is; without a file, the beginning."""
        state = self._read()
        if state is None:
            return Course()
        method, execution = run.method, run.execution
        method.load_state_dict(state["method"])
        method.network.load_state_dict(state["network"])
        method.trunk = None if state["trunk"] is None else Trunk(*state["trunk"])
        method.setting.rng.bit_generator.state = json.loads(state["rng"])
        execution.load_state_dict(state["execution"])
        run.stream.fingerprint = state["fingerprint"]
        course = Course(**state["course"])
        self.resumed_at = [*state["resumed_at"], course.steps]
        self.process_peak_bytes = state["process_peak_bytes"]
        return course

    def save_if_due(self, run: Run, course: Course) -> None:
        """Save when the last saving is `every_s` ago. Raises ClmemError for declared state that is not saved."""
        if time.monotonic() - self._saved_at < self.every_s:
            return
        method = run.method
        state = {
            "key": self.key,
            "method": method.state_dict(),
            "network": method.network.state_dict(),
            "trunk": None if method.trunk is None else [method.trunk.boundary, method.trunk.bn],
            "rng": json.dumps(method.setting.rng.bit_generator.state),
            "execution": run.execution.state_dict(),
            "fingerprint": run.stream.fingerprint,
            "course": asdict(course),
            "resumed_at": self.resumed_at,
            "process_peak_bytes": max(self.process_peak_bytes, high_water_bytes()),
        }
        _check_complete(run, state)
        with replacing(self.path) as file:
            torch.save(state, file)
        self._saved_at = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        """Return the saved state; None when there is none, or one of another run, other code or another torch."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception:  # whatever is wrong with the file, the run can still start from its beginning
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None


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
