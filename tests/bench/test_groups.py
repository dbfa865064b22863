"""Groups of options: typer sees the fields of a dataclass, and the command gets the dataclass."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from clmem.bench.api import measure, predict
from clmem.bench.groups import FitOptions, LimitedOptions, MemoryOptions, grouped


@dataclass(frozen=True, kw_only=True)
class Base:
    width: Annotated[int, typer.Option(help="How wide.", min=1)] = 64


@dataclass(frozen=True, kw_only=True)
class Own(Base):
    width: Annotated[int, typer.Option(help="How narrow.", min=1)] = 16
    names: Annotated[list[str] | None, typer.Option("--name")] = None


def test_fields_are_options_and_arrive_as_the_dataclass() -> None:
    got: list[Any] = []

    def command(name: Annotated[str, typer.Argument()], options: Own, quick: bool = False) -> None:
        """Say what it does."""
        got.append((name, options, quick))

    command.__annotations__ = {"name": Annotated[str, typer.Argument()], "options": Own, "quick": bool, "return": None}
    app = typer.Typer()
    app.command()(grouped(command))
    assert CliRunner().invoke(app, ["a"]).exit_code == 0
    assert CliRunner().invoke(app, ["a", "--width", "3", "--name", "x", "--name", "y", "--quick"]).exit_code == 0
    assert got == [("a", Own(), False), ("a", Own(width=3, names=["x", "y"]), True)]
    assert CliRunner().invoke(app, ["a", "--width", "0"]).exit_code == 2
    text = CliRunner().invoke(app, ["--help"]).output
    assert "Say what it does." in text
    assert "How narrow." in text


@pytest.mark.parametrize(("function", "options"), [(measure, LimitedOptions), (predict, MemoryOptions)])
def test_a_function_for_scripts_has_the_commands_options_and_defaults(function: Any, options: Any) -> None:
    given = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    shared = {field.name: field.default for field in fields(options)}
    assert {name: default for name, default in given.items() if name in shared} == {
        name: default for name, default in shared.items() if name != "others"
    }
    assert set(given) - set(shared) <= {"method", "jobs"}


def test_fit_replays_all_that_the_buffer_holds() -> None:
    assert FitOptions(buffer_size=200).memory_spec("er").replay_size == 200
    assert LimitedOptions(buffer_size=200).memory_spec("er").replay_size == 32
