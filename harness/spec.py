"""What to run: a frozen, validated, hashable description of one run, and the id that names its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness.budgets import budget
from harness.errors import UsageError, nearest
from harness.techniques import PLAIN, canonical

Scalar = bool | int | float | str
Measured = Literal["memory", "peak", "accuracy"]
"""What of a run is measured: its memory role by role, of its memory the tensor peak alone, or what it learns."""


def _sorted_items(value: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return dict(sorted(value.items()))


def _known_budget(value: str | None) -> str | None:
    if value is not None:
        try:
            budget(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
    return value


class Conditions(BaseModel):
    """What a run and a suite of runs have in common: under which conditions methods learn and are measured.

    weights: pretrained weights that the network starts from; a file in a suite, `name@digest` in a run.
    replay_size: samples drawn from the buffer per step.
    steps_per_task: upper bound on optimizer-stepped batches per task and epoch; None runs them all.
    budget: what the run may take, a board's name or bytes; None does not limit it.
    evaluate_on: the official test split, or a tenth of the training samples, which are then held out of training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = "resnet18"
    width: int = Field(64, ge=1, le=1024)
    weights: str | None = None
    target: str = "cpu"
    batch_size: int = Field(32, ge=1)
    buffer_size: int = Field(200, ge=0)
    replay_size: int = Field(32, ge=0)
    epochs: int = Field(1, ge=1)
    steps_per_task: int | None = Field(None, ge=1)
    evaluate_on: Literal["test", "validation"] = "test"
    budget: Annotated[str | None, AfterValidator(_known_budget)] = None


class RunSpec(Conditions):
    """One run of one method over one stream.

    method: its name, or name@preset. config: overrides of the method's typed hyper-parameters.
    execution: how steps are carried out: `plain`, `lean` (the method's preset) or techniques as `key=value,key=value`.
    measure: `memory` (short schedule under the ledger, no seed to average over), `peak` (of that the truth pass alone)
    or `accuracy` (the full stream).
    """

    method: str
    config: Annotated[dict[str, Scalar], AfterValidator(_sorted_items)] = Field(default_factory=dict)
    stream: str = "split-fashion-mini"
    seed: int = Field(0, ge=0)
    execution: Annotated[str, AfterValidator(canonical)] = PLAIN
    measure: Measured = "memory"

    def digest(self) -> str:
        """Return eight hex digits that change with any field."""
        # what came later is left out where it says nothing new, so that older results keep their names
        default = {name for name, value in (("execution", PLAIN), ("budget", None)) if getattr(self, name) == value}
        described = self.model_dump(mode="json", exclude=default)
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_id(self) -> str:
        """Return a file-name-safe name, readable first and unique by its digest."""
        part = f"seed{self.seed}" if self.measure == "accuracy" else self.measure
        lean = "" if self.execution == PLAIN else "--lean"
        return f"{self.method}--{self.stream}{lean}--{part}--{self.digest()}"

    def cell(self) -> tuple[tuple[str, str], ...]:
        """Return what a memory run and its accuracy runs share: everything but the seed and what is measured.

        The length of training shapes accuracy, not memory, so it belongs to the cell only as a setting of the suite.
        """
        shared = self.model_dump(mode="json", exclude={"seed", "measure", "epochs", "steps_per_task"})
        return tuple((key, json.dumps(value, sort_keys=True)) for key, value in sorted(shared.items()))

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Sources(BaseModel):
    """Where this machine keeps what a run reads. It is no part of what is measured.

    data_root: the folder of the data sets. weights: the file of pretrained weights. others_bytes: what other processes
    may hold on a GPU when a measurement starts; a desktop's own take more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_root: str | None = None
    weights: str | None = None
    others_bytes: int = Field(64 * 2**20, ge=0)


NOWHERE = Sources()
"""For runs that need no file but the ones clmem carries or finds by itself."""


def weights_label(path: str) -> str:
    """Return `name@digest` of a weights file: the same for the same content wherever it lies.

    Raises UsageError for a file that cannot be read.
    """
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read the weights file {path}: {error.strerror}; give the path of a file") from error
    return f"{Path(path).name}@{digest[:12]}"


def spec_errors(error: ValidationError, known: list[str]) -> str:
    """Turn pydantic's error into one sentence: field, value, expectation; for an unknown key the nearest known ones."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no key {where!r}: {nearest(where, known)}")
        elif item["type"] == "missing":
            parts.append(f"the key {where!r} is missing")
        elif not item["loc"]:  # of the whole, which would be long to repeat
            parts.append(item["msg"].removeprefix("Value error, "))
        else:
            message = item["msg"].removeprefix("Value error, ")
            parts.append(f"{where} is {item['input']!r} but {message[0].lower()}{message[1:]}")
    return "; ".join(parts)
