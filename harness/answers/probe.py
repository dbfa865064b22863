"""Our own probe of how much a network's layers can learn and how much they change, boundary by boundary.

LightCL (arXiv 2407.10545) freezes layers by two metrics, learning plasticity and memory stability, that are defined
nowhere we could find. Ours, for a boundary l:

    plasticity_l = accuracy on new tasks with everything before l frozen / the same with nothing frozen
    stability_l  = 1 - ||F_l(M) after - F_l(M) before|| / ||F_l(M) before||

The accuracy is task-IL on a task when it has just been learnt. F_l are the maps that arrive at l in eval mode, M images
of the tasks learnt before, after and before a further one is learnt with nothing frozen. Both are means over all tasks
but the first, in which everything learns. Plasticity may exceed 1; stability is at most 1 and may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

import torch
from torch import Tensor

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.training import Progress, Schedule, task_accuracy, train
from clmem.harness.runs.checks import check_spec
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources


@dataclass(frozen=True)
class Layer:
    """What was found at a boundary. accuracy: a fraction, on new tasks with everything before it frozen.

    A ratio is None where it would be over nothing: no accuracy at all, or maps of zeros.
    """

    boundary: str
    accuracy: float
    plasticity: float | None
    stability: float | None


@dataclass(frozen=True)
class Probe:
    """accuracy: a fraction, on new tasks with nothing frozen. tasks: how many were new."""

    accuracy: float
    tasks: int
    layers: list[Layer]


class _Look(Unwatched):
    """Evaluates every task but the first when it was learnt, and compares the maps at boundaries before and after it.

    accuracies: fractions, task-IL, by task. stability: by boundary and task.
    """

    def __init__(self, boundaries: Sequence[str] = ()) -> None:
        self.run: Run | None = None
        self.accuracies: list[float] = []
        self.stability: dict[str, list[float]] = {boundary: [] for boundary in boundaries}
        self._before: dict[str, Tensor] = {}

    @contextmanager
    def phase(self, name: str, task: int) -> Iterator[None]:
        """Look before a task begins and once it has been learnt."""
        if name == "before_task" and task:
            self._before = self._maps(task)
        yield
        if name == "after_task" and task:
            assert self.run is not None
            self.accuracies.append(task_accuracy(self.run.method, self.run.stream, self, task, task + 1, None)[1])
            for boundary, after in self._maps(task).items():
                before = self._before[boundary]
                self.stability[boundary].append(1 - float((after - before).norm() / before.norm()))

    def _maps(self, seen: int) -> dict[str, Tensor]:
        """Return what arrives at each boundary of one batch of test images of every task seen."""
        assert self.run is not None
        network, stream = self.run.method.network, self.run.stream
        images = torch.cat([next(iter(stream.test_batches(task, limit=1)))[0] for task in range(seen)])
        learning = network.training
        network.eval()
        with torch.no_grad():
            maps = {boundary: network.run(images, stop=boundary) for boundary in self.stability}
        network.train(learning)
        return maps


def probe(
    whole: RunSpec,
    frozen: Mapping[str, RunSpec],
    sources: Sources = NOWHERE,
    report: Callable[[str, Progress], None] = lambda what, progress: None,
) -> Probe:
    """Learn the whole network, then with everything before each boundary frozen, and compare.

    frozen: the run by boundary; all else should be as in `whole`. report: told which of them is under way. Raises
    UsageError for a stream of a single task and for what else cannot be run, DivergedError when a loss is no number any
    more.
    """
    for spec in (whole, *frozen.values()):
        check_spec(spec, sources)
    reference = _learn(whole, sources, _Look(list(frozen)), lambda progress: report("nothing frozen", progress))
    if not reference.accuracies:
        raise UsageError(f"{whole.stream!r} has a single task, and a probe compares new tasks; give a stream of more")
    accuracy = fmean(reference.accuracies)
    layers = []
    for boundary, spec in frozen.items():
        told = lambda progress, boundary=boundary: report(f"frozen before {boundary}", progress)  # noqa: E731
        found = fmean(_learn(spec, sources, _Look(), told).accuracies)
        stability = fmean(reference.stability[boundary])
        layers.append(
            Layer(boundary, found, found / accuracy if accuracy else None, stability if isfinite(stability) else None)
        )
    return Probe(accuracy, len(reference.accuracies), layers)


def _learn(spec: RunSpec, sources: Sources, look: _Look, report: Callable[[Progress], None]) -> _Look:
    look.run = build(spec, look, sources)
    train(look.run, Schedule(evaluation_batches=1, evaluate_all=False), look, Progress(), report)
    return look
