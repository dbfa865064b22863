"""Cells (one method under one setting) and sections (the cells that may stand in one table)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clmem.harness.errors import UsageError
from clmem.harness.results.record import Footprint, RunResult
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.text import file_name
from clmem.reports.data.units import Statistic

Length = tuple[int, int | None]
"""How long a run trains: epochs per task, and the upper bound on steps per task and epoch."""


@dataclass(frozen=True, order=True)
class Setting:
    """What all rows of one table have in common.

    stream: its title. weights: what it starts from, empty when drawn. budget: what runs may take, empty without a
    limit.
    """

    stream: str
    network: str
    width: int
    target: str
    batch_size: int
    buffer_size: int
    replay_size: int
    weights: str
    evaluate_on: str
    budget: str

    @classmethod
    def of(cls, result: RunResult) -> Setting:
        """Return the setting of a run."""
        spec = result.spec
        fields = {name: getattr(spec, name) for name in cls.__dataclass_fields__}
        return cls(
            **{
                **fields,
                "stream": spec.stream_title,
                "weights": fields["weights"] or "",
                "budget": fields["budget"] or "",
            }
        )

    @property
    def title(self) -> str:
        """Return e.g. "split-cifar10, resnet18 (width 64), cpu, batch 32, buffer 200, replay 32"."""
        return (
            f"{self.stream}, {self.network} (width {self.width}), {self.target}, "
            f"batch {self.batch_size}, buffer {self.buffer_size}, replay {self.replay_size}"
            + (f", weights {self.weights}" if self.weights else "")
            + (f", budget {self.budget} (emulated)" if self.budget else "")
            + (", evaluated on held-out training samples" if self.evaluate_on == "validation" else "")
        )

    @property
    def slug(self) -> str:
        """Return the name of a file, unique among settings, whatever the results say of themselves."""
        return file_name(
            f"{self.stream}-{self.network}-w{self.width}-{self.target}"
            f"-batch{self.batch_size}-buffer{self.buffer_size}-replay{self.replay_size}"
            + (f"-{self.weights}" if self.weights else "")
            + (f"-{self.budget.replace(' ', '')}" if self.budget else "")
            + ("-validation" if self.evaluate_on == "validation" else "")
        )


@dataclass(frozen=True)
class Cell:
    """One method under one setting: its memory run and its accuracy runs, one per seed.

    memory: the memory run that succeeded, if any. accuracy: the accuracy runs that succeeded, by seed.
    failed: the others. joint: learns all tasks at once, in a batch order of its own.
    length: how long the accuracy runs train, None without any. Numbers are only ever taken from successful runs.
    """

    label: str
    method: str
    memory: RunResult | None
    accuracy: tuple[RunResult, ...]
    failed: tuple[RunResult, ...]
    joint: bool
    length: Length | None

    @property
    def is_plain(self) -> bool:
        """Tell whether its steps are carried out plainly."""
        return all(run.spec.execution == PLAIN for run in self.runs)

    @property
    def runs(self) -> tuple[RunResult, ...]:
        """Return every run of the cell: memory, accuracy by seed, failed."""
        memory = () if self.memory is None else (self.memory,)
        return memory + self.accuracy + self.failed

    @property
    def tensor_peak_bytes(self) -> int | None:
        """Return the allocator's peak with nothing instrumented, None where that was not measured."""
        if self.memory is None or self.memory.allocator is None:
            return None
        return self.memory.allocator.peak_bytes

    @property
    def later_peak_bytes(self) -> int | None:
        """Return the tensor peak over the phases of every task but the first, None where only one task was run."""
        if self.memory is None or self.memory.allocator is None:
            return None
        return max((peak for task, _, peak in self.memory.allocator.by_phase if task >= 1), default=None)

    @property
    def falls_later(self) -> bool:
        """Tell whether the tensor peak belongs to the first task only, as where a trunk freezes after it."""
        return self.later_peak_bytes not in (None, self.tensor_peak_bytes)

    @property
    def observer_delta_bytes(self) -> int | None:
        """Return the ledger's peak minus the un-instrumented peak, None where one of them is missing."""
        if self.memory is None or self.memory.footprint is None or self.memory.allocator is None:
            return None
        return self.memory.footprint.peak_bytes - self.memory.allocator.peak_bytes

    def process_peak_bytes(self, malloc: str) -> int | None:
        """Return the highest process peak over the runs with this malloc setting (`pinned` or `default`)."""
        processes = [
            run.process for run in (self.memory, *self.accuracy) if run is not None and run.process is not None
        ]
        return max((process.peak_bytes for process in processes if process.malloc == malloc), default=None)

    def has_accuracy(self) -> bool:
        """Tell whether anything was learnt from data (a synthetic stream has none)."""
        return any(run.metrics for run in self.accuracy)

    def metric(self, name: str) -> Statistic | None:
        """Return mean and sample standard deviation over seeds, None where no run defines the metric."""
        return Statistic.of([run.metrics[name] for run in self.accuracy if name in run.metrics])

    def status(self) -> str:
        """Return an empty string when every run is ok, else e.g. "memory: oom; accuracy: crashed (1 of 3)"."""
        parts = [f"memory: {run.status}" for run in self.failed if run.spec.measure != "accuracy"]
        seeds = Counter(run.status for run in self.failed if run.spec.measure == "accuracy")
        total = len(self.accuracy) + sum(seeds.values())
        parts += [f"accuracy: {status} ({number} of {total})" for status, number in sorted(seeds.items())]
        return "; ".join(parts)


