"""Draws a suite's progress in a terminal: one bar for the runs, one line for each process at work."""

from __future__ import annotations

from threading import Lock
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from clmem.harness.results.record import RunResult
from clmem.harness.runs.job import Pass
from clmem.harness.runs.runner import Present, Watcher
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.text import clean, some
from clmem.reports.data.units import mib, plural


class Bars(Watcher):
    """A rich progress display; a context manager. Results are printed above it as they come."""

    def __init__(self, console: Console, total: int, announce: bool = True) -> None:
        self._announce = announce
        self._lock = Lock()
        self._lines: dict[tuple[str, Pass], TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._runs = self._progress.add_task("runs", total=total)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begins(self, present: Present) -> None:
        """Print what was there already and what of it is measured again."""
        for line in already_there(present):
            self._print(line)

    def run_done(self, result: RunResult, done: int, total: int) -> None:
        """Move the bar and print one line about the run."""
        self._progress.update(self._runs, completed=done, total=total)
        if self._announce:
            self._print(f"{done:3d}/{total} {summary(result)}")
            for note in result.notes:
                self._print(f"        note: {note}")

    def _print(self, line: str) -> None:
        # what runs say of themselves is no markup: `[/red]` would raise and `[enforce fail]` vanish
        self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def progress(self, spec: RunSpec, what: Pass, fields: dict[str, Any] | None) -> None:
        """Show where a pass is."""
        with self._lock:
            key = (spec.run_id, what)
            if fields is None:
                if key in self._lines:
                    self._progress.remove_task(self._lines.pop(key))
                return
            if key not in self._lines:
                self._lines[key] = self._progress.add_task("", total=None)
            text = escape(f"  {clean(spec.method)} {what}: task {fields['task']} {clean(str(fields['phase']))}")
            self._progress.update(self._lines[key], description=text, completed=fields["steps"])


def already_there(present: Present) -> list[str]:
    """Return sentences about the results that a directory held before; none where it was empty."""
    lines = []
    again = present.failed + present.unwanted + len(present.changed) + present.measuring_changed + present.elsewhere
    if present.unwanted:
        lines.append(f"{present.unwanted} of {plural(present.total, 'result')} were there already: measuring again")
    elif present.kept or again:
        lines.append(f"{present.kept} of {plural(present.total, 'result')} were there already")
    if present.failed:
        lines.append(f"{plural(present.failed, 'run')} failed before: trying again")
    if present.ended_badly:
        lines.append(f"{plural(present.ended_badly, 'run')} of those had crashed or took too long: --retry tries again")
    if present.changed:
        lines.append(f"{some(present.changed)} changed since then: measuring again")
    if present.measuring_changed:
        were = "was" if present.measuring_changed == 1 else "were"
        number = plural(present.measuring_changed, "result")
        lines.append(f"{number} {were} measured by other code of clmem: measuring again")
    if present.elsewhere:
        were = "was" if present.elsewhere == 1 else "were"
        number = plural(present.elsewhere, "result")
        lines.append(
            f"{number} {were} measured with another torch, processor or allocator setting: measuring again "
            "(--keep-old keeps what is there)"
        )
    if present.undated:
        lines.append(f"{present.undated} of those kept do not say which code measured them")
    return lines


def summary(result: RunResult) -> str:
    """Return one line: what was run and what came out."""
    spec = result.spec
    how = "" if spec.execution == PLAIN else f" ({spec.execution})"
    name = f"{spec.method}{how} on {spec.stream}"
    if result.status != "ok":
        return f"{name}: {result.status}: {result.reason}"
    if result.footprint is not None:
        return f"{name}: peak {mib(result.footprint.peak_bytes)} MiB in {result.footprint.peak_phase}"
    if spec.measure == "peak" and result.allocator is not None:
        sizes = f"batch {spec.batch_size}, replay {spec.replay_size}"
        return f"{name}, {sizes}: peak {mib(result.allocator.peak_bytes)} MiB"
    shown = [
        f"{scenario} {100 * value:.1f} %"
        for scenario in ("class-IL", "task-IL")
        if (value := _accuracy(result, scenario)) is not None
    ]
    return f"{name}, seed {spec.seed}: {', '.join(shown) or 'done'}"


def _accuracy(result: RunResult, scenario: str) -> float | None:
    return result.metrics.get(f"{scenario.lower().replace('-', '_')}_accuracy")
