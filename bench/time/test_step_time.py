"""Step time of every method relative to sgd: interleaved in one process, minimum and mean over rounds.

What is timed are steps of task 1, where methods that freeze their trunk after task 0 have done so; `pnn`, whose steps
grow with the tasks, has one old column there. No samples are removed (`sparcl`), or the shortest step would be one on
fewer images; what happens in some steps alone, as when masks move, is in the mean.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

from clmem.bench.time.pages import write_page
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.registry import method_class
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.suite import load_suite
from clmem.methods.base import Task

ROUNDS = 8
WARMUP_ROUNDS = 2

BATCHES = {"er": 2, "fdr": 2, "sparcl-er": 2, "pnn": 2, "derpp": 3, "sparcl-derpp": 3}
"""Batches that a step learns from (as much is replayed as a batch has), or columns that run; 1 for others."""
OVERHEAD = 1.35
"""How much longer a method may take for a batch than sgd does, beside whom all else is overhead."""


def past_task_0(spec: RunSpec) -> tuple[Run, Task]:
    """Return a run that stands at the start of task 1; a joint run, which has no other task, within task 0."""
    run = build(spec, Unwatched())
    task = run.stream.train_task(0)
    run.method.before_task(task)
    run.runner.learn(task.batch(0, 0))
    if not run.method.joint:
        run.method.after_task(task)
        task = run.stream.train_task(1)
        run.method.before_task(task)
    return run, task


def test_step_time_relative_to_sgd(benchmark: Any) -> None:
    suite = load_suite(Path(__file__).parents[1] / "suites" / "table1.toml")
    spec = suite.specs()[0]
    whole = {"removal_share": 0.0}
    runs = {
        spec.method: past_task_0(spec.model_copy(update={"config": {**spec.config, **whole}}) if sparse else spec)
        for spec in suite.specs()
        if spec.measure == "memory"
        for sparse in ["removal_share" in method_class(spec.method).Config.model_fields]
    }
    frozen = {name for name, (run, _) in runs.items() if run.method.trunk is not None}
    assert frozen >= {"tail-sgd", "tail-er", "head-only", "lightcl", "lightcl-sparse"}, (
        "task 1 would time what they do only in task 0"
    )
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def one_round() -> None:
        for name, (run, task) in runs.items():
            batch = task.batch(0, len(seconds[name]) % task.steps_per_epoch)
            start = time.perf_counter()
            run.runner.learn(batch)
            seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS, iterations=1)
    best = {name: min(values[WARMUP_ROUNDS:]) for name, values in seconds.items()}
    mean = {name: fmean(values[WARMUP_ROUNDS:]) for name, values in seconds.items()}
    benchmark.extra_info["relative_to_sgd"] = {name: round(value / best["sgd"], 3) for name, value in best.items()}
    benchmark.extra_info["mean_relative_to_sgd"] = {name: round(mean[name] / mean["sgd"], 3) for name in mean}
    write_page(
        "steps",
        "What a step of each method takes in time",
        f"A step of task 1 at width {spec.width} on {spec.stream}, batch {spec.batch_size}, "
        f"{spec.replay_size} replayed: "
        f"{ROUNDS} rounds of all methods in turns in one process (`pytest bench/time/test_step_time.py --clmem-time "
        "--benchmark-only -s`). The mean has what happens in some steps alone, as when SparCL moves its masks.",
        ["method", "fastest ms", "fastest / sgd's", "mean / sgd's"],
        [
            [name, f"{1000 * value:.1f}", f"{value / best['sgd']:.2f}", f"{mean[name] / mean['sgd']:.2f}"]
            for name, value in sorted(best.items(), key=lambda item: item[1])
        ],
    )
    slow = {name: value for name, value in best.items() if value > OVERHEAD * BATCHES.get(name, 1) * best["sgd"]}
    assert not slow, f"slower than {OVERHEAD} times what their batches take: {slow}"
