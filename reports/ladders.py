"""One method carried out in several ways: as released, plainly, with one technique after the other, lean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clmem.harness.results.record import Footprint, RunResult
from clmem.harness.specs.techniques import INEXACT, LEAN, PLAIN, Techniques
from clmem.reports.cells import Cell, Section
from clmem.reports.markup import plain
from clmem.reports.tables import markdown_table, shown_roles
from clmem.reports.units import count, mib, share

RELEASED = "@released"


@dataclass(frozen=True)
class Rung:
    """One execution of a method. added: what it does beyond the rung before. lean: it is the method's preset."""

    added: str
    lean: bool
    footprint: Footprint

    @property
    def peak_bytes(self) -> int:
        """Return the tensor peak."""
        return self.footprint.peak_bytes


@dataclass(frozen=True)
class Ladder:
    """A method with equal settings in two or more executions, from the one that does least to lean."""

    label: str
    rungs: tuple[Rung, ...]

    @property
    def plain(self) -> Rung | None:
        """Return the plain execution, None where it was not measured."""
        return next((rung for rung in self.rungs if rung.added == PLAIN), None)

    @property
    def lean(self) -> Rung | None:
        """Return the method's own lean preset, None where it was not measured."""
        return next((rung for rung in self.rungs if rung.lean), None)


def ladders(section: Section) -> list[Ladder]:
    """Return the methods of a section that were measured in more than one execution, largest peak first."""
    groups: dict[tuple[Any, ...], list[tuple[RunResult, Footprint]]] = {}
    for _, run, footprint in section.measured:
        method, *config = _settings(run)
        key = (method.removesuffix(RELEASED), *config)
        groups.setdefault(key, []).append((run, footprint))
    return [_ladder(runs) for runs in groups.values() if len({run.spec.execution for run, _ in runs}) > 1]


def ends(section: Section) -> Section:
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


def _ladder(runs: list[tuple[RunResult, Footprint]]) -> Ladder:
    def place(found: tuple[RunResult, Footprint]) -> tuple[bool, bool, int, int]:
        run, footprint = found
        last = run.spec.execution == LEAN
        return not run.spec.method.endswith(RELEASED), last, len(_techniques(run)), -footprint.peak_bytes

    ordered = sorted(runs, key=place)
    rungs = []
    before: Mapping[str, Any] | None = None
    for run, footprint in ordered:
        released = run.spec.method.endswith(RELEASED)
        rungs.append(Rung(_added(run, before), run.spec.execution == LEAN and not released, footprint))
        before = None if released else _techniques(run)
    spec = ordered[-1][0].spec
    settings = ", ".join(f"{key}={value}" for key, value in spec.config.items())
    return Ladder(f"{spec.method} ({settings})" if settings else spec.method, tuple(rungs))


def _techniques(run: RunResult) -> dict[str, Any]:
    known = {name: value for name, value in run.execution.items() if name in Techniques.model_fields}
    return Techniques.model_validate(known).changed()


def _added(run: RunResult, before: Mapping[str, Any] | None) -> str:
    """Return how a run was carried out, as what it adds to the techniques before where it keeps all of those."""
    chosen = _techniques(run)
    if run.spec.method.endswith(RELEASED):
        return " ".join(["released", *_spoken(chosen)])
    if not chosen:
        return PLAIN
    lean = run.spec.execution == LEAN
    if before is None or not before.keys() <= chosen.keys():
        return LEAN if lean else " ".join(_spoken(chosen))
    new = {name: value for name, value in chosen.items() if before.get(name) != value}
    return " ".join([*([f"{LEAN}:"] if lean else []), "+", *_spoken(new)])


def _spoken(chosen: Mapping[str, Any]) -> list[str]:
    shown = [(name, name if value is True else f"{name}={value}") for name, value in chosen.items()]
    return [f"{text} (inexact)" if name in INEXACT else text for name, text in shown]


def ladder_table(section: Section) -> str:
    """Return bytes by role at the peak in MiB for every method and execution; empty where all ran in one way only."""
    rows, found = [], ladders(section)
    shown = shown_roles(rung.footprint for ladder in found for rung in ladder.rungs)
    for ladder in found:
        plain = ladder.plain
        for rung in ladder.rungs:
            roles = [mib(rung.footprint.at_peak.get(role, 0)) for role in shown]
            part = "" if plain is None else share(rung.peak_bytes, plain.peak_bytes)
            rows.append([ladder.label, rung.added, *roles, mib(rung.peak_bytes), count(rung.peak_bytes), part])
    return markdown_table(["method", "execution", *shown, "total MiB", "total bytes", "of plain"], rows, left=2)


def ladder_sentence(section: Section) -> str:
    """Say how far lean execution reduces the tensor peak, where it gains least and where most."""
    known = [
        (ladder.lean.peak_bytes / ladder.plain.peak_bytes, ladder.label)
        for ladder in ladders(section)
        if ladder.lean is not None and ladder.plain is not None and ladder.plain.peak_bytes
    ]
    if not known:
        return "No method was measured both plainly and lean."
    (least, most) = max(known), min(known)
    if least == most:
        return f"Lean, {plain(most[1])} holds {100 * most[0]:.0f} % of its plain peak."
    return (
        f"Lean, a method holds between {100 * most[0]:.0f} % ({plain(most[1])}) and "
        f"{100 * least[0]:.0f} % ({plain(least[1])}) of its plain peak."
    )