@dataclass(frozen=True)
class Section:
    """The cells of one setting, by falling tensor peak (those without one last, by name)."""

    setting: Setting
    cells: tuple[Cell, ...]

    @property
    def measured(self) -> list[tuple[Cell, RunResult, Footprint]]:
        """Return the cells that have a footprint, each with its memory run and the footprint."""
        runs = ((cell, cell.memory) for cell in self.cells if cell.memory is not None)
        return [(cell, run, run.footprint) for cell, run in runs if run.footprint is not None]

    @property
    def runs(self) -> list[RunResult]:
        """Return every run of the section once, in the order of the cells."""
        return list({run.run_id: run for cell in self.cells for run in cell.runs}.values())


def sections(results: Iterable[RunResult]) -> list[Section]:
    """Group results into sections of cells. Raises UsageError when two memory runs of one cell disagree."""
    by_setting: dict[Setting, list[RunResult]] = {}
    for result in results:
        by_setting.setdefault(Setting.of(result), []).append(result)
    return [Section(setting, _cells(runs)) for setting, runs in sorted(by_setting.items())]


def is_joint(runs: Iterable[RunResult]) -> bool:
    """Tell whether any of the runs says that it learnt all tasks at once."""
    return any(run.joint for run in runs)


def _cells(runs: Sequence[RunResult]) -> tuple[Cell, ...]:
    groups: dict[tuple[tuple[str, str], ...], list[RunResult]] = {}
    for run in runs:
        groups.setdefault(run.spec.cell(), []).append(run)
    cells = [cell for group in groups.values() for cell in _cells_of_group(group)]
    return tuple(sorted(cells, key=lambda cell: (-(cell.tensor_peak_bytes or 0), cell.label)))


def _cells_of_group(group: Sequence[RunResult]) -> list[Cell]:
    """Return one cell, or one for each length of training: accuracies after one and ten epochs are never averaged."""
    memory = sorted((run for run in group if run.spec.measure != "accuracy"), key=lambda run: run.spec.measure)
    accuracy = sorted((run for run in group if run.spec.measure == "accuracy"), key=lambda run: run.spec.seed)
    lengths: list[Length | None] = []
    for run in accuracy:
        if _length(run) not in lengths:
            lengths.append(_length(run))
    several = len(lengths) > 1
    cells = []
    for length in lengths or [None]:
        trained = [run for run in accuracy if _length(run) == length]
        cells.append(
            Cell(
                label=_label(group[0], length if several else None),
                method=group[0].spec.method,
                memory=_one_memory_run([run for run in memory if run.status == "ok"]),
                accuracy=tuple(run for run in trained if run.status == "ok"),
                failed=tuple(run for run in [*memory, *trained] if run.status != "ok"),
                joint=is_joint(group),
                length=length,
            )
        )
    return cells


def _one_memory_run(runs: Sequence[RunResult]) -> RunResult | None:
    """Return the memory run; several (say of two seeds) may stand for one another only if they agree to the byte."""
    if not runs:
        return None
    first = runs[0]
    for other in runs[1:]:
        ours = first.allocator.peak_bytes if first.allocator else None
        theirs = other.allocator.peak_bytes if other.allocator else None
        if ours != theirs:
            raise UsageError(
                f"allocator.peak_bytes differs between two memory runs of one cell: {ours} in {first.where} and "
                f"{theirs} in {other.where}; move one of them to another directory"
            )
    return first


def _length(run: RunResult) -> Length:
    return run.spec.epochs, run.spec.steps_per_task


def _label(run: RunResult, length: Length | None) -> str:
    """Return the method with everything that was set on it, so that two rows never share a name."""
    parts = [f"{key}={value}" for key, value in run.spec.config.items()]
    if run.spec.execution != PLAIN:
        parts.append(run.spec.execution + ("" if run.execution.get("exact", True) else ", inexact"))
    if length is not None:
        epochs, steps = length
        parts.append(f"epochs={epochs}" + ("" if steps is None else f", steps_per_task={steps}"))
    return f"{run.spec.method} ({', '.join(parts)})" if parts else run.spec.method
