"""Shows how runs go on: in a terminal bars and the time left, elsewhere one line when a run begins and when it ends."""

from __future__ import annotations

from threading import Lock
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from clmem.harness.results.record import RunResult
from clmem.harness.runs.job import Pass
from clmem.harness.runs.runner import Present, Watcher
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.text import clean, some
from clmem.reports.data.units import mib, plural


class TimeLeft(ProgressColumn):
    """About how long the rest takes, if runs take as long as those that are done; empty before the first is."""

    def render(self, task: Task) -> Text:
        """Return the time, counted down from when the last run was done (the task's field `at`, in seconds)."""
        at = task.fields.get("at")
        if at is None or not task.total or not task.completed:
            return Text("")
        left = at / task.completed * (task.total - task.completed) - ((task.elapsed or at) - at)
        return Text(f"about {duration(left)} left" if left > 0 else "")


def duration(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 3 min, 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Bars(Watcher):
    """A rich progress display; a context manager. Results are printed above it as they come.

    announce: whether a line says what came out of a run; without a terminal one does so anyway, and another one says
    when a run begins.
    """

    def __init__(self, console: Console, total: int, announce: bool = True) -> None:
        self._lines_alone = not console.is_terminal
        self._announce = announce or self._lines_alone
        self._begun: set[str] = set()
        self._lock = Lock()
        self._lines: dict[tuple[str, Pass], TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
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
        elapsed = self._progress.tasks[0].elapsed  # of the bar for all runs, the first that was added
        self._progress.update(self._runs, completed=done, total=total, at=elapsed)
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
            if self._lines_alone:
                if spec.run_id not in self._begun:
                    self._begun.add(spec.run_id)
                    self._print(f"        begins: {named(spec)}")
                return
            key = (spec.run_id, what)
            if fields is None:
                if key in self._lines:
                    self._progress.remove_task(self._lines.pop(key))
                return
            if key not in self._lines:
                self._lines[key] = self._progress.add_task("", total=None)
            text = escape(f"  {clean(spec.method)} {what}: task {fields['task']} {clean(str(fields['phase']))}")
            self._progress.update(self._lines[key], description=text, completed=fields["steps"])


class Steps:
    """Says which of several steps is under way: in a terminal on one line that changes, elsewhere each on its own."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""
        self._status = console.status("begins")

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def show(self, step: str, detail: str) -> None:
        """Take note of the step; only a terminal shows the detail, which changes often."""
        if self._console.is_terminal:
            self._status.update(escape(f"{step}: {detail}"))
        elif step != self._last:
            self._console.print(step, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._last = step


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


def named(spec: RunSpec) -> str:
    """Return one line about a run: its method, stream and what is measured."""
    what = f"accuracy, seed {spec.seed}" if spec.measure == "accuracy" else spec.measure
    return f"{_name(spec)}: {what}"


def _name(spec: RunSpec) -> str:
    how = "" if spec.execution == PLAIN else f" ({spec.execution})"
    return clean(f"{spec.method}{how} on {spec.stream_title}")


def summary(result: RunResult) -> str:
    """Return one line: what was run and what came out."""
    spec, name = result.spec, _name(result.spec)
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
