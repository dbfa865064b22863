"""What came out: one JSON per run, written atomically. Torch is never imported here, so reports can read it.

Bytes are integers and end in `_bytes`, seconds end in `_s`. A key that older results lack has a default;
any other change of the form bumps SCHEMA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from clmem.harness.errors import UsageError, expectation
from clmem.harness.files import read_text, write_json
from clmem.harness.results.footprint import (
    PHASES,
    ROLES,
    Allocator,
    ByName,
    Count,
    Footprint,
    Many,
    PhaseFootprint,
    Process,
    Real,
    Record,
    Seconds,
    Timeline,
    Unified,
)
from clmem.harness.specs.run import RunSpec
from clmem.harness.text import Said, clean

__all__ = [
    "LARGEST_BYTES",
    "LONGEST_PATH",
    "PHASES",
    "RESULT_FILES",
    "ROLES",
    "SCHEMA",
    "Accuracy",
    "Allocator",
    "Footprint",
    "PhaseFootprint",
    "Process",
    "RunResult",
    "Status",
    "Timeline",
    "Unified",
    "distinct",
    "load_result",
    "load_results",
    "save_result",
]

SCHEMA = 1

Status = Literal["ok", "oom", "timeout", "crashed", "diverged"]

DEEPEST = 16
"""Levels of nested values in an environment or a method's configuration."""


MOST_VALUES = 1000
"""Values in one of them, those that hold others as well."""


def described(value: Any) -> Any:
    """Return a nested value with every text in it cleaned, keys as well. Raises ValueError for what is not stored."""
    return _cleaned(value, count(1), 0)


def _cleaned(value: Any, counter: Iterator[int], depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    if next(counter) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it holds a number of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds {value}, which JSON cannot carry")
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(item, counter, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item, counter, depth + 1) for item in value]
    return value


Described = Annotated[dict[str, Any], BeforeValidator(described)]
"""What others say of themselves by name: versions, devices, settings."""

Row = Many[Real | None]

LONGEST_PATH = 4096
"""Characters of a path in a message; systems take no longer one."""

LARGEST_BYTES = 16 * 2**20
"""Of a result file: 200 times what the largest has that is published."""

MOST_KEYS = 10_000
"""Of one object in a file: phases, operations, settings."""

RESULT_FILES = "[!.]*--*.json"
"""How results are named."""

BEGINNING_BYTES = 512
"""In so many bytes a result has said its schema and its run."""
"""Files that hold results. Hidden ones do not: other systems leave such beside copies."""

AGAIN = "move it away and run it again"


class Accuracy(Record):
    """Accuracy matrices `R[t][i]`: on task i after task t, None where not evaluated. A joint run has one row.

    class_il is None for a method that is only defined in task-IL. untrained: the same network before training.
    """

    class_il: Many[Row] | None
    task_il: Many[Row] | None
    untrained_class_il: Row | None
    untrained_task_il: Row | None


class RunResult(Record):
    """One run, whatever became of it. `reason` says in one sentence why the status is not ok.

    checks: broken promises that do not void the numbers but must be shown (empty when all is well).
    fingerprint: digest of every training batch consumed, in order. data_digest: of the data set itself.
    execution: how the steps were carried out. joint: whether all tasks were learnt at once.
    weights: what of the pretrained weights was loaded and what left out, None without any.
    metrics: names carry their variant (`class_il_accuracy` ...).
    phase_s: seconds spent in each phase. wall_s: of the last process, after an interruption.
    resumed_at: the steps after which an interrupted run went on in a new process.
    flops_per_step: of one steady training step, counted by torch.utils.flop_counter.
    code: digests of the source that ran, `method` (with its bases), `network` of another package, and `measuring`;
    empty in results of older versions.
    notes: what did not work and moved no number, such as a state that could not be saved.
    """

    schema_version: int = Field(SCHEMA, alias="schema")
    run_id: str
    spec: RunSpec
    method_config: Described = Field(default_factory=dict)
    execution: Described = Field(default_factory=dict)
    joint: bool = False
    weights: Said | None = None
    status: Status = "ok"
    reason: Said | None = None
    checks: Many[Said] = Field(default_factory=list)
    footprint: Footprint | None = None
    allocator: Allocator | None = None
    observer_delta_bytes: int | None = None
    process: Process | None = None
    accuracy: Accuracy | None = None
    metrics: ByName[Real] = Field(default_factory=dict)
    flops_per_step: Count | None = None
    phase_s: ByName[Seconds] = Field(default_factory=dict)
    wall_s: Seconds = 0.0
    steps: Count = 0
    resumed_at: Many[Count] = Field(default_factory=list)
    fingerprint: Said | None = None
    data_digest: Said | None = None
    environment: Described = Field(default_factory=dict)
    code: ByName[Said] = Field(default_factory=dict)
    notes: Many[Said] = Field(default_factory=list)

    _path: Path | None = PrivateAttr(None)

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @property
    def where(self) -> str:
        """Return the file it was read from, for messages; of a result that was not read, its run id."""
        return clean(self.run_id if self._path is None else str(self._path), LONGEST_PATH)

    def __eq__(self, other: object) -> bool:
        """Compare what came out. Where a result was read says nothing about it."""
        return isinstance(other, RunResult) and self.model_dump() == other.model_dump()


