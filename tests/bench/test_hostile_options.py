"""Every option of every command takes whatever it is given: it is used, or refused in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import clmem.bench.app
import clmem.harness.answers.fit
import clmem.harness.answers.prediction
import clmem.harness.answers.probe
import clmem.harness.learning.pretrain
import clmem.harness.runs.directory
import clmem.harness.runs.runner
import clmem.reports.claims.page
import clmem.reports.report
from clmem.bench.cli import LONGEST, main
from clmem.harness.errors import ClmemError

LONG, DIGITS = "x" * 5000, "9" * 400
TEXTS = (
    "", " ", "\0", LONG, "\udcff", "\x1b[31m[/red]", "a\nb", "/", "~", "~nobody-at-all/x", "../..", "a/b", "/dev/zero",
    "null", "true", "NaN", "Infinity", "\N{ARABIC-INDIC DIGIT THREE}", "-1", "0", "1e999", DIGITS, str(2**64), "@", "=",
)  # fmt: skip
SPECIAL = {
    "method": ("sgd@", "sgd@sgd", "@sgd", "sgd/../er", "sgd\n"),
    "stream": ("synthetic-0px", "synthetic-1px", f"synthetic-{DIGITS}px", "synthetic--1px", "split-"),
    "target": ("cuda:", "cuda:-1", "cuda:99999", "cpu:0", "cuda:\N{SUPERSCRIPT TWO}", "predicted-cpu"),
    "execution": (
        "lean,lean", "plain,lean", f"trunk_chunk={DIGITS}", "trunk_chunk", "=,=", "conv_slice=-1", "x," * 999
    ),
    "budget": ("1B", "0", f"{DIGITS}GiB", "-1GiB", "1e3", "1 gib gib", "jetson-orin-nano-8gb\n"),
    "settings": (
        "lr", "=1", "lr=", "lr=1e999", "lr=-Infinity", "lr=NaN", "lr=true", "lr=null", "lr=[1]", f"lr={DIGITS}",
        f"lr={'[' * 100_000}", f"lr={2**63}", "sgd.lr=Infinity", "sgd.=1", f"sgd.lr={LONG}", "lr\0=1",
    ),
}  # fmt: skip
SPECIAL["added"] = SPECIAL["method"]
SPECIAL |= {"streams": SPECIAL["stream"], "executions": SPECIAL["execution"], "methods": SPECIAL["method"]}
BEFORE: dict[str, list[str]] = {
    "measure": ["sgd", "--width", "1"],
    "predict": ["sgd", "--width", "1"],
    "fit": ["sgd", "--budget", "1GiB", "--width", "1"],
    "pretrain": ["out.safetensors"],
    "run": ["quick", "--method", "sgd"],
    "claims": [],
    "probe": [],
    "report": [],
    "list": [],
}


COMMANDS: Any = typer.main.get_command(clmem.bench.app.app)
"""What typer makes of the commands, once: making it takes three quarters of a call that is refused."""


class Began(ClmemError):
    """Raised in place of all work."""


def _options() -> Iterator[Any]:
    for name, command in sorted(COMMANDS.commands.items()):
        for option in command.params:
            if not getattr(option, "is_flag", False):
                yield pytest.param(name, option, id=f"{name}-{option.name}")


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def begin(*given: object, **named: object) -> None:
        raise Began("it would begin")

    monkeypatch.setenv("CLMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(clmem.bench.app, "app", COMMANDS)
    monkeypatch.setattr(clmem.harness.runs.runner, "run_specs", begin)
    monkeypatch.setattr(clmem.harness.runs.directory, "run_suite", begin)
    for module, work in (
        (clmem.harness.answers.prediction, "predict"),
        (clmem.harness.learning.pretrain, "pretrain"),
        (clmem.harness.answers.probe, "probe"),
        (clmem.harness.answers.fit, "fit"),
        (clmem.reports.claims.page, "write_page"),  # which would write to any folder that is named
        (clmem.reports.report, "write_report"),
    ):
        monkeypatch.setattr(module, work, begin)


def _said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["clmem", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().err.strip()  # a bar that vanishes leaves an empty line


@pytest.mark.parametrize(("command", "option"), list(_options()))
def test_hostile_values_are_used_or_refused_in_a_sentence(
    command: str, option: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in TEXTS + SPECIAL.get(option.name, ()):
        is_argument = option.param_type_name == "argument"
        given = ["--", value] if is_argument else [*BEFORE[command], option.opts[0], value]
        code, errors = _said(monkeypatch, capsys, command, *given)
        assert code in (0, 1, 2), (value[:80], errors)
        assert "unexpected" not in errors, (value[:80], errors)
        assert len(errors.strip().splitlines()) == (code != 0), (value[:80], errors)
        assert len(errors) <= LONGEST + 100, value[:80]
