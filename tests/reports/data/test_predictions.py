"""Predictions beside the runs they are of: kept, dropped where the run is another by now, and safe from methods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clmem.harness.results.record import RunResult, load_results, save_result
from clmem.reports.data.grouping import sections
from clmem.reports.data.predictions import FILE, load_predictions, save_predictions
from clmem.reports.markdown.predictions import predictions_sentence, predictions_table
from clmem.reports.report import write_report
from clmem.reports.terminal.runs import prediction_table

CODE = {"method": "0" * 16, "measuring": "1" * 16}
ROOT = Path(__file__).parents[3]
METHODS = """
import os, signal, sys
from clmem.methods.sgd import SGD

class Talker(SGD):
    name = "talker"
    def before_task(self, task):
        print("from a method")
        os.write(1, b"and from below")

class Dying(SGD):
    name = "dying"
    def before_task(self, task):
        os.kill(os.getpid(), signal.SIGKILL)

class Leaving(SGD):
    name = "leaving"
    def before_task(self, task):
        sys.exit()

class Broken(SGD):
    name = "broken"
    def __init__(self, setting, config):
        raise KeyError("layer9")
"""


def run_of(memory_run: Any, method: str = "sgd", vectors: str = "AVX2", **changes: Any) -> RunResult:
    environment = {"torch": "2.13.0", "vectors": vectors, **changes.pop("environment", {})}
    run = memory_run(method, {"parameters": 1.0}, environment=environment, **changes)
    return RunResult.model_validate({**run.model_dump(), "code": CODE})


def shown(run: RunResult, folder: Path) -> tuple[str, str]:
    (section,) = sections([run])
    predictions = load_predictions(folder)
    return predictions_table(section, predictions), predictions_sentence(section, predictions)


def test_a_kept_prediction_stands_beside_its_own_run(tmp_path: Path, memory_run: Any) -> None:
    run = run_of(memory_run)
    save_predictions(tmp_path, [run], [2**20])
    table, sentence = shown(run, tmp_path)
    assert "1,048,576 |        1,048,576 |   +0.0000 |" in table
    assert sentence.startswith("1 peak predicted without running anything")
    assert "left out" not in sentence


def test_errors_are_percentages_and_the_farthest_is_named(tmp_path: Path, memory_run: Any) -> None:
    runs = [run_of(memory_run, method) for method in ("sgd", "er", "ewc")]
    save_predictions(tmp_path, runs, [1_058_942, 1_017_119, None])  # of 1,048,576: 10,366 more and 31,457 less
    (section,) = sections(runs)
    predictions = load_predictions(tmp_path)
    rows = [line.replace(" ", "") for line in predictions_table(section, predictions).splitlines()[2:]]
    assert sorted(rows) == [
        "|er|1,017,119|1,048,576|-3.0000|",
        "|ewc||1,048,576||",
        "|sgd|1,058,942|1,048,576|+0.9886|",
    ]
    assert predictions_sentence(section, predictions) == (
        "2 peaks predicted without running anything; the largest error is -3.0000 % (er)."
    )


def test_an_error_that_rounds_to_zero_has_no_minus(tmp_path: Path, memory_run: Any) -> None:
    run = run_of(memory_run).model_copy(deep=True)
    assert run.allocator is not None
    run.allocator.peak_bytes = 2**32
    save_predictions(tmp_path, [run], [2**32 - 1])
    table, sentence = shown(run, tmp_path)
    assert "|   +0.0000 |" in table
    assert "the largest error is +0.0000 % (sgd)" in sentence
    assert "-0.0" not in prediction_table([run], [2**32 - 1])


@pytest.mark.parametrize(
    "changes",
    [
        {"code": {**CODE, "method": "2" * 16}},
        {"code": {}},
        {"environment": {"torch": "2.13.0", "vectors": "AVX512"}},
        {"environment": {"torch": "2.14.0", "vectors": "AVX2"}},
    ],
)
def test_a_prediction_goes_when_its_run_is_another(changes: dict[str, Any], tmp_path: Path, memory_run: Any) -> None:
    run = run_of(memory_run)
    save_predictions(tmp_path, [run], [123_456])
    table, sentence = shown(run.model_copy(update=changes), tmp_path)
    assert "123,456" not in table
    assert sentence.startswith("1 prediction is left out")
    assert "clmem predict --against" in sentence


@pytest.mark.parametrize("number", [123_456, None])
def test_a_file_of_numbers_alone_is_left_out(number: int | None, tmp_path: Path, memory_run: Any) -> None:
    run = run_of(memory_run)
    save_result(tmp_path, run)
    (tmp_path / FILE).write_text(json.dumps({run.run_id: number}), encoding="utf-8")
    text = write_report(tmp_path, plots=False).read_text(encoding="utf-8")
    assert "123,456" not in text
    assert "1 prediction is left out" in text


def test_a_run_without_a_prediction_stays_one(tmp_path: Path, memory_run: Any) -> None:
    run = run_of(memory_run)
    save_predictions(tmp_path, [run], [None])
    assert shown(run, tmp_path)[1] == "None of these runs can be predicted."


def against(folder: Path, *options: str) -> tuple[int, str, str]:
    """Return the exit code of `clmem predict --against`, and what it said on stdout and stderr."""
    plugins = folder.parent / "plugins"
    info = plugins / "plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (plugins / "hostile_methods.py").write_text(METHODS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    lines = "".join(f"{name} = hostile_methods:{name.title()}\n" for name in ("talker", "dying", "leaving", "broken"))
    (info / "entry_points.txt").write_text(f"[clmem.methods]\n{lines}")
    done = subprocess.run(
        [sys.executable, "-m", "clmem.bench.cli", "predict", "--against", str(folder), *options],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{plugins}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def undated(memory_run: Any, method: str, **environment: str) -> RunResult:
    shape = {"stream": "synthetic-32px", "width": 1, "batch_size": 2, "buffer_size": 0, "replay_size": 0}
    run: RunResult = memory_run(method, {"parameters": 1.0}, environment=environment, **shape)
    return run


def test_methods_spoil_neither_output_nor_predictions(tmp_path: Path, memory_run: Any) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for method in ("talker", "dying", "leaving", "broken", "sgd"):
        save_result(folder, undated(memory_run, method))
    code, out, said = against(folder, "--json", "--keep")
    rows = {row["run_id"].partition("--")[0]: row["predicted_bytes"] for row in json.loads(out)}
    assert code == 0
    assert rows["talker"] == rows["sgd"] > 0
    assert rows["dying"] is rows["leaving"] is rows["broken"] is None
    assert "method 'dying' ended the process" in said
    assert "method 'leaving' failed while it was predicted: SystemExit" in said
    assert "method 'broken' failed while it was predicted: KeyError" in said
    assert "from a method" in said
    assert "and from below" in said
    assert "Traceback" not in said
    kept = load_predictions(folder)
    assert {kept[run.run_id].predicted_bytes for run in load_results(folder)} == {None, rows["sgd"]}


def test_runs_of_another_torch_are_left_out_in_a_sentence(tmp_path: Path, memory_run: Any) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for method in ("sgd", "er"):
        save_result(folder, undated(memory_run, method, torch="1.0.0"))
    code, out, said = against(folder, "--json")
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert "torch 1.0.0" in said


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ([{"capability": "9.0", "cudnn": 91900}], ["as this card took them, shape by shape"]),
        ([{"capability": "8.7", "cudnn": 90300}], ["as another card took them"]),
        (
            [{}, {"capability": "9.0", "cudnn": 91900}],
            ["as another card took them", "as this card took them, shape by shape"],
        ),
    ],
)
def test_predictions_say_whose_workspaces_they_have(
    cards: list[dict[str, object]], said: list[str], tmp_path: Path, memory_run: Any
) -> None:
    runs = [memory_run(f"m{n}", {"input": 1.0}, target="cuda", environment=card) for n, card in enumerate(cards)]
    save_predictions(tmp_path, runs, [2**20] * len(runs))
    (section,) = sections(runs)
    for text in (
        predictions_sentence(section, load_predictions(tmp_path)),
        " ".join(prediction_table(runs, [2**20] * len(runs)).split()),
    ):
        assert [found.split(" (")[0] for found in text.split("predicted ") if "card took" in found] == said
