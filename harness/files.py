"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name in the same folder; it takes the place of `path` when all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path`, whole or not at all; return `path`."""
    with replacing(path) as file:
        file.write(content)
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UsageError for one that cannot be read or is not TOML."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return values
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def write_text(path: Path, content: str) -> Path:
    """Write text as UTF-8 with Unix line ends, whole or not at all; return `path`."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write a value as JSON, whole or not at all; return `path`."""
    return write_text(path, json.dumps(value, indent=1) + "\n")
