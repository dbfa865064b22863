"""Which suite `clmem run` runs, with which methods; and the suite file that `clmem new-suite` writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import clmem.harness.runs.directory
from clmem.bench.cli import main
from clmem.bench.commands.new_suite import TEMPLATE
from clmem.bench.options import SUITES
from clmem.bench.suite_changes import only_methods, with_methods
from clmem.harness.errors import ClmemError
from clmem.harness.specs.suite import Suite, Variation, load_suite


class Asked(ClmemError):
    """Raised in place of running a suite."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Suite, Path]]:
    found: list[tuple[Suite, Path]] = []

    def run_suite(suite: Suite, directory: Path, **options: Any) -> None:
        found.append((suite, directory))
        raise Asked("it would run")

    monkeypatch.setattr(clmem.harness.runs.directory, "run_suite", run_suite)
    monkeypatch.chdir(tmp_path)
    return found


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clmem", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(str(stopped.value.code))


def test_without_a_suite_any_methods_run_under_quicks_conditions(
    asked: list[tuple[Suite, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "--method", "pnn", "--method", "er") == 1
    suite, directory = asked[0]
    quick = load_suite(SUITES / "quick.toml")
    assert suite == quick.model_copy(update={"methods": ["pnn", "er"]})
    assert directory == Path("results/quick-pnn+er")
    assert "no suite is named, so pnn, er run under the conditions of the suite quick" in capsys.readouterr().err


def test_without_suite_and_methods_quick_runs_and_is_named(
    asked: list[tuple[Suite, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run") == 1
    assert asked[0] == (load_suite(SUITES / "quick.toml"), Path("results/quick"))
    assert "no suite is named, so this runs quick: " in capsys.readouterr().err


def test_a_method_is_added_to_those_chosen_of_a_named_suite(
    asked: list[tuple[Suite, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added = ("--add-method", "lightcl@released", "--set", "lightcl@released.beta=0.1")
    assert call(monkeypatch, "run", "quick", "--method", "er", *added) == 1
    suite, directory = asked[0]
    assert (suite.methods, directory) == (["er", "lightcl@released"], Path("results/quick"))
    assert suite.config == {"lightcl@released": {"beta": 0.1}}
    assert "no suite is named" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("quick", "--method", "pnn"), "the suite does not run 'pnn'"),
        (("quick", "--method", "pnn"), "--add-method pnn adds a method"),
        (("quick", "--add-method", "er"), "the suite runs 'er' already"),
        (("quick", "--add-method", "pnn", "--add-method", "pnn"), "it names pnn more than once"),
        (("quick", "--add-method", "pn"), "there is no method 'pn': did you mean 'pnn'"),
        (("--method", "derp"), "there is no method 'derp': did you mean 'derpp'"),
    ],
)
def test_a_wrong_choice_of_methods_is_refused(
    arguments: tuple[str, ...],
    sentence: str,
    asked: list[tuple[Suite, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "run", *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert asked == []


def test_an_added_method_runs_also_where_all_variations_name_theirs() -> None:
    vary = [Variation(methods=["sgd"], batch_size=4)]
    suite = Suite(title="t", methods=["sgd"], streams=["synthetic-8px"], measure=["memory"], vary=vary)
    specs = with_methods(suite, ["er"]).specs()
    assert [(spec.method, spec.batch_size) for spec in specs] == [("sgd", 4), ("er", 32)]
    assert [spec.method for spec in only_methods(with_methods(suite, ["er"]), ["er"]).specs()] == ["er"]


def test_a_new_suite_has_every_key_with_its_default(tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    shown = tmp_path / "shown.toml"
    shown.write_text(re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE).replace("weights =", "# weights ="))
    suite = load_suite(shown)
    missing = {name for name in Suite.model_fields if not re.search(rf"^(?:# )?\[*{name}\b", text, re.MULTILINE)}
    assert missing == set()
    assert suite.vary[0].model_fields_set == set(Variation.model_fields)
    examples = {"title", "methods", "streams", "weights", "budget", "steps_per_task", "config", "vary"}
    examples |= {"num_classes", "image_size"}
    for name, field in Suite.model_fields.items():
        if name not in examples:
            assert getattr(suite, name) == field.get_default(call_default_factory=True), name
    assert suite.specs()


def test_a_new_suite_is_accepted_as_it_is_written(
    asked: list[tuple[Suite, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "new-suite", "mine.toml") == 0
    assert "clmem run mine.toml" in capsys.readouterr().out
    assert call(monkeypatch, "run", "mine.toml") == 1
    assert asked[0][0].methods == ["sgd", "er"]


@pytest.mark.parametrize("name", ["there.toml", "mine", "absent/mine.toml"])
def test_a_new_suite_never_overwrites_and_says_why_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("mine")
    assert call(monkeypatch, "new-suite", name) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "there.toml").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
