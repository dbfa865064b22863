"""Reads TinyImageNet (tiny-imagenet-200): JPEG files in the official zip or in the folder it extracts to.

Classes are numbered in the order of wnids.txt; the official validation split is the test split, for the real test
split has no labels. The JPEG decoder is the machine's, so the data digest may differ between machines by its rounding.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clmem.harness.errors import UsageError
from clmem.harness.streams.archives import Archive, download, find, missing, official
from clmem.harness.streams.bar import bar

LARGEST_BYTES = 2**22
"""Of one file in the data set: its images have some kilobytes, its longest list 500."""

_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""What val_annotations.txt may name: a file in val/images, not a path that leads elsewhere."""


@dataclass(frozen=True)
class TinySource:
    """The data set. The counts are what an extracted folder, which has no checksum, is held to."""

    archive: Archive
    folder: str
    num_classes: int
    train_per_class: int
    num_test: int


TINY_IMAGENET = TinySource(
    # The publisher prints no digest. This one is the same in eight public lists, among them that of the copy at
    # huggingface.co/datasets/cnak47/cv-datasets, and of a file with the md5 that Avalanche prints.
    archive=Archive(
        "tiny-imagenet-200.zip",
        "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        248_100_043,
    ),
    folder="tiny-imagenet-200",
    num_classes=200,
    train_per_class=500,
    num_test=10_000,
)

_SUBFOLDERS = ("", "tinyimagenet", "TinyImageNet", "tiny-imagenet")


@dataclass(frozen=True)
class _Files:
    """Where the files are and how to read one, by its path inside the data set's folder."""

    place: Path
    names: list[str]
    read: Callable[[str], bytes]

    def text(self, name: str) -> str:
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise missing(self.place, f"UTF-8 text in {name}") from error


def convert(folder: Path, source: TinySource, data_root: str | Path | None) -> None:
    """Write the four arrays of `cache.FILES` into `folder`: images [N, 3, 64, 64], labels [N]. Raises UsageError."""
    path = find(data_root, _SUBFOLDERS, (source.archive.file, source.folder))
    if path is not None and path.is_dir():
        _write(folder, source, _extracted(path))
        return
    path = path or download(source.archive, data_root)
    with official(path, source.archive) as file, zipfile.ZipFile(file) as archive:
        prefix = f"{source.folder}/"
        members = {member.filename: member for member in archive.infolist() if member.filename.startswith(prefix)}

        def read(name: str) -> bytes:
            member = members.get(prefix + name)
            if member is None or member.file_size > LARGEST_BYTES:
                raise missing(path, f"the file {name} in it")
            return archive.read(member)

        _write(folder, source, _Files(path, [name.removeprefix(prefix) for name in members], read))


def _extracted(folder: Path) -> _Files:
    from clmem.harness.streams.pictures import files_below

    def read(name: str) -> bytes:
        file = folder / name
        if not file.is_file() or file.stat().st_size > LARGEST_BYTES:
            raise missing(folder, f"the file {name} in it")
        return file.read_bytes()

    return _Files(folder, [file.relative_to(folder).as_posix() for file in files_below(folder)], read)


def _write(folder: Path, source: TinySource, files: _Files) -> None:
    words = files.text("wnids.txt").split()
    number = {word: index for index, word in enumerate(words)}
    if not len(number) == len(words) == source.num_classes:
        raise missing(files.place, f"{source.num_classes} classes in wnids.txt, found {len(number)}")
    lines = [line.split("\t") for line in files.text("val/val_annotations.txt").splitlines() if line]
    names = sorted(name for name in files.names if name.startswith("train/") and name.endswith(".JPEG"))
    try:
        train = [(name, number[name.split("/")[1]]) for name in names]
        test = [(f"val/images/{_plain(line[0], files.place)}", number[line[1]]) for line in lines]
    except (KeyError, IndexError) as error:
        raise missing(files.place, f"only the classes of wnids.txt, found {error}") from error
    counts = np.bincount([label for _, label in train], minlength=len(words))
    if (counts != source.train_per_class).any():
        worst = int(np.argmax(counts != source.train_per_class))
        expected = f"{source.train_per_class} images in train/{words[worst]}, found {counts[worst]}"
        raise missing(files.place, expected)
    if not len(test) == len(dict(test)) == source.num_test:
        raise missing(files.place, f"{source.num_test} images in val/val_annotations.txt, found {len(dict(test))}")
    _decode(folder, "train", files, train)
    _decode(folder, "test", files, test)


def _plain(name: str, place: Path) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise missing(place, f"names of files in val/val_annotations.txt, found {name[:80]!r}")
    return name


def _decode(folder: Path, split: str, files: _Files, items: list[tuple[str, int]]) -> None:
    # Straight to disk: the training images are 1.2 GB. Not through a memory map, which dies when the disk is full.
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(items), 3, 64, 64)}
    with (folder / f"{split}_images.npy").open("wb") as file, bar(f"decoding TinyImageNet ({split})", len(items)) as on:
        np.lib.format.write_array_header_1_0(file, header)
        for name, _ in items:
            file.write(_image(files, name).tobytes())
            on()
    np.save(folder / f"{split}_labels.npy", np.array([label for _, label in items], np.uint8))


def _image(files: _Files, name: str) -> NDArray[np.uint8]:
    from clmem.harness.streams.pictures import decode

    try:
        pixels = np.asarray(decode(io.BytesIO(files.read(name))), np.uint8)
    except ValueError as error:
        raise UsageError(
            f"{files.place} holds no readable image {name} ({error}); extract the official archive again"
        ) from error
    if pixels.shape != (64, 64, 3):
        raise UsageError(
            f"{name} in {files.place} is {pixels.shape[1]} x {pixels.shape[0]}, expected 64 x 64 pixels; "
            "extract the official archive again"
        )
    channels_first: NDArray[np.uint8] = pixels.transpose(2, 0, 1)
    return channels_first
