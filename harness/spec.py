"""What to run: a frozen, validated, hashable description of one run, and the id that names its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness.errors import nearest

Scalar = bool | int | float | str

TARGETS = {"cpu": "this machine's processor, counted by torch's CPU allocator"}
"""Where a run can be measured."""


def _sorted_items(value: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return dict(sorted(value.items()))


class RunSpec(BaseModel):
    """One run of one method over one stream.

    measure: `memory` (short schedule under the ledger, no seed to average over) or `accuracy` (the full stream).
    config: overrides of the method's typed hyper-parameters.
    replay_size: samples drawn from the buffer per step.
    steps_per_task: upper bound on optimizer-stepped batches per task and epoch; None runs them all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    config: Annotated[dict[str, Scalar], AfterValidator(_sorted_items)] = Field(default_factory=dict)
    stream: str = "split-fashion-mini"
    network: str = "resnet18"
    width: int = Field(64, ge=1, le=1024)
    target: str = "cpu"
    batch_size: int = Field(32, ge=1)
    buffer_size: int = Field(200, ge=0)
    replay_size: int = Field(32, ge=0)
    epochs: int = Field(1, ge=1)
    steps_per_task: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    measure: Literal["memory", "accuracy"] = "memory"

    def digest(self) -> str:
        """Return eight hex digits that change with any field."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_id(self) -> str:
        """Return a file-name-safe name, readable first and unique by its digest."""
        part = f"seed{self.seed}" if self.measure == "accuracy" else "memory"
        return f"{self.method}--{self.stream}--{part}--{self.digest()}"

    def cell(self) -> tuple[tuple[str, str], ...]:
        """Return what a memory run and its accuracy runs share: everything but the seed and what is measured.

        The length of training shapes accuracy, not memory, so it belongs to the cell only as a setting of the suite.
        """
        shared = self.model_dump(mode="json", exclude={"seed", "measure", "epochs", "steps_per_task"})
        return tuple((key, json.dumps(value, sort_keys=True)) for key, value in sorted(shared.items()))

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def spec_errors(error: ValidationError, known: list[str]) -> str:
    """Turn pydantic's error into one sentence: field, value, expectation; for an unknown key the nearest known ones."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no key {where!r}: {nearest(where, known)}")
        elif item["type"] == "missing":
            parts.append(f"the key {where!r} is missing")
        else:
            message = item["msg"]
            parts.append(f"{where} is {item['input']!r} but {message[0].lower()}{message[1:]}")
    return "; ".join(parts)
