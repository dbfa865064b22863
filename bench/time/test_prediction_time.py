"""What an answer before owning a device takes: all rows of a suite predicted, and the largest batch for a board."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from clmem.bench.time.pages import write_page
from clmem.harness.answers.fit import fit
from clmem.harness.answers.prediction import predict
from clmem.harness.specs.budgets import budget
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.suite import load_suite

BOARDS = ("jetson-nano-4gb", "jetson-orin-nano-8gb", "jetson-agx-thor")
METHODS = ("sgd", "er", "derpp", "ewc", "pnn", "sparcl-derpp", "lightcl")
ALL_ROWS_S, ONE_FIT_S = 90, 20
"""What an answer may take on two cores."""


def test_seconds_of_predictions_and_fits(benchmark: Any) -> None:
    rows: list[list[str]] = []
    fits: dict[str, float] = {}

    def measure() -> None:
        specs = load_suite(Path(__file__).parents[1] / "suites" / "table1-memory.toml").specs()
        start = time.perf_counter()
        for spec in specs:
            predict(spec)
        rows.append([f"predict: {len(specs)} rows of table1-memory", "", f"{time.perf_counter() - start:.1f}"])
        for name in METHODS:
            for board in BOARDS:
                spec = RunSpec(
                    method=name, stream="synthetic-tinyimagenet", target="jetson", budget=board, buffer_size=15,
                    replay_size=15,
                )  # fmt: skip
                start = time.perf_counter()
                found = fit(spec, "batch")
                fits[f"{name}, {budget(board).name}"] = seconds = time.perf_counter() - start
                size = "" if found.largest is None else str(found.largest.size)
                rows.append([f"fit: {name} on {board}", size, f"{seconds:.1f}"])

    benchmark.pedantic(measure)
    write_page(
        "predictions",
        "What predictions take in time",
        "One after the other in one process, torch imported before (`pytest bench/time/test_prediction_time.py "
        "--clmem-time --benchmark-only -s`); fits are of batches on synthetic-tinyimagenet, plainly.",
        ["what", "largest batch", "s"],
        rows,
    )
    assert float(rows[0][2]) < ALL_ROWS_S
    assert {name: seconds for name, seconds in fits.items() if seconds >= ONE_FIT_S} == {}
