"""The options that commands share, and how their texts are read. `bench/groups.py` puts them together by command."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clmem.harness.errors import UsageError
from clmem.harness.files import expand
from clmem.harness.text import clean

if TYPE_CHECKING:
    from clmem.harness.results.record import RunResult
    from clmem.harness.specs.run import Scalar

SUITES = Path(__file__).parent / "suites"


def suite_names() -> list[str]:
    """Return the names of the suites that come with clmem, sorted."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))


def named_path(text: str) -> Path:
    """Return a path as workers and results can be told of it, `~` replaced by the home folder.

    Raises UsageError for one that is no path, or no text in UTF-8.
    """
    path = expand(text)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the name {clean(str(path))!r} holds bytes that are no text in {sys.getfilesystemencoding()}, so no "
            "worker could be told of it; rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)"
        ) from error
    return path


def path_option(*names: str, help: str) -> Any:
    """Return an option whose value is a path; `~` in it is the home folder."""
    return typer.Option(*names, help=help, parser=named_path, metavar="PATH")


def path_argument(help: str) -> Any:
    """Return an argument whose value is a path, as `path_option` does."""
    return typer.Argument(help=help, parser=named_path, metavar="PATH")


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that begin like this, for a shell."""
    from clmem.harness.learning.registry import method_names

    return [name for name in method_names() if name.startswith(incomplete)]


def complete_method_or_suite(incomplete: str) -> list[str]:
    """Return the methods and suites that begin like this, for a shell."""
    return complete_method(incomplete) + [name for name in suite_names() if name.startswith(incomplete)]


def complete_stream(incomplete: str) -> list[str]:
    """Return the streams that begin like this, for a shell."""
    from clmem.harness.streams import STREAMS

    return [name for name in STREAMS if name.startswith(incomplete)]


def complete_network(incomplete: str) -> list[str]:
    """Return the networks that begin like this, for a shell."""
    from clmem.harness.networks.registry import NETWORKS

    return [name for name in NETWORKS.names() if name.startswith(incomplete)]


METHOD: Any = typer.Argument(help="Method; see `clmem list methods`.", autocompletion=complete_method)
STREAM: Any = typer.Option(help="Stream; see `clmem list streams`.", autocompletion=complete_stream)
NETWORK: Any = typer.Option(help="Network; see `clmem list networks`.", autocompletion=complete_network)
WIDTH: Any = typer.Option(help="Width of the network: 64 is as published, 32 has half the channels in every layer.")
NUM_CLASSES: Any = typer.Option(help="Classes of a synthetic stream (default: what its name says).")
IMAGE_SIZE: Any = typer.Option(help="Side of a synthetic stream's images in pixels (default: what its name says).")
TARGET: Any = typer.Option(help="Where to measure; see `clmem list targets`.")
BATCH_SIZE: Any = typer.Option(help="Samples per training batch.")
BUFFER_SIZE: Any = typer.Option(
    help="Replay slots in all. Only methods with a replay buffer have them; `clmem show METHOD` says which it is."
)
REPLAY_SIZE: Any = typer.Option(help="Samples that a method with a replay buffer replays per step.")
BUDGET: Any = typer.Option(help="Limit of a run: a board (see `clmem list budgets`), or bytes such as 2GiB.")
OTHERS: Any = typer.Option(
    min=0, max=2**63 - 1, help="Bytes other processes may hold on a GPU at the start (default: 64 MiB)."
)
SETTINGS: Any = typer.Option("--set", help="A method's setting as key=value (repeatable); see `clmem show METHOD`.")
EXECUTION: Any = typer.Option(
    help="plain, lean (the techniques that the method chose; `clmem show METHOD` lists them), or techniques as "
    "key=value,key=value; see `clmem list techniques`."
)
DATA_ROOT: Any = path_option(help="Folder that holds the data sets.")
WEIGHTS: Any = path_option(help="Pretrained weights to start from (safetensors, or a saved state dict).")
JOBS: Any = typer.Option(min=1, max=256, help="Processes at the same time (default: cores + 1, at most 4).")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_setting(text: str) -> tuple[str, Scalar]:
    """Read key=value, the value as JSON where it is a number or a truth value. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes key=value, not {clean(text, 80)!r}; write for example --set lr=0.01")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):  # among them a number of thousands of digits
        return key, value
    return key, parsed if isinstance(parsed, bool | int | float) else value


def make_directory(path: Path) -> None:
    """Make the directory and see that it can be written to. Raises UsageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}; choose another --out") from error


def is_sound(result: RunResult) -> bool:
    """Return whether the run went well and everything in it added up."""
    return result.status == "ok" and not result.checks
