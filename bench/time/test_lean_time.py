"""Step time of every method's lean preset relative to plain execution: interleaved in one process, minimum over rounds.

Timed are steps of task 1 at full width on the CIFAR shape, under the conditions of the memory suites.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from clmem.bench.time.pages import write_page
from clmem.bench.time.test_step_time import past_task_0
from clmem.harness.specs.suite import load_suite
from clmem.harness.specs.techniques import LEAN, PLAIN

ROUNDS = 3
STREAM = "synthetic-cifar10"
SLOWEST = 2.0


def test_lean_step_time_relative_to_plain(benchmark: Any) -> None:
    suite = load_suite(Path(__file__).parents[1] / "suites" / "lean.toml")
    specs = [spec for spec in suite.specs() if spec.stream == STREAM and spec.execution in (PLAIN, LEAN)]
    methods = {spec.method for spec in specs if spec.execution == LEAN}
    seconds: dict[str, dict[str, float]] = {name: {PLAIN: float("inf"), LEAN: float("inf")} for name in sorted(methods)}

    def all_methods() -> None:
        for name in seconds:  # two networks at a time
            runs = {spec.execution: past_task_0(spec) for spec in specs if spec.method == name}
            for number in range(1 + ROUNDS):
                for execution, (run, task) in runs.items():
                    batch = task.batch(0, number % task.steps_per_epoch)
                    start = time.perf_counter()
                    run.runner.learn(batch)
                    if number:  # the first warms up
                        seconds[name][execution] = min(seconds[name][execution], time.perf_counter() - start)

    benchmark.pedantic(all_methods, rounds=1, iterations=1)
    ratios = {name: best[LEAN] / best[PLAIN] for name, best in seconds.items()}
    benchmark.extra_info["lean_relative_to_plain"] = {name: round(ratio, 3) for name, ratio in ratios.items()}
    write_page(
        "lean",
        "What lean execution takes in time",
        f"A step of task 1 at width 64 on {STREAM}, batch 32, 15 replayed: the fastest of {ROUNDS}, plain and lean in "
        "turns in one process (`pytest bench/time/test_lean_time.py --clmem-time --benchmark-only -s`). The steps in "
        "which SparCL moves its masks are not among them.",
        ["method", "plain ms", "lean ms", "lean / plain"],
        [
            [name, f"{1000 * seconds[name][PLAIN]:.0f}", f"{1000 * seconds[name][LEAN]:.0f}", f"{ratio:.2f}"]
            for name, ratio in sorted(ratios.items(), key=lambda item: item[1])
        ],
    )
    slow = {name: f"{ratio:.2f}x" for name, ratio in ratios.items() if ratio > SLOWEST}
    assert not slow, f"lean presets slower than {SLOWEST}x plain: {slow}"
