"""`clmem new-suite`: a suite file to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from clmem.bench.options import path_argument
from clmem.harness.errors import UsageError
from clmem.harness.text import clean

TEMPLATE = Path(__file__).parents[1] / "new_suite.toml"


def new_suite(
    path: Annotated[Path, path_argument(help="The file to write, for example my-suite.toml.")],
) -> None:
    """Write a suite file that explains each key and its default; `clmem run PATH` runs it."""
    shown = clean(str(path), 300)
    if path.suffix != ".toml":
        raise UsageError(f"{shown!r} does not end in .toml, by which `clmem run` tells a file from a name; add it")
    try:
        with path.open("x", encoding="utf-8") as file:  # never over a file that is there
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UsageError(f"{shown} exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise UsageError(f"cannot write {shown}: {error.strerror}; choose another place") from error
    print(f"{shown}: edit it, then run it with `clmem run {shown}`")
