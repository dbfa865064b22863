"""Step time of every method relative to sgd: interleaved in one process, minimum over rounds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness.execution import Unwatched
from harness.job import Job, Outcome
from harness.suite import load_suite
from harness.worker import build

ROUNDS = 8


def test_step_time_relative_to_sgd(benchmark: Any) -> None:
    specs = [
        s for s in load_suite(Path(__file__).parents[1] / "suites" / "quick.toml").specs() if s.measure == "memory"
    ]
    runs = {}
    for spec in specs:
        run = build(Job(spec=spec, what="accuracy"), Outcome(), Unwatched())
        task = run.stream.train_task(0)
        run.method.before_task(task)
        runs[spec.method] = (run, task)
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def one_round() -> None:
        for name, (run, task) in runs.items():
            step = len(seconds[name]) % task.steps_per_epoch
            start = time.perf_counter()
            run.execution.learn(task.batch(0, step))
            seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=2, iterations=1)
    best = {name: min(values[2:]) for name, values in seconds.items()}
    benchmark.extra_info["relative_to_sgd"] = {name: round(value / best["sgd"], 3) for name, value in best.items()}
    print()
    for name, value in sorted(best.items(), key=lambda item: item[1]):
        print(f"{name:15}{1000 * value:8.1f} ms  {value / best['sgd']:5.2f}x sgd")
    assert all(value > 0 for value in best.values())
