"""Finds the official files of a data set, or downloads them, and opens none that is not byte for byte the publisher's.

Size and sha256 tell whether it is. The comment beside such a constant names the sources that print it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_dir

from clmem.harness.errors import UsageError
from clmem.harness.files import expand, regular, replacing
from clmem.harness.streams.bar import bar
from clmem.harness.text import clean

SYSTEM_FOLDERS = (Path("/usr/share/datasets"), Path("/usr/share"))
"""Where distributions put data sets (Debian's package dataset-fashion-mnist uses the first)."""

STALLED_S = 60.0
"""After so long without a byte a download is given up."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One file as its publisher offers it."""

    file: str
    url: str
    sha256: str
    size_bytes: int


def cache_folder() -> Path:
    """Return where converted data and downloads are kept: $CLMEM_CACHE, else the user's cache folder.

    Raises UsageError where neither can be told.
    """
    chosen = os.environ.get("CLMEM_CACHE")
    try:
        return expand(chosen or user_cache_dir("clmem", appauthor=False))
    except (UsageError, RuntimeError) as error:  # platformdirs raises the latter, or leaves the `~` in the path
        where = repr(chosen) if chosen else "the user's cache folder"
        raise UsageError(
            f"{where} is in a home folder that this system does not know; name a folder for prepared data with the "
            "variable CLMEM_CACHE"
        ) from error


def search_folders(data_root: str | Path | None) -> list[Path]:
    """Return where to look for data, best first: `data_root`, $CLMEM_DATA_ROOT, earlier downloads, the system's.

    Raises UsageError where one of the first two is given and is no folder.
    """
    given = [data_root, os.environ.get("CLMEM_DATA_ROOT")]
    folders = [expand(folder) for folder in given if folder]
    for folder in folders:
        if not _exists(folder):
            raise UsageError(f"there is no folder {folder} to look for data in; make it, or name another --data-root")
        if not folder.is_dir():
            raise UsageError(f"{folder} is a file, but the data root must be the folder that holds the data set")
    return [*folders, cache_folder() / "downloads", *SYSTEM_FOLDERS]


def find(data_root: str | Path | None, subfolders: tuple[str, ...], names: tuple[str, ...]) -> Path | None:
    """Return the first of `names` (files or folders) in the first search folder that has one, or None."""
    folders = search_folders(data_root)
    candidates = (folder / sub / name for folder in folders for sub in subfolders for name in names)
    return next((path for path in candidates if _exists(path)), None)


@contextmanager
def official(path: Path, archive: Archive) -> Iterator[BinaryIO]:
    """Open a file that was found, once every byte of it is known to be the publisher's. Raises UsageError."""
    size = regular(path, "the archive")
    if size != archive.size_bytes:
        raise not_official(path, f"it has {size:,} B, expected {archive.size_bytes:,} B")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
        check_sha256(path, digest.hexdigest(), archive.sha256)
        file.seek(0)
        yield file


def check_sha256(path: Path, found: str, expected: str, what: str = "its sha256") -> None:
    """Raise UsageError unless two digests are equal; `what` says of what they are."""
    if found != expected:
        raise not_official(path, f"{what} is {found}, expected {expected}")


def not_official(path: Path, reason: str) -> UsageError:
    """Return the error for a file that is not what its publisher offers."""
    return UsageError(
        f"{path} is not the official file: {reason}; delete it, and it is downloaded again, or replace it by the "
        "official one"
    )


def download(archive: Archive, data_root: str | Path | None) -> Path:
    """Download a file into `data_root` (or $CLMEM_DATA_ROOT, or the cache), check it and return its path.

    Raises UsageError that says where to put the file by hand when it cannot be had.
    """
    from http.client import HTTPException

    folder = search_folders(data_root)[0]
    path = folder / archive.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        blocks = -(-archive.size_bytes // _BLOCK_BYTES)
        with replacing(path) as file, bar(f"downloading {archive.file}", blocks) as advance:
            _fetch(archive, file, advance)
    except (OSError, HTTPException, ValueError) as error:
        raise UsageError(
            f"{archive.file} was not found and could not be downloaded from {archive.url} "
            f"({clean(str(error)) or type(error).__name__}); put it (sha256 {archive.sha256}) into {folder}, or name "
            "the folder that holds it with --data-root"
        ) from error
    return path


def missing(path: Path, expected: str) -> UsageError:
    """Return the error for something that a found data set lacks."""
    return UsageError(f"{path} is not complete: expected {expected}; extract the official archive again")


def _fetch(archive: Archive, file: BinaryIO, advance: Callable[[], None]) -> None:
    """Write what the publisher sends into `file`, up to the archive's size. Raises ValueError if it is another file."""
    from urllib.request import Request, urlopen  # slow to import, and seldom needed

    request = Request(archive.url, headers={"User-Agent": "clmem"})
    digest, left = hashlib.sha256(), archive.size_bytes
    with urlopen(request, timeout=STALLED_S) as response:
        while block := response.read(min(left + 1, _BLOCK_BYTES)):
            left -= len(block)
            if left < 0:
                break
            file.write(block)
            digest.update(block)
            advance()
    if left > 0:
        raise ValueError(f"the server sent {archive.size_bytes - left:,} of {archive.size_bytes:,} B")
    if left < 0 or digest.hexdigest() != archive.sha256:
        raise ValueError("the server sent another file than the official one")


def _exists(path: Path) -> bool:
    """Say whether there is something at a path. Raises UsageError where that cannot be told."""
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # a name too long, a folder nobody may enter
        raise UsageError(f"cannot look for data at {path} ({clean(str(error))}); name another --data-root") from error
