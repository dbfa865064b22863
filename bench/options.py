"""What the commands share: options, and what becomes of their values."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from clmem.harness.errors import UsageError
from clmem.harness.files import expand
from clmem.harness.results.record import RunResult
from clmem.harness.specs.run import RunSpec, Scalar, Sources, spec_errors, weights_label
from clmem.harness.text import clean

SUITES = Path(__file__).parent / "suites"


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


Streams = Annotated[list[str] | None, typer.Option("--stream", help="Stream (repeatable); see `clmem list streams`.")]
Network = Annotated[str | None, typer.Option(help="Network; see `clmem list networks`.")]
Width = Annotated[int | None, typer.Option(help="Channels of the network's first stage (64 is standard).")]
Target = Annotated[str | None, typer.Option(help="Where to measure; see `clmem list targets`.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples per training batch.")]
BufferSize = Annotated[int | None, typer.Option(help="Replay slots in all.")]
ReplaySize = Annotated[int | None, typer.Option(help="Samples replayed per step.")]
BudgetName = Annotated[
    str | None, typer.Option("--budget", help="What a run may take: a board (`clmem list budgets`), or bytes as 2GiB.")
]
Others = Annotated[
    int | None,
    typer.Option(min=0, max=2**63 - 1, help="Bytes other processes may hold on a GPU at the start (default: 64 MiB)."),
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A method's setting as key=value (repeatable).")]
Execution = Annotated[
    str | None, typer.Option(help="How steps are carried out: plain, lean, or techniques as key=value,key=value.")
]
DataRoot = Annotated[Path | None, path_option(help="Folder that holds the data sets.")]
Weights = Annotated[
    Path | None, path_option(help="Pretrained weights to start from (safetensors, or a saved state dict).")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=256, help="Processes side by side (default: cores + 1, at most 4).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def make_spec(**fields: Any) -> RunSpec:
    """Return the spec. Raises UsageError with one sentence for what is wrong in it."""
    try:
        return RunSpec(**fields)
    except ValidationError as error:
        raise UsageError(spec_errors(error, list(RunSpec.model_fields))) from error


def memory_spec(*, replay_size: int | None, settings: list[str] | None, weights: Path | None, **fields: Any) -> RunSpec:
    """Return the spec of one memory run from the options of `measure` and `predict`, as `make_spec` does."""
    sizes = (fields["batch_size"] or 1, fields["buffer_size"] or 0)
    return make_spec(
        replay_size=max(0, min(sizes)) if replay_size is None else replay_size,
        weights=None if weights is None else weights_label(str(weights)),
        config=dict(read_setting(text) for text in settings or []),
        measure="memory",
        **fields,
    )


def make_sources(data_root: Path | None, weights: Path | str | None, others: int | None = None) -> Sources:
    """Return where data sets and weights lie on this machine, and what its GPU may already hold."""
    found = {"data_root": data_root, "weights": weights}
    return Sources(
        **{name: str(path) for name, path in found.items() if path is not None},
        **({} if others is None else {"others_bytes": others}),
    )


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
