"""The search for hyper-parameters: the same budget for every method, scored on what nobody trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmem.bench.tune import SEARCH, Search, load_search, score, table
from clmem.harness.errors import UsageError
from clmem.harness.learning.registry import method_class, method_config, method_names
from clmem.harness.results.record import RunResult


def search(**grid: dict[str, list[object]]) -> Search:
    values = {"title": "t", "candidates": 2, "stream": "split-fashion-mini", "seed": 7, "grid": grid}
    return Search.model_validate(values)


def result_of(spec: object, **metrics: float) -> RunResult:
    return RunResult(run_id=spec.run_id, spec=spec, metrics=metrics)  # type: ignore[attr-defined,arg-type]


def test_the_shipped_search_gives_every_method_the_same_number_of_valid_candidates() -> None:
    shipped = load_search(SEARCH)
    assert set(shipped.grid) == set(method_names())
    assert len(shipped.specs()) == shipped.candidates * len(method_names())
    for spec in shipped.specs():
        method_config(spec)
        assert (spec.evaluate_on, spec.seed) == ("validation", 1000)


def test_a_method_with_more_candidates_than_the_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text('title = "t"\ncandidates = 2\nstream = "s"\nseed = 0\n[grid.sgd]\nlr = [0.1, 0.2, 0.3]\n')
    with pytest.raises(UsageError, match="sgd has 3 candidates, but every method gets 2"):
        load_search(path)


def test_a_candidate_is_scored_by_every_scenario_that_its_method_has() -> None:
    spec = search(sgd={"lr": [0.1, 0.2]}).specs()[0]
    assert score(result_of(spec, class_il_accuracy=0.2, task_il_accuracy=0.8)) == pytest.approx(0.5)
    assert score(result_of(spec, task_il_accuracy=0.8)) == pytest.approx(0.8)
    diverged = result_of(spec)
    diverged.status = "diverged"
    assert score(diverged) is None


def test_the_table_shows_every_candidate_and_marks_the_best() -> None:
    chosen = search(sgd={"lr": [0.1, 0.2]})
    one, other = chosen.specs()
    results = {
        one.run_id: result_of(one, class_il_accuracy=0.2, task_il_accuracy=0.8),
        other.run_id: result_of(other, class_il_accuracy=0.3, task_il_accuracy=0.8),
    }
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(chosen, results).splitlines()[2:]]
    assert rows == [["sgd", "lr=0.1", "20.0", "80.0", "50.0"], ["sgd", "lr=0.2", "30.0", "80.0", "55.0 **best**"]]


def test_every_methods_tuned_values_are_a_candidate_of_the_published_search_as_good_as_its_best() -> None:
    text = (SEARCH.parents[1] / "reports" / "published" / "tuning" / "tuning.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    scores: dict[str, dict[frozenset[str], float]] = {}
    for method, candidate, *_, found in rows[2:]:
        settings = frozenset(part for part in candidate.split(", ") if not part.startswith("fisher_samples"))
        if found != "diverged":
            scores.setdefault(method, {})[settings] = float(found.split()[0])
    assert set(scores) == set(load_search(SEARCH).grid)
    for method, by_candidate in scores.items():
        for stream in ("split-fashion-mini", "split-fashion-mnist"):
            tuned = frozenset(f"{key}={value}" for key, value in method_class(method).tuned[stream].items())
            assert by_candidate[tuned] == max(by_candidate.values()), method
