"""What must agree inside one result: sums, highest values, lengths, metrics. Damaged or edited files disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain

from pydantic import ValidationError

from clmem.harness.errors import UsageError, expectation
from clmem.harness.results.memory_consistency import memory_faults, phase_faults
from clmem.harness.results.metrics import scenario_metrics
from clmem.harness.results.record import (
    Accuracy,
    RunResult,
)
from clmem.harness.results.source import own_methods
from clmem.harness.specs.run import Measured, RunSpec
from clmem.harness.specs.techniques import LEAN, techniques
from clmem.harness.streams.catalog import lookup
from clmem.harness.techniques.registry import Techniques
from clmem.harness.text import clean

PROMISED: Mapping[Measured, tuple[str, ...]] = {
    "memory": ("footprint", "allocator", "observer_delta_bytes"),
    "peak": ("allocator",),
    "accuracy": ("accuracy",),
}
"""What a run that is ok has, by what it measures."""


def first_fault(result: RunResult) -> str | None:
    """Return in a few words the first thing that disagrees inside a result, with both values; None where all agrees."""
    return next(_faults(result), None)


def _faults(result: RunResult) -> Iterator[str]:
    yield from _unprintable(result.spec)
    if result.run_id != result.spec.run_id:
        yield f"its run id is {result.run_id!r} but its spec gives {result.spec.run_id!r}"
    yield from _status(result)
    yield from _seconds(result)
    yield from _config(result)
    yield from _execution(result)
    yield from memory_faults(result)
    yield from _metrics(result)


def _unprintable(spec: RunSpec) -> Iterator[str]:
    """Name what of a spec is no single line of text; it is printed and shown as it is."""
    for key, value in (*spec, *spec.config.items()):
        for text in (key, value):
            # not one character may change, but runs of spaces, which a file of weights may have in its name
            spaced = text.replace(" ", "_") if isinstance(text, str) else ""
            if clean(spaced) != spaced:
                yield f"the spec's {clean(key, 40)} is {clean(str(text), 80)!r}, which is no single line of plain text"


def _status(result: RunResult) -> Iterator[str]:
    if result.status != "ok":
        if not result.reason:
            yield f"its status is {result.status!r} but it gives no reason"
        return
    noise = result.spec.stream.startswith("synthetic-")  # on which there is nothing to be right about
    for name in PROMISED[result.spec.measure]:
        if getattr(result, name) is None and not (noise and name == "accuracy"):
            yield f"its status is 'ok' but it has no {name}, as runs that measure {result.spec.measure} have"
    for name in ("fingerprint", "data_digest"):
        if getattr(result, name) is None:
            yield f"its status is 'ok' but it has no {name}"


def _seconds(result: RunResult) -> Iterator[str]:
    for phase, seconds in (("wall_s", result.wall_s), *result.phase_s.items()):
        if seconds < 0:
            yield f"it says that {clean(phase, 40)} took {seconds} s"
    for phase in result.phase_s:
        yield from phase_faults("phase_s", phase)


def _config(result: RunResult) -> Iterator[str]:
    """Hold the settings that the spec overrides against those that were used; other packages may convert theirs."""
    died = result.status != "ok" and not result.method_config  # before its method was built
    if died or result.spec.method.partition("@")[0] not in own_methods():
        return
    for key, value in result.spec.config.items():
        used = result.method_config.get(key)
        if isinstance(value, str) and isinstance(used, int | float):  # pydantic reads numbers in text
            continue
        if used != (clean(value) if isinstance(value, str) else value):
            yield (
                f"method_config.{clean(key, 40)} is {clean(repr(used), 60)} but the spec sets {clean(repr(value), 60)}"
            )


def _execution(result: RunResult) -> Iterator[str]:
    """Hold what was carried out against its label; what a method's own preset was can only be asked of its class."""
    if not result.execution:  # it died before its method was built
        return
    try:
        used = Techniques.model_validate(
            {key: result.execution[key] for key in Techniques.model_fields if key in result.execution}
        )
        named = techniques(result.spec.execution, {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = clean(".".join(map(str, first["loc"])), 40)
        yield f"execution.{name} is {clean(repr(first['input']), 60)} but {expectation(first)}"
        return
    except UsageError as error:
        yield str(error)
        return
    has_preset = LEAN in result.spec.execution.split(",")
    for key in named.model_fields_set if has_preset else Techniques.model_fields:
        if getattr(used, key) != getattr(named, key):
            yield (
                f"execution.{key} is {getattr(used, key)!r} but the spec's label "
                f"{clean(result.spec.execution, 80)!r} means {getattr(named, key)!r}"
            )
    if result.execution.get("exact", True) is not used.is_exact:
        yield f"execution.exact should be {used.is_exact} for the techniques that it names"


def _matrices(result: RunResult, accuracy: Accuracy) -> Iterator[str]:
    """Hold the matrices against the stream's number of tasks, where its name tells."""
    if result.status == "ok" and accuracy.class_il is None and accuracy.task_il is None:
        yield "its status is 'ok' but it has neither accuracy.class_il nor accuracy.task_il"
    try:
        tasks = lookup(result.spec.stream).num_tasks
    except UsageError:  # a folder, or a stream of another version
        return
    rows = 1 if result.joint else tasks
    for name, matrix in (("class_il", accuracy.class_il), ("task_il", accuracy.task_il)):
        if matrix is not None and [len(row) for row in matrix] != [tasks] * rows:
            kind = "a joint run" if result.joint else "a run"
            width = len(matrix[0]) if matrix else 0
            yield f"accuracy.{name} is {len(matrix)} x {width} but {kind} over {tasks} tasks gives {rows} x {tasks}"
    for name, row in (("class_il", accuracy.untrained_class_il), ("task_il", accuracy.untrained_task_il)):
        if row is not None and len(row) != tasks:
            yield f"accuracy.untrained_{name} has {len(row)} accuracies but the stream has {tasks} tasks"


def _metrics(result: RunResult) -> Iterator[str]:
    found: dict[str, float] = {}
    if result.accuracy is not None:
        accuracy = result.accuracy
        for untrained in (accuracy.untrained_class_il, accuracy.untrained_task_il):
            wrong = [value for value in untrained or [] if value is not None and not 0.0 <= value <= 1.0]
            if wrong:
                yield f"an accuracy before training is {wrong[0]}, which is no fraction between 0 and 1"
        try:
            found = scenario_metrics(accuracy)
        except ValueError as error:
            yield str(error)
        yield from _matrices(result, accuracy)
    for name in chain(found, result.metrics):
        stored, computed = result.metrics.get(name), found.get(name)
        if stored is None or computed is None or not math.isclose(stored, computed, rel_tol=0.0, abs_tol=1e-9):
            yield f"the metric {clean(name, 60)!r} is {stored} but the accuracies give {computed}"
