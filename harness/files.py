"""Files that a reader sees whole or not at all, and files of others, of which nothing is taken for granted."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from clmem.harness.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNFINISHED = ".clmem-part"
"""How the name of a file ends while it is written."""

LARGEST_TEXT_BYTES = 64 * 2**20
"""Of a file that is read as text in one piece."""

LARGEST_TOML_BYTES = 2**20
DEEPEST_TOML = 64
"""Parts of a dotted key: the parser takes quadratic time for them, a minute for 50,000."""

_TOML_TEXT = re.compile(
    r"""\#[^\n]* | \"{3}(?:\\.|[^\\])*?(?:\"{3}|\Z) | '{3}.*?(?:'{3}|\Z) | "(?:\\.|[^"\\\n])*"? | '[^'\n]*'?""",
    re.DOTALL | re.VERBOSE,
)
"""Comments and strings of TOML, in which dots mean nothing."""
_DOTTED = re.compile(r"[\w-]+(?:[ \t]*\.[ \t]*[\w-]+)*")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name in the same folder; it takes the place of `path` when all went well.

    An OSError names the path, also where the system's own does not, as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        temporary.unlink(missing_ok=True)  # whatever has that name, a link in a folder of others among it
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left behind in a folder that nobody else is writing to."""
    for orphan in folder.glob(f".*{UNFINISHED}"):
        orphan.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path`, whole or not at all; return `path`."""
    with replacing(path) as file:
        file.write(content)
    return path


def write_text(path: Path, content: str) -> Path:
    """Write text as UTF-8 with Unix line ends, whole or not at all; return `path`."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write a value as JSON, whole or not at all; return `path`."""
    return write_text(path, json.dumps(value, indent=1) + "\n")


def expand(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder. Raises UsageError where there is none, or for a NUL."""
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r} is no path, because it holds a NUL character; give the path of a file")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{str(path)!r} names a home folder that this system does not know; write it out") from error


def regular(path: Path, what: str) -> int:
    """Return the size in bytes of a regular file. Raises UsageError for anything else; `what` says what was expected.

    A pipe, a socket or a device would be read for ever.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}; give the path of a file") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise UsageError(f"cannot read {what} {path}: it is {kind}; give the path of a file")
    return found.st_size


def read_text(path: Path, what: str, largest_bytes: int = LARGEST_TEXT_BYTES) -> str:
    """Return the text of a UTF-8 file, with a byte order mark or without.

    Raises UsageError for what is no regular file, larger than `largest_bytes`, unreadable, or not UTF-8.
    """
    size = regular(path, what)
    if size > largest_bytes:
        raise UsageError(f"{what} {path} has {size:,} B, more than the {largest_bytes:,} that clmem reads")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}; give the path of a file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UsageError for one that cannot be read, is not TOML, or is huge or deeply nested."""
    text = read_text(path, "the file", LARGEST_TOML_BYTES)
    bare = _TOML_TEXT.sub(lambda found: "" if found[0].startswith("#") else "s", text)
    if any(key.count(".") >= DEEPEST_TOML for key in _DOTTED.findall(bare)):
        raise UsageError(f"{path} has a key of more than {DEEPEST_TOML} parts; clmem knows none of more than 4")
    try:
        values: dict[str, Any] = tomllib.loads(text)
        return values
    except RecursionError as error:
        raise UsageError(f"{path} has brackets nested too deeply to be read; clmem knows no value like that") from error
    except ValueError as error:  # a number of thousands of digits is one too
        raise UsageError(f"{path} is not valid TOML: {error}") from error
