"""The search behind the `tuned` values: the same number of candidates for every method, scored on held-out samples.

`python -m clmem.bench.tune` runs `bench/tuning.toml` (what is there already is not run again) and writes a table of
every candidate. It changes no default: what won is copied into the method's `tuned`, where its source can be named.
"""

from __future__ import annotations

import sys
from itertools import product
from math import prod
from pathlib import Path

from pydantic import Field, ValidationError, model_validator
from rich.console import Console
from tabulate import tabulate

from clmem.bench.progress import Bars
from clmem.harness.errors import UsageError
from clmem.harness.files import read_toml, write_text
from clmem.harness.results.record import RunResult
from clmem.harness.runs.directory import fill, held
from clmem.harness.specs.run import Conditions, RunSpec, Scalar, spec_errors

SEARCH = Path(__file__).with_name("tuning.toml")
KEEP_OLD = "--keep-old"


class Search(Conditions):
    """A search: per method the values of its settings, whose combinations are its candidates; notes are for readers."""

    title: str
    candidates: int = Field(ge=1)
    stream: str
    seed: int = Field(ge=0)
    notes: str = ""
    grid: dict[str, dict[str, list[Scalar]]]

    @model_validator(mode="after")
    def _equal_budgets(self) -> Search:
        for method, values in self.grid.items():
            number = prod(len(choices) for choices in values.values())
            if number != self.candidates:
                raise ValueError(f"{method} has {number} candidates, but every method gets {self.candidates}")
        return self

    def specs(self) -> list[RunSpec]:
        """Return one accuracy run per candidate, evaluated on held-out training samples."""
        shared = {name: getattr(self, name) for name in Conditions.model_fields}
        return [
            RunSpec(
                **{**shared, "evaluate_on": "validation"},
                method=method,
                config=dict(zip(values, choice, strict=True)),
                stream=self.stream,
                seed=self.seed,
                measure="accuracy",
            )
            for method, values in self.grid.items()
            for choice in product(*values.values())
        ]


def load_search(path: Path) -> Search:
    """Read a search file. Raises UsageError naming what is wrong in it."""
    try:
        return Search.model_validate(read_toml(path))
    except ValidationError as error:
        raise UsageError(f"the search {path} is wrong: {spec_errors(error, list(Search.model_fields))}") from error


def score(result: RunResult) -> float | None:
    """Return the mean of class-IL and task-IL accuracy, or of the one that there is; None for a failed run."""
    names = ("class_il_accuracy", "task_il_accuracy")
    values = [result.metrics[name] for name in names if name in result.metrics]
    return sum(values) / len(values) if result.status == "ok" and values else None


def table(search: Search, results: dict[str, RunResult]) -> str:
    """Return every candidate with its score in markdown, each method's best one marked."""
    rows: list[list[str]] = []
    for method in search.grid:
        runs = [results[spec.run_id] for spec in search.specs() if spec.method == method]
        best = max((value for run in runs if (value := score(run)) is not None), default=None)
        for run in runs:
            value = score(run)
            shown = run.status if value is None else f"{100 * value:.1f}" + (" **best**" if value == best else "")
            settings = ", ".join(f"{key}={value}" for key, value in run.spec.config.items())
            il = [run.metrics.get(f"{scenario}_accuracy") for scenario in ("class_il", "task_il")]
            rows.append([method, settings, *("" if part is None else f"{100 * part:.1f}" for part in il), shown])
    headers = ["method", "candidate", "class-IL %", "task-IL %", "score"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def commits(search: Search, results: dict[str, RunResult]) -> str:
    """Return which code each method's candidates were run with."""
    methods: dict[str, list[str]] = {}
    for spec in search.specs():
        found = results[spec.run_id].environment
        code = str(found.get("commit") or "unknown")[:10] + (" with uncommitted changes" if found.get("dirty") else "")
        if spec.method not in methods.setdefault(code, []):
            methods[code].append(spec.method)
    return "\n".join(f"- commit {code}: {', '.join(names)}" for code, names in methods.items())


def main(arguments: list[str]) -> int:
    """Run what is missing of the search and write its table.

    Arguments: the directory (default: results/tuning), and --keep-old to let results of other code stand.
    """
    names = [argument for argument in arguments if argument != KEEP_OLD]
    directory = Path(names[0]) if names else Path("results/tuning")
    search = load_search(SEARCH)
    with held(directory), Bars(Console(stderr=True), len(search.specs())) as bars:
        results = fill(search.specs(), directory, reuse="all" if KEEP_OLD in arguments else "unchanged", watcher=bars)
    where = next(iter(results.values())).environment
    intro = (
        f"# {search.title}\n\n{search.candidates} candidates per method, one run each, on {search.stream}: "
        f"{search.network} of width {search.width}, batch {search.batch_size}, buffer {search.buffer_size}, replay "
        f"{search.replay_size}, {search.epochs} epoch(s), seed {search.seed}; torch {where.get('torch')} on "
        f"{where.get('device')}.\nScored on a tenth of the training samples, held out: the mean of class-IL and "
        f"task-IL accuracy, or the one that a method has. {search.notes}\n\n"
    )
    rows = table(search, results)
    print(write_text(directory / "tuning.md", f"{intro}{rows}\n\n{commits(search, results)}\n"))
    return 0 if all(result.status in ("ok", "diverged") for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
