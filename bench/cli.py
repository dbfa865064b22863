"""The command `clmem`. Every command turns its options into specs, lets the harness run them, and shows the result.

Exit codes: 0 fine, 1 a check or a run failed, 2 bad usage, 130 interrupted. Errors are one sentence; `--debug` shows
the traceback. Torch is imported only by commands that run something.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from bench.commands.claims import claims
from bench.commands.fit import fit
from bench.commands.listing import list_
from bench.commands.measure import measure
from bench.commands.predict import predict
from bench.commands.pretrain import pretrain
from bench.commands.probe import probe
from bench.commands.report import report
from bench.commands.run import run
from harness.errors import ClmemError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = "interrupted; the same command completes what is missing"
USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, which recent versions of typer carry inside


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Measure, to the byte, what continual-learning methods hold in memory, beside what they deliver."""


for command in (run, measure, predict, fit, report, claims, pretrain, probe):
    app.command()(command)
app.command(name="list")(list_)


def main() -> None:
    """Run the command line; print errors as one sentence."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False) or 0
        message = INTERRUPTED if code == 130 else ""  # typer may turn Ctrl-C into this code itself
    except USAGE_ERROR as error:
        message, code = error.format_message(), 2
    except ClmemError as error:
        if debug:
            raise
        message, code = str(error), 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if debug:
            raise
        message, code = f"{error.strerror}: {error.filename}" if error.filename else str(error), 2
    except (KeyboardInterrupt, typer.Abort):
        message, code = INTERRUPTED, 130
    if message:  # without arguments the help has been printed, which says enough
        print(f"clmem: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
