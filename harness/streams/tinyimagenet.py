"""Reads TinyImageNet (tiny-imagenet-200): JPEG files in the official zip or in the folder it extracts to.

Classes are numbered in the order of wnids.txt; the official validation split is the test split, for the real test
split has no labels. The JPEG decoder is the machine's, so the data digest may differ between machines by its rounding.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.streams.archives import Archive, check_md5, download, find, missing
from harness.streams.bar import bar


@dataclass(frozen=True)
class TinySource:
    """The data set. The counts are what an extracted folder, which has no checksum, is held to."""

    archive: Archive
    folder: str
    num_classes: int
    train_per_class: int
    num_test: int


TINY_IMAGENET = TinySource(
    archive=Archive(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
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
        except (KeyError, OSError) as error:
            raise missing(self.place, f"the file {name} in it") from error


def convert(folder: Path, source: TinySource, data_root: str | Path | None) -> None:
    """Write the four arrays of `cache.FILES` into `folder`: images [N, 3, 64, 64], labels [N]. Raises UsageError."""
    path = find(data_root, _SUBFOLDERS, (source.archive.file, source.folder))
    if path is not None and path.is_dir():
        extracted = path
        names = sorted(file.relative_to(extracted).as_posix() for file in extracted.rglob("*.JPEG"))
        _write(folder, source, _Files(extracted, names, lambda name: (extracted / name).read_bytes()))
        return
    if path is None:
        path = download(source.archive, data_root)
    else:
        check_md5(path, None, source.archive.md5)
    with zipfile.ZipFile(path) as archive:
        prefix = f"{source.folder}/"
        names = sorted(name.removeprefix(prefix) for name in archive.namelist() if name.endswith(".JPEG"))
        _write(folder, source, _Files(path, names, lambda name: archive.read(prefix + name)))


def _write(folder: Path, source: TinySource, files: _Files) -> None:
    words = files.text("wnids.txt").split()
    if len(words) != source.num_classes:
        raise missing(files.place, f"{source.num_classes} classes in wnids.txt, found {len(words)}")
    number = {word: index for index, word in enumerate(words)}
    lines = [line.split("\t") for line in files.text("val/val_annotations.txt").splitlines() if line]
    try:
        train = [(name, number[name.split("/")[1]]) for name in files.names if name.startswith("train/")]
        test = [(f"val/images/{line[0]}", number[line[1]]) for line in lines]
    except (KeyError, IndexError) as error:
        raise missing(files.place, f"only the classes of wnids.txt, found {error}") from error
    counts = np.bincount([label for _, label in train], minlength=len(words))
    if (counts != source.train_per_class).any():
        worst = int(np.argmax(counts != source.train_per_class))
        expected = f"{source.train_per_class} images in train/{words[worst]}, found {counts[worst]}"
        raise missing(files.place, expected)
    if len(test) != source.num_test:
        raise missing(files.place, f"{source.num_test} lines in val/val_annotations.txt, found {len(test)}")
    _decode(folder, "train", files, train)
    _decode(folder, "test", files, test)


def _decode(folder: Path, split: str, files: _Files, items: list[tuple[str, int]]) -> None:
    # Straight to disk: the training images are 1.2 GB.
    images = np.lib.format.open_memmap(
        folder / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(items), 3, 64, 64)
    )
    with bar(f"decoding TinyImageNet ({split})", len(items)) as advance:
        for row, (name, _) in zip(images, items, strict=True):
            row[:] = _image(files, name)
            advance()
    images.flush()
    np.save(folder / f"{split}_labels.npy", np.array([label for _, label in items], np.uint8))


def _image(files: _Files, name: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(name))) as image:
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, KeyError) as error:
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
