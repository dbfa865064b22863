"""One method carried out in several ways: as released, plainly, with one technique after the other, lean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clmem.harness.results.record import Footprint, RunResult
from clmem.harness.specs.techniques import LEAN, PLAIN
from clmem.harness.techniques.registry import TECHNIQUES, Techniques
from clmem.reports.data.grouping import Cell, Section

RELEASED = "released"
"""The preset of methods that hold what their released code holds."""


@dataclass(frozen=True)
class OneExecution:
    """One execution of a method. added: what it does beyond the way before. lean: it is the method's preset."""

    added: str
    lean: bool
    footprint: Footprint

    @property
    def peak_bytes(self) -> int:
        """Return the tensor peak."""
        return self.footprint.peak_bytes


@dataclass(frozen=True)
class Executions:
    """A method with equal settings in two or more executions, from the one that does least to lean."""

    label: str
    ways: tuple[OneExecution, ...]

    @property
    def plain(self) -> OneExecution | None:
        """Return the plain execution, None where it was not measured."""
        return next((way for way in self.ways if way.added == PLAIN), None)

    @property
    def lean(self) -> OneExecution | None:
        """Return the method's own lean preset, None where it was not measured."""
        return next((way for way in self.ways if way.lean), None)


def executions_of(section: Section) -> list[Executions]:
    """Return the methods of a section that were measured in more than one execution, largest peak first."""
    groups: dict[tuple[Any, ...], list[tuple[RunResult, Footprint]]] = {}
    for _, run, footprint in section.measured:
        method, *config = _settings(run)
        key = (method.removesuffix(f"@{RELEASED}"), *config)
        groups.setdefault(key, []).append((run, footprint))
    return [_executions(runs) for runs in groups.values() if len({run.spec.execution for run, _ in runs}) > 1]


def without_steps_between(section: Section) -> Section:
    """Return a section without the steps between plain and lean of methods that were measured both ways.

    What ran in fewer ways, failed, or has an accuracy too, stays.
    """
    ways: dict[object, set[str]] = {}
    for cell in section.cells:
        if cell.memory is not None:
            ways.setdefault(_settings(cell.memory), set()).add(cell.memory.spec.execution)

    def stays(cell: Cell) -> bool:
        run = cell.memory
        if run is None or len(cell.runs) > 1 or run.spec.execution in (PLAIN, LEAN):
            return True
        return not {PLAIN, LEAN} <= ways[_settings(run)]

    return replace(section, cells=tuple(cell for cell in section.cells if stays(cell)))


def _settings(run: RunResult) -> tuple[str, ...]:
    return run.spec.method, *sorted(map(str, run.spec.config.items()))


def _executions(runs: list[tuple[RunResult, Footprint]]) -> Executions:
    def place(found: tuple[RunResult, Footprint]) -> tuple[bool, bool, int, int]:
        run, footprint = found
        last = run.spec.execution == LEAN
        return not run.spec.method.endswith(f"@{RELEASED}"), last, len(techniques_of(run)), -footprint.peak_bytes

    ordered = sorted(runs, key=place)
    ways = []
    before: Mapping[str, Any] | None = None
    for run, footprint in ordered:
        released = run.spec.method.endswith(f"@{RELEASED}")
        ways.append(OneExecution(_added(run, before), run.spec.execution == LEAN and not released, footprint))
        before = None if released else techniques_of(run)
    spec = ordered[-1][0].spec
    settings = ", ".join(f"{key}={value}" for key, value in spec.config.items())
    return Executions(f"{spec.method} ({settings})" if settings else spec.method, tuple(ways))


def techniques_of(run: RunResult) -> dict[str, Any]:
    """Return the techniques by which a run was carried out, without those that it left alone."""
    known = {name: value for name, value in run.execution.items() if name in Techniques.model_fields}
    return Techniques.model_validate(known).changed()


def _added(run: RunResult, before: Mapping[str, Any] | None) -> str:
    """Return how a run was carried out, as what it adds to the techniques before where it keeps all of those."""
    chosen = techniques_of(run)
    if run.spec.method.endswith(f"@{RELEASED}"):
        return " ".join([RELEASED, *_spoken(chosen)])
    if not chosen:
        return PLAIN
    lean = run.spec.execution == LEAN
    if before is None or not before.keys() <= chosen.keys():
        return LEAN if lean else " ".join(_spoken(chosen))
    new = {name: value for name, value in chosen.items() if before.get(name) != value}
    return " ".join([*([f"{LEAN}:"] if lean else []), "+", *_spoken(new)])


def _spoken(chosen: Mapping[str, Any]) -> list[str]:
    shown = [(name, name if value is True else f"{name}={value}") for name, value in chosen.items()]
    return [text if TECHNIQUES[name].exact else f"{text} (inexact)" for name, text in shown]
