"""What to run: a frozen, validated, hashable description of one run, and the id that names its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clmem.harness.errors import UsageError, expectation, nearest
from clmem.harness.files import expand, regular
from clmem.harness.specs.budgets import budget
from clmem.harness.specs.techniques import PLAIN, canonical
from clmem.harness.text import clean, file_name

LONGEST_TEXT = 200
"""Characters of a name, of a label and of a setting that is text."""

MOST_SAMPLES = 2**20
"""Samples of one batch or replay: 16 times what `fit` looks at, and a number of elements that torch can still count."""

MOST_CLASSES = 2**16
"""Three times as many as ImageNet-21k has."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 2048
"""Of images whose size can be chosen, in pixels."""

MOST_ERRORS = 5
"""Mistakes that one sentence names; more are counted."""


def _plain_text(value: str) -> str:
    if len(value) > LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"it should be one line of at most {LONGEST_TEXT} printable characters")
    return value


def _carried(value: object) -> object:
    """Refuse what JSON or torch cannot carry."""
    if isinstance(value, str):
        return _plain_text(value)
    if not isinstance(value, bool | int | float):
        raise ValueError("it should be a number, true, false or text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it should be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it should be a number of at most 64 bits")
    return value


Scalar = Annotated[bool | int | float | str, BeforeValidator(_carried)]
"""The value of a setting: a finite number, a truth value, or a line of text."""
Name = Annotated[str, AfterValidator(_plain_text)]
Measured = Literal["memory", "peak", "accuracy"]
"""What of a run is measured: its memory role by role, of its memory the tensor peak alone, or what it learns."""


def _sorted_items(value: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return dict(sorted(value.items()))


def _known_budget(value: str | None) -> str | None:
    if value is not None:
        try:
            budget(_plain_text(value))
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
    num_classes, image_size: of a synthetic stream, classes in all and pixels of a side; None is what its name says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Name = "resnet18"
    width: int = Field(64, ge=1, le=1024, strict=True)
    weights: str | None = None
    target: Name = "cpu"
    batch_size: int = Field(32, ge=1, le=MOST_SAMPLES, strict=True)
    buffer_size: int = Field(200, ge=0, lt=2**31, strict=True)
    replay_size: int = Field(32, ge=0, le=MOST_SAMPLES, strict=True)
    epochs: int = Field(1, ge=1, le=2**20, strict=True)
    steps_per_task: int | None = Field(None, ge=1, lt=2**31, strict=True)
    evaluate_on: Literal["test", "validation"] = "test"
    budget: Annotated[str | None, AfterValidator(_known_budget)] = None
    num_classes: int | None = Field(None, ge=2, le=MOST_CLASSES, strict=True)
    image_size: int | None = Field(None, ge=SMALLEST_SIDE, le=LARGEST_SIDE, strict=True)


class RunSpec(Conditions):
    """One run of one method over one stream.

    method: its name, or name@preset. config: overrides of the method's typed hyper-parameters. seed: one that torch's
    generators take.
    execution: how steps are carried out: `plain`, `lean` (the method's choice) or techniques as `key=value,key=value`.
    measure: `memory` (short schedule under the ledger, no seed to average over), `peak` (of that the truth pass alone)
    or `accuracy` (the full stream).
    """

    method: Name
    config: Annotated[dict[str, Scalar], AfterValidator(_sorted_items)] = Field(default_factory=dict)
    stream: Name = "split-fashion-mini"
    seed: int = Field(0, ge=0, lt=2**64, strict=True)
    execution: Annotated[str, AfterValidator(canonical)] = PLAIN
    measure: Measured = "memory"

    def digest(self) -> str:
        """Return eight hex digits that change with any field."""
        # what came later is left out where it says nothing new, so that older results keep their names
        later = {"execution": PLAIN, "budget": None, "num_classes": None, "image_size": None}
        default = {name for name, value in later.items() if getattr(self, name) == value}
        described = self.model_dump(mode="json", exclude=default)
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_id(self) -> str:
        """Return a file-name-safe name, readable first and unique by its digest."""
        part = f"seed{self.seed}" if self.measure == "accuracy" else self.measure
        lean = "" if self.execution == PLAIN else "--lean"
        return file_name(f"{self.method}--{self.stream}{lean}--{part}--{self.digest()}")

    @property
    def stream_title(self) -> str:
        """Return the stream with what was chosen of it, as in `synthetic-cifar10 (100 classes, 64 px)`.

        Runs whose streams have other titles learn from other data.
        """
        classes = "" if self.num_classes is None else f"{self.num_classes} classes"
        side = "" if self.image_size is None else f"{self.image_size} px"
        chosen = ", ".join(filter(None, (classes, side)))
        return f"{self.stream} ({chosen})" if chosen else self.stream

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
    others_bytes: int = Field(64 * 2**20, ge=0, lt=2**63)


LARGEST_WEIGHTS_BYTES = 16 * 2**30
"""Of a weights file: a sparse one of a terabyte would be hashed for hours."""

NOWHERE = Sources()
"""For runs that need no file but the ones clmem carries or finds by itself."""


def weights_label(path: str | Path) -> str:
    """Return `name@digest` of a weights file: the same for the same content wherever it lies.

    Raises UsageError for what is no regular file, larger than weights are, or cannot be read.
    """
    path = expand(path)
    size = regular(path, "the weights file")
    if size > LARGEST_WEIGHTS_BYTES:
        raise UsageError(
            f"the weights file {path} has {size:,} B, more than the {LARGEST_WEIGHTS_BYTES:,} that clmem reads; "
            "save the network's state dict alone"
        )
    try:
        found = path.stat()
        digest = _file_digest(str(path), found.st_ino, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"cannot read the weights file {path}: {error.strerror}; give the path of a file") from error
    return f"{clean(os.fsencode(path.name).decode('utf-8', 'replace'), LONGEST_TEXT)}@{digest}"


@lru_cache
def _file_digest(path: str, inode: int, size: int, modified_ns: int) -> str:
    """Return the digest of a file's content; a suite asks for every one of its runs."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):  # weights may be larger than the memory
            digest.update(block)
    return digest.hexdigest()[:12]


def spec_errors(error: ValidationError, known: Iterable[str]) -> str:
    """Turn pydantic's error into one sentence: field, value, expectation; for an unknown key the nearest known ones."""
    parts = []
    for item in error.errors()[:MOST_ERRORS]:
        where = clean(".".join(str(part) for part in item["loc"]), LONGEST_TEXT) or "value"
        message = expectation(item)
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no key {where!r}: {nearest(where, known)}")
        elif item["type"] == "missing":
            parts.append(f"the key {where!r} is missing")
        elif not item["loc"]:  # of the whole, which would be long to repeat
            parts.append(message)
        else:
            parts.append(f"{where} is {clean(repr(item['input']), 80)} but {message}")
    if error.error_count() > MOST_ERRORS:
        parts.append(f"and {error.error_count() - MOST_ERRORS} more")
    return "; ".join(parts)
