"""The loop: a method learns a stream task by task, in named phases, and is evaluated after each task.

The same loop serves accuracy and memory: a memory measurement only runs a shorter `Schedule` of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from clmem.harness.errors import DivergedError
from clmem.harness.execution.monitor import Monitor
from clmem.harness.learning.build import Run
from clmem.harness.learning.checkpoint import Checkpoint, Course, Row
from clmem.harness.results.record import Accuracy
from clmem.harness.streams.stream import TaskStream
from clmem.methods.base import Method

FINITE_EVERY = 10
"""Steps between two looks at the loss: a NaN stays a NaN, and looking costs a synchronisation on a device."""


@dataclass(frozen=True)
class Schedule:
    """How much of a stream is run; None means all of it.

    steps: for each leading task how many. evaluation_batches: per evaluated task.
    evaluate_all: every task seen, after every task, and the untrained network and the next task too, for forward
    transfer; otherwise the newest task after the last one.
    """

    steps: tuple[int, ...] | None = None
    evaluation_batches: int | None = None
    evaluate_all: bool = True


def short_schedule(method: Method, *, steady: bool = True) -> Schedule:
    """Return the schedule of a memory measurement: shapes decide memory, so few steps tell.

    One step of task 0, or as many as store what a step replays, for methods without a buffer too, so that all consume
    the same batches (but those that remember more samples than others replay); then a first and a steady step of
    task 1. A method that grows with the tasks visits all of them, one step each, and none where it need not learn in
    order to grow. steady: False leaves the second step out.
    """
    context = method.context
    fill = max(1, -(-method.samples_to_store // context.batch_size))
    if method.joint:
        steps: tuple[int, ...] = (1 + steady,)
    elif method.grows_with_tasks:
        between = int(method.grows_with_tasks == "learnt")
        steps = (fill, *[between] * (context.num_tasks - 2), 1)
    else:
        steps = (fill, 1 + steady)
    return Schedule(steps, evaluation_batches=1, evaluate_all=False)


@dataclass
class Progress:
    """Where a run is, for progress bars and for saying in which phase it died. seconds: by phase name."""

    phase: str = "setup"
    task: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def train(
    run: Run,
    schedule: Schedule,
    monitor: Monitor,
    progress: Progress,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoint: Checkpoint | None = None,
) -> Accuracy:
    """Run the schedule, or the rest of it; return the accuracy matrices.

    checkpoint: where a full schedule leaves its state from time to time, and goes on from. Raises DivergedError on a
    NaN or infinite loss.
    """
    method, stream, runner = run.method, run.stream, run.runner
    course = Course() if checkpoint is None else checkpoint.restore(run)
    progress.steps, progress.seconds = course.steps, course.seconds

    @contextmanager
    def phase(name: str, task: int) -> Iterator[None]:
        progress.phase, progress.task = name, task
        start = time.perf_counter()
        with monitor.phase(name, task):
            yield
        progress.seconds[name] = progress.seconds.get(name, 0.0) + time.perf_counter() - start

    def evaluate(seen: int, tasks: range) -> Row:
        """Accuracies on these tasks, None on the others, when `seen` tasks have been learnt."""
        class_il: list[float | None] = [None] * stream.num_tasks
        task_il: list[float | None] = [None] * stream.num_tasks
        for i in tasks:
            class_accuracy, task_il[i] = task_accuracy(method, stream, monitor, i, seen, schedule.evaluation_batches)
            class_il[i] = class_accuracy if i < seen else None  # a class not yet seen cannot be predicted
        return class_il, task_il

    def after(**changes: Any) -> None:
        """Move on, and save when it is time to."""
        for name, value in changes.items():
            setattr(course, name, value)
        progress.steps = course.steps
        if checkpoint is not None:
            checkpoint.save_if_due(run, course)
        report(progress)

    # A joint run is one task that holds every class, evaluated on each of the stream's own tasks.
    count = stream.num_train_tasks if schedule.steps is None else len(schedule.steps)
    if schedule.evaluate_all and course.untrained is None:
        course.untrained = evaluate(stream.num_tasks, range(stream.num_tasks))
    for index in range(course.task, count):
        task = stream.train_task(index)
        steps = task.epochs * task.steps_per_epoch
        if schedule.steps is not None:  # for whoever asks, the task is as short as it will be
            steps = min(steps, schedule.steps[index])
            per_epoch = min(max(steps, 1), task.steps_per_epoch)
            task = replace(task, epochs=max(1, -(-steps // per_epoch)), steps_per_epoch=per_epoch)
        if not course.begun:
            with phase("before_task", index):
                method.before_task(task)
            course.begun = True
        batches = stream.train_batches(index, first=course.step)
        for step in range(course.step, steps):
            with phase("first_step" if step == 0 else "step", index):
                batch = next(batches)
                monitor.inputs(batch.images, batch.labels)
                loss = runner.learn(batch)
                del batch
                if step % FINITE_EVERY == 0 or step + 1 == steps:
                    _check_finite(loss, method, index, step)
                del loss
            after(step=step + 1, steps=course.steps + 1)
        with phase("after_task", index):
            method.after_task(task)
        seen = stream.num_tasks if method.joint else index + 1
        if schedule.evaluate_all or index + 1 == count:
            with phase("evaluate", index):
                upto = min(seen + 1, stream.num_tasks) if schedule.evaluate_all else seen
                course.rows.append(evaluate(seen, range(0 if schedule.evaluate_all else seen - 1, upto)))
        after(task=index + 1, step=0, begun=False)
    class_too, untrained = "class-il" in method.scenarios, course.untrained
    return Accuracy(
        class_il=[row[0] for row in course.rows] if class_too else None,
        task_il=[row[1] for row in course.rows],
        untrained_class_il=untrained[0] if untrained and class_too else None,
        untrained_task_il=untrained[1] if untrained else None,
    )


def task_accuracy(
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
