"""Finds the official files of a data set, or downloads them, and checks that they are what they should be."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir

from harness.errors import UsageError

SYSTEM_FOLDERS = (Path("/usr/share/datasets"), Path("/usr/share"))
"""Where distributions put data sets (Debian's package dataset-fashion-mnist uses the first)."""


@dataclass(frozen=True)
class Archive:
    """One file as its publisher offers it. md5: of the file itself, which also decides whether a download is good."""

    file: str
    url: str
    md5: str


def cache_folder() -> Path:
    """Return where converted data and downloads are kept: $CLMEM_CACHE, else the user's cache folder."""
    chosen = os.environ.get("CLMEM_CACHE")
    return Path(chosen).expanduser() if chosen else Path(user_cache_dir("clmem", appauthor=False))


def search_folders(data_root: str | Path | None) -> list[Path]:
    """Return where to look for data, best first: `data_root`, $CLMEM_DATA_ROOT, earlier downloads, the system's."""
    given = [data_root, os.environ.get("CLMEM_DATA_ROOT")]
    folders = [Path(folder).expanduser() for folder in given if folder]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file, but the data root must be the folder that holds the data set")
    return [*folders, cache_folder() / "downloads", *SYSTEM_FOLDERS]


def find(data_root: str | Path | None, subfolders: tuple[str, ...], names: tuple[str, ...]) -> Path | None:
    """Return the first of `names` (files or folders) in the first search folder that has one, or None."""
    folders = search_folders(data_root)
    candidates = (folder / sub / name for folder in folders for sub in subfolders for name in names)
    return next((path for path in candidates if path.exists()), None)


def check_md5(path: Path, content: bytes | None, expected: str) -> None:
    """Raise UsageError unless `content` (or the file itself, when None) has the expected md5."""
    actual = _file_md5(path) if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != expected:
        what = "" if content is None or path.suffix not in (".gz", ".tgz") else " after decompression"
        raise UsageError(
            f"{path} is not the official file: its md5{what} is {actual}, expected {expected}; "
            "delete it, and it is downloaded again, or replace it by the official one"
        )


def download(archive: Archive, data_root: str | Path | None) -> Path:
    """Download a file into `data_root` (or $CLMEM_DATA_ROOT, or the cache), check it and return its path.

    Raises UsageError that says where to put the file by hand when it cannot be had.
    """
    folder = search_folders(data_root)[0]
    partial = f"{archive.file}.part"
    try:
        # Only here, where nothing is measured: importing torchvision takes 160 MiB.
        from torchvision.datasets.utils import download_url  # type: ignore[import-untyped,unused-ignore]

        folder.mkdir(parents=True, exist_ok=True)
        download_url(archive.url, str(folder), filename=partial, md5=archive.md5)
        (folder / partial).replace(folder / archive.file)
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{archive.file} was not found and could not be downloaded from {archive.url} ({reason}); "
            f"put it (md5 {archive.md5}) into {folder}, or name the folder that holds it with --data-root"
        ) from error
    return folder / archive.file


def missing(path: Path, expected: str) -> UsageError:
    """Return the error for something that a found data set lacks."""
    return UsageError(f"{path} is not complete: expected {expected}; extract the official archive again")


def _file_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
