"""Suites: what a file may say, and what it comes to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.specs import suite as suite_module
from clmem.harness.specs.suite import load_suite
from tests.harness.tiny import TINY, write


def test_a_variation_may_name_methods_streams_and_executions_of_its_own(tmp_path: Path) -> None:
    text = (
        TINY.replace("steps_per_task = 1", 'measure = ["peak"]')
        + """
[[vary]]
executions = ["plain", "lean"]
methods = ["er"]
[[vary]]
executions = ["checkpoint=block"]
streams = ["split-fashion-mini"]
"""
    )
    specs = load_suite(write(tmp_path, text)).specs()
    found = [(spec.method, spec.execution) for spec in specs]
    assert found == [("er", "plain"), ("er", "lean"), ("sgd", "checkpoint=block"), ("er", "checkpoint=block")]


def test_a_variation_may_have_seeds_of_its_own_which_memory_does_not_follow(tmp_path: Path) -> None:
    text = TINY + '[[vary]]\n[[vary]]\nmethods = ["er"]\nseeds = [5]\n'
    specs = load_suite(write(tmp_path, text)).specs()
    assert [spec.method for spec in specs if spec.measure == "memory"] == ["sgd", "er"]
    assert [(spec.method, spec.seed) for spec in specs if spec.measure == "accuracy" and spec.seed > 0] == [
        ("sgd", 1),
        ("er", 1),
        ("er", 5),
    ]


def test_a_suite_measures_memory_once_and_accuracy_once_per_seed(tmp_path: Path) -> None:
    specs = load_suite(write(tmp_path, TINY)).specs()
    assert [(s.method, s.measure, s.seed) for s in specs] == [
        ("sgd", "memory", 0),
        ("er", "memory", 0),
        ("sgd", "accuracy", 0),
        ("er", "accuracy", 0),
        ("sgd", "accuracy", 1),
        ("er", "accuracy", 1),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("title = ", "not valid TOML"),
        (TINY.replace("methods", "method"), "did you mean 'methods'"),
        (TINY + '[[vary]]\nstreams = ["split-cifar10"]', "varies 'split-cifar10' but does not run it; its streams are"),
        (TINY.replace("seeds = [0, 1]", "seeds = []"), "seeds"),
        (TINY.replace("width = 1", "width = 'wide'"), "width is 'wide'"),
        (TINY.replace("seeds = [0, 1]", "seeds = [0, -1]"), "seeds.1 is -1"),
        (TINY.replace("seeds = [0, 1]", "seeds = [0, 0]"), "more than once"),
        (TINY.replace('measure = ["memory"]', "") + 'measure = ["speed"]', "measure"),
    ],
)
def test_a_typo_in_a_suite_is_one_sentence_that_names_it(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_suite(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_a_method_that_is_not_run_are_refused(tmp_path: Path) -> None:
    for text in ("[config.derpp]\nalpha = 0.1\n", "[[vary]]\nconfig.derpp.alpha = 0.1\n"):
        with pytest.raises(UsageError, match=r"wrong: it sets \[config\.derpp\] but does not run 'derpp'"):
            load_suite(write(tmp_path, TINY + text))
    with pytest.raises(UsageError, match="it varies 'derpp' but does not run it"):
        load_suite(write(tmp_path, TINY + "[[vary]]\nmethods = ['derpp']\n"))


def test_a_suite_is_run_once_under_each_of_its_variations(tmp_path: Path) -> None:
    text = TINY.replace("seeds = [0, 1]", "measure = ['peak']") + "config.er.lr = 0.1\n"
    text += "[[vary]]\n[[vary]]\nbatch_size = 4\nconfig.er.lr = 0.2\n[[vary]]\nmethods = ['er']\nreplay_size = 8\n"
    specs = load_suite(write(tmp_path, text)).specs()
    assert [(s.method, s.batch_size, s.replay_size, s.config) for s in specs] == [
        ("sgd", 8, 4, {}),
        ("er", 8, 4, {"lr": 0.1}),
        ("sgd", 4, 4, {}),
        ("er", 4, 4, {"lr": 0.2}),
        ("er", 8, 8, {"lr": 0.1}),
    ]
    assert {(s.measure, s.steps_per_task) for s in specs} == {("peak", None)}


def test_variations_that_come_to_the_same_are_run_once(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, TINY + "[[vary]]\n[[vary]]\nbatch_size = 8\n"))
    assert len(suite.specs()) == len({spec.run_id for spec in suite.specs()}) == 6


def test_every_shipped_suite_is_valid() -> None:
    shipped = sorted((Path(suite_module.__file__).parents[2] / "bench" / "suites").glob("*.toml"))
    assert {path.stem for path in shipped} >= {"quick", "table1-memory"}
    for path in shipped:
        assert load_suite(path).specs()


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "0", "1e300"])
def test_a_timeout_that_no_clock_can_wait_for_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match="timeout_s is"):
        load_suite(write(tmp_path, f"{TINY}timeout_s = {value}\n"))


def test_weights_in_a_suite_file_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    at_home = load_suite(write(tmp_path, f'{TINY}weights = "~/trunk.safetensors"\n'))
    beside = load_suite(write(tmp_path, f'{TINY}weights = "trunk.safetensors"\n'))
    assert at_home.weights == str(tmp_path / "home" / "trunk.safetensors")
    assert beside.weights == str(tmp_path / "trunk.safetensors")


@pytest.mark.parametrize("count", [9_999, 10_001])
def test_thousands_of_methods_take_no_time_to_read(tmp_path: Path, count: int) -> None:
    names = [f"method-{number}" for number in range(count)]
    text = TINY.replace('["sgd", "er"]', str(names)) + f"[[vary]]\nmethods = {names[:9999]}\nconfig.nobody.lr = 1\n"
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        load_suite(write(tmp_path, text))
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 1000


def test_a_suite_of_too_many_runs_is_refused_at_once(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(5000)]
    text = TINY.replace('["sgd", "er"]', str(names)).replace('["split-fashion-mini"]', str(names))
    with pytest.raises(UsageError, match="comes to 75,000,000 runs, more than 100,000"):
        load_suite(write(tmp_path, text)).specs()


@pytest.mark.parametrize("line", ["batch_size = true", "replay_size = 1.0", "buffer_size = '8'"])
def test_sizes_of_a_variation_are_integers(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match=line.partition(" ")[0]):
        load_suite(write(tmp_path, f"{TINY}[[vary]]\n{line}\n"))
