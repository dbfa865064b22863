"""The loop: a method learns a stream task by task, in named phases, and is evaluated after each task.

The same loop serves accuracy and memory: a memory measurement only runs a shorter `Schedule` of it.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from harness.errors import DivergedError
from harness.execution import Execution, Monitor
from harness.results import Accuracy
from harness.streams.stream import TaskStream
from methods.base import Method

FINITE_EVERY = 10
"""Steps between two looks at the loss: a NaN stays a NaN, and looking costs a synchronisation on a device."""


@dataclass(frozen=True)
class Schedule:
    """How much of a stream is run; None means all of it.

    tasks: number of leading tasks. steps: per task. evaluation_batches: per evaluated task.
    look_ahead: also evaluate before training and on the next task, for forward transfer.
    """

    tasks: int | None = None
    steps: int | None = None
    evaluation_batches: int | None = None
    look_ahead: bool = True


def short_schedule(method: Method) -> Schedule:
    """Return the schedule of a memory measurement: shapes decide memory, so few steps tell.

    Two tasks of two steps, or of as many as it takes until the last step can replay in full; a method whose state grows
    with the tasks visits all of them for one step each.
    """
    if method.grows_with_tasks:
        return Schedule(tasks=None, steps=1, evaluation_batches=1, look_ahead=False)
    steps = 2
    if method.uses_buffer:
        setting = method.setting
        batches_to_store = -(-min(setting.replay_size, setting.buffer_size) // setting.batch_size)
        steps = max(steps, -(-(batches_to_store + 1) // 2))
    return Schedule(tasks=2, steps=steps, evaluation_batches=1, look_ahead=False)


@dataclass
class Progress:
    """Where a run is, for progress bars and for saying in which phase it died. seconds: by phase name."""

    phase: str = "setup"
    task: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def train(
    method: Method,
    stream: TaskStream,
    execution: Execution,
    schedule: Schedule,
    monitor: Monitor,
    progress: Progress,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Accuracy:
    """Run the schedule; return the accuracy matrices. Raises DivergedError on a NaN or infinite loss."""

    @contextmanager
    def phase(name: str, task: int) -> Iterator[None]:
        progress.phase, progress.task = name, task
        start = time.perf_counter()
        with monitor.phase(name, task):
            yield
        progress.seconds[name] += time.perf_counter() - start

    def evaluate(seen: int, upto: int) -> tuple[list[float | None], list[float | None]]:
        """Accuracies on the first `upto` tasks, None on the others, when `seen` tasks have been learnt."""
        class_il: list[float | None] = [None] * stream.num_tasks
        task_il: list[float | None] = [None] * stream.num_tasks
        for i in range(upto):
            class_accuracy, task_il[i] = _task_accuracy(method, stream, monitor, i, seen, schedule.evaluation_batches)
            class_il[i] = class_accuracy if i < seen else None  # a class not yet seen cannot be predicted
        return class_il, task_il

    # A joint run is one task that holds every class, evaluated on each of the stream's own tasks.
    count = 1 if method.joint else stream.num_tasks
    untrained = evaluate(seen=stream.num_tasks, upto=stream.num_tasks) if schedule.look_ahead else None
    rows: list[tuple[list[float | None], list[float | None]]] = []
    for index in range(min(count, schedule.tasks or count)):
        task = stream.train_task(index)
        with phase("before_task", index):
            method.before_task(task)
        batches = stream.train_batches(index)
        steps = min(task.epochs * task.steps_per_epoch, schedule.steps or sys.maxsize)
        for step in range(steps):
            with phase("first_step" if step == 0 else "step", index):
                batch = next(batches)
                monitor.inputs(batch.images, batch.labels)
                loss = execution.learn(batch)
                del batch
                if step % FINITE_EVERY == 0 or step + 1 == steps:
                    _check_finite(loss, method, index, step)
                del loss
            progress.steps += 1
            report(progress)
        with phase("after_task", index):
            method.after_task(task)
        seen = stream.num_tasks if method.joint else index + 1
        with phase("evaluate", index):
            rows.append(evaluate(seen, upto=min(seen + schedule.look_ahead, stream.num_tasks)))
        report(progress)
    matrices = [[row[scenario] for row in rows] for scenario in (0, 1)]
    class_too = "class-il" in method.scenarios
    return Accuracy(
        class_il=matrices[0] if class_too else None,
        task_il=matrices[1],
        untrained_class_il=untrained[0] if untrained and class_too else None,
        untrained_task_il=untrained[1] if untrained else None,
    )


def _task_accuracy(
    method: Method, stream: TaskStream, monitor: Monitor, task: int, seen: int, batches: int | None
) -> tuple[float, float]:
    """Return (class-IL, task-IL) accuracy on one task's test samples, from the same forward.

    class-IL: argmax over the logits of the classes of the `seen` first tasks. task-IL: argmax in the task's own slice.
    """
    classes = stream.tasks[task]
    seen_classes = stream.tasks[seen - 1].stop
    task_id = None if "class-il" in method.scenarios else task
    class_right = task_right = total = 0
    for images, labels in stream.test_batches(task, limit=batches):
        monitor.inputs(images, labels)
        logits = method.predict(images, task_id)
        class_right += int((logits[:, :seen_classes].argmax(1) == labels).sum())
        task_right += int((logits[:, classes.start : classes.stop].argmax(1) + classes.start == labels).sum())
        total += len(labels)
        del images, labels, logits  # or they would live on beside the next batch
    return class_right / total, task_right / total


def _check_finite(loss: Tensor, method: Method, task: int, step: int) -> None:
    value = float(loss)
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss of {method.name!r} is {value} at step {step} of task {task}; try a smaller lr (--set lr=...)"
        )