def save_result(directory: Path, result: RunResult) -> Path:
    """Write one result file into `directory`, atomically; return its path."""
    path = directory / f"{result.run_id}.json"
    return write_json(path, result.model_dump(mode="json", by_alias=True))


def load_result(path: Path) -> RunResult:
    """Read one result file, the only way that any command does.

    Raises UsageError of one sentence for a file that is none, is not named after its run, or contradicts itself.
    """
    # it reads the records of this file
    from clmem.harness.results.consistency import first_fault

    try:
        result = _read(path)
    except RecursionError as error:
        raise _refused(path, "it is nested too deeply to be read", AGAIN) from error
    fault = first_fault(result)
    if fault is not None:
        raise _refused(path, fault, AGAIN)
    if path.name != f"{result.run_id}.json":
        shown = clean(str(path), LONGEST_PATH)
        if result.run_id in path.name:
            raise UsageError(f"{shown} looks like a copy of {result.run_id}.json, which counts once; delete the copy")
        raise UsageError(f"{shown} holds the run {result.run_id}; name the file after its run, or delete it")
    result._path = path
    return result


def _read(path: Path) -> RunResult:
    try:
        text = read_text(path, "the result", LARGEST_BYTES)
    except UsageError as error:  # it names the path as the system spells it
        raise UsageError(clean(str(error), LONGEST_PATH)) from error
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_object)
        _check_schema(path, value)
        return RunResult.model_validate(value)
    except ValidationError as error:
        raise _refused(path, _first(error), AGAIN) from error
    except ValueError as error:
        raise _refused(path, f"it is not JSON as clmem writes it ({error})", AGAIN) from error


def load_results(directory: Path) -> Iterator[RunResult]:
    """Yield every result in a results directory, by file name.

    Raises UsageError for the first that is none, and for a result under a name that results do not have.
    """
    paths = set(directory.glob(RESULT_FILES))
    others = (path for path in directory.glob("[!.]*.json") if path not in paths)
    for path in sorted([*paths, *filter(_begins_like_a_result, others)]):
        yield load_result(path)


def _begins_like_a_result(path: Path) -> bool:
    """Say whether a file is a result by its first keys; what cannot be read is none."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(BEGINNING_BYTES)
    except OSError:
        return False
    return start.lstrip().startswith(b"{") and all(key in start for key in (b'"schema"', b'"run_id"'))


def distinct(results: Iterable[RunResult]) -> list[RunResult]:
    """Return results of several directories without those that say the same, of which the first stays.

    Raises UsageError for two results of one run that differ, because only one of them can be right.
    """
    kept: dict[str, RunResult] = {}
    for result in results:
        other = kept.setdefault(result.run_id, result)
        if other != result:
            raise UsageError(
                f"{other.where} and {result.where} are results of one run but differ in {_difference(other, result)}; "
                "give only one of their directories, or delete one of the two"
            )
    return list(kept.values())


def _difference(one: RunResult, other: RunResult) -> str:
    ours, theirs = one.model_dump(mode="json"), other.model_dump(mode="json")
    return next(key for key in ours if ours[key] != theirs[key])


def _check_schema(path: Path, value: object) -> None:
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        shown = clean(repr(schema), 40)
        fault = "it names no schema" if schema is None else f"its schema is {shown} and this clmem reads {SCHEMA}"
        raise _refused(path, fault, "move it away and run again, or use the version of clmem that wrote it")


def _first(error: ValidationError) -> str:
    """Return the first of pydantic's findings in a few words: where, the value, what was expected."""
    found = error.errors(include_url=False)[0]
    where = clean(".".join(str(part) for part in found["loc"]) or "the file", 120)
    if found["type"] == "extra_forbidden":
        return f"it has a key {where!r}, which results of schema {SCHEMA} have not"
    if found["type"] == "missing":
        return f"its key {where!r} is missing"
    shown = clean(repr(found["input"]), 60)
    return f"{where} is {shown} but {clean(expectation(found), 200)}"


def _refused(path: Path, fault: str, advice: str) -> UsageError:
    return UsageError(f"{clean(str(path), LONGEST_PATH)} is not a whole result file: {clean(fault)}; {advice}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # each wrong key gets a message of its own, which for millions of them takes gigabytes
    if len(pairs) > MOST_KEYS:
        raise ValueError(f"something in it has {len(pairs):,} keys, more than {MOST_KEYS:,}")
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it says {clean(repr(key), 60)} twice")
        found[key] = value
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{clean(text, 40)} is larger than any number")
    return value
