"""Counts the floating-point operations of one training step with torch.utils.flop_counter.

The count depends on shapes alone, so the step is taken on the meta device, where tensors have shapes and no values: the
same operations, none of the arithmetic. A method that looks at values is counted on a step that is really taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.specs.run import RunSpec, Sources

READ_A_VALUE = (NotImplementedError, RuntimeError, TypeError)
"""How torch refuses to read a value of a tensor that has none."""


def count_flops(spec: RunSpec, sources: Sources, visited: Sequence[int], trained: Run) -> int:
    """Return the operations of one step, forward and backward, at the start of the last of the visited tasks.

    visited: the steps taken in each leading task, as in a `Schedule`. trained: a run that has taken them. The first
    task is not counted: methods that replay or regularise have nothing to do there yet.
    """
    try:
        with torch.device("meta"):
            run = build(spec, Unwatched(), sources, device="meta")
        for index, steps in enumerate(visited[:-1]):
            task = replace(run.stream.train_task(index), epochs=1, steps_per_epoch=max(1, steps))
            run.method.before_task(task)
            for step in range(steps):
                run.runner.learn(task.batch(0, step))
            run.method.after_task(task)
        return _one_step(run, len(visited) - 1)
    except READ_A_VALUE:
        return _one_step(trained, len(visited) - 1)


def _one_step(run: Run, index: int) -> int:
    task = run.stream.train_task(index)
    run.method.before_task(task)
    with FlopCounterMode(display=False) as counter:
        run.runner.learn(task.batch(0, 0))
    return int(counter.get_total_flops())
