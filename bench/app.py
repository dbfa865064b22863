"""Puts the commands together. `bench/cli.py` imports this when it is ready for whatever goes wrong."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

import clmem
from clmem.bench.commands.claims import claims
from clmem.bench.commands.fit import fit
from clmem.bench.commands.listing import list_
from clmem.bench.commands.measure import measure
from clmem.bench.commands.new_suite import new_suite
from clmem.bench.commands.predict import predict
from clmem.bench.commands.pretrain import pretrain
from clmem.bench.commands.probe import probe
from clmem.bench.commands.report import report
from clmem.bench.commands.run import run
from clmem.bench.commands.show import show
from clmem.bench.groups import grouped

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, which recent versions of typer carry inside
ABORT = typer.Abort
"""What typer makes of Ctrl-C."""


def _say_version(asked: bool) -> None:
    if asked:
        print(f"clmem {clmem.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure, to the byte, what continual-learning methods hold in memory, beside what they deliver.

    Begin with `clmem list methods` and `clmem measure er`.

    `clmem COMMAND --help` explains a command.

    `clmem --install-completion` lets your shell complete commands, options and names.
    """


for command in (run, measure, predict, fit, report, claims, pretrain, probe, show):
    app.command()(grouped(command))
app.command(name="list")(list_)
app.command(name="new-suite")(new_suite)


def call(arguments: list[str]) -> int:
    """Call the command that the arguments name; return its exit code. Raises whatever goes wrong in it."""
    try:
        return app(arguments, prog_name="clmem", standalone_mode=False) or 0
    except SystemExit as error:
        if not _completes(arguments):
            raise
        return int(error.code or 0)


def _completes(arguments: list[str]) -> bool:
    """Say whether a shell asks for completions or for its script, which typer ends by SystemExit."""
    asked = any(argument.startswith(("--show-completion", "--install-completion")) for argument in arguments[:1])
    return asked or "_CLMEM_COMPLETE" in os.environ


def usage_sentence(error: BaseException) -> str | None:
    """Return what typer says about wrong arguments, None for any other exception."""
    return error.format_message() if isinstance(error, USAGE_ERROR) else None
