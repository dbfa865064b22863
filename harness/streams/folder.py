"""Reads a folder of images as training data for one task of all its classes, to pretrain a network on.

FOLDER/class/image, or FOLDER/train/class/image with FOLDER/val/class/image (else FOLDER/test/...) beside it. Classes
are numbered in the order of their names, images lie in the order of their paths. The JPEG decoder is the machine's, so
the data digest may differ between machines by its rounding.

What is hidden is left alone. What is not, and still is no image that can be read, is counted and named in the stream's
description. Links to files are followed, links to folders only where they are class folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clmem.harness.errors import UsageError
from clmem.harness.files import expand, regular
from clmem.harness.streams.bar import bar
from clmem.harness.streams.catalog import StreamInfo
from clmem.harness.streams.pictures import LARGEST_BYTES, decode, files_below
from clmem.harness.streams.samples import ArrayImages, DataSet, Split
from clmem.harness.text import clean

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm"})
"""Which files are images, in small or capital letters."""

NAMED_KINDS = 5
"""How many kinds of files that were left out are named."""

HOLD_OUT = 10
"""Without a test folder, the last of every so many images of a class is test."""

SMALLEST = 32
"""Pixels on a side below which the networks have nothing left to look at."""

LIMIT_BYTES = 4 * 2**30
"""How much the decoded images may take: they stay in memory as long as the stream."""

MEAN, STD = (4850, 4560, 4060), (2290, 2240, 2250)
"""ImageNet's statistics as in torchvision's recipes, (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)."""

Item = tuple[Path, int]
"""An image file and its class number."""


@dataclass(frozen=True)
class _Half:
    """One folder of class folders: its images by class, and the names of its other files by kind."""

    root: Path
    images: dict[str, list[Path]]
    left_out: dict[str, list[str]]


@dataclass(frozen=True)
class _Found:
    """The image files of both halves, how many classes they have, and one sentence about other files."""

    num_classes: int
    train: list[Item]
    test: list[Item]
    left_out: str


def open_folder(path: str | Path, size: int = 32) -> tuple[StreamInfo, DataSet]:
    """Return an image folder as a stream of one task; `TaskStream(info, data, ...)` opens it.

    size: pixels on a side; the largest centred square of an image is resized to it (bilinear, RGB). 16-bit grey is
    scaled to 0..255, transparent pixels become white, and a photograph is turned as its EXIF data say. All images stay
    in memory as one uint8 array, 3 * size^2 bytes each: 100,000 of 64 x 64 take 1.1 GiB. Raises UsageError for a folder
    of another layout, too few images in a class, an unreadable image, and more than `LIMIT_BYTES` in all.
    """
    path = expand(path)
    if size < SMALLEST:
        raise UsageError(f"images of {size} x {size} pixels are too small; choose a size of at least {SMALLEST}")
    try:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UsageError(
                f"{path} {what}, but the image folder must be a folder with one folder of images per class"
            )
        found = _find(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be listed ({clean(str(error))}); check its permissions") from error
    items = [*found.train, *found.test]
    needed = 3 * size * size * len(items)
    if needed > LIMIT_BYTES:
        raise UsageError(
            f"the {len(items):,} images of {path} take {needed / 2**30:.1f} GiB at {size} x {size}, and at most "
            f"{LIMIT_BYTES / 2**30:.1f} GiB are kept in memory; choose a smaller size or fewer images"
        )
    images = _decode(items, size)
    labels = np.array([label for _, label in items], np.int64)
    middle = len(found.train)
    counts = f"{middle:,} + {len(found.test):,} images of {found.num_classes} classes, one task"
    info = StreamInfo(
        # No part of the path: the same images have the same fingerprint wherever they lie.
        name="image-folder",
        description=f"{clean(str(path))}: {counts}{found.left_out}",
        data="folder",
        num_tasks=1,
        num_classes=found.num_classes,
        image_shape=(3, size, size),
        mean=MEAN,
        std=STD,
        flip=True,
    )
    train = Split(ArrayImages(images[:middle]), labels[:middle])
    test = Split(ArrayImages(images[middle:]), labels[middle:])
    return info, DataSet(train, test, _digest(images, labels, middle))


def _find(path: Path) -> _Found:
    """Return the files of an image folder in either layout."""
    # A class may be called train: only a folder with class folders in it is a half.
    root = path / "train" if _subfolders(path / "train") else path
    tests = [path / name for name in ("val", "test") if root != path and _subfolders(path / name)]
    classes = _subfolders(root)
    if not classes:
        raise UsageError(f"{root} has no class folders; put the images of each class into a folder of their own in it")
    half = _half(root, classes)
    if not any(half.images.values()):
        raise UsageError(
            f"there are no images in the {len(classes)} class folders of {root}; expected are {_kinds()}"
            f"{_say_left_out([half])}"
        )
    if len(classes) == 1:
        raise UsageError(f"{root} has the one class {classes[0]}, but at least 2 class folders are needed")
    if not tests:
        _check_counts(half, HOLD_OUT, f"so that every {HOLD_OUT}th can be held out for testing")
        train = {name: [f for i, f in enumerate(files, 1) if i % HOLD_OUT] for name, files in half.images.items()}
        test = {name: files[HOLD_OUT - 1 :: HOLD_OUT] for name, files in half.images.items()}
        return _Found(len(classes), _numbered(train), _numbered(test), _say_left_out([half]))
    if _subfolders(tests[0]) != classes:
        odd = sorted(set(_subfolders(tests[0])) ^ set(classes))
        raise UsageError(
            f"{tests[0]} and {root} must have the same class folders, but only one of them has {odd[0]} "
            f"({len(odd)} such in all)"
        )
    other = _half(tests[0], classes)
    _check_counts(half, 1, "to train on")
    _check_counts(other, 1, "to test on")
    return _Found(len(classes), _numbered(half.images), _numbered(other.images), _say_left_out([half, other]))


def _check_counts(half: _Half, least: int, why: str) -> None:
    for name, files in half.images.items():
        if len(files) < least:
            count = f"{len(files)} image{'' if len(files) == 1 else 's'}"
            raise UsageError(
                f"class {name} has {count} in {half.root / name}, but at least {least} is needed {why}"
                f"{_say_left_out([half])}"
            )


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    for entry in found:
        if entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve()):
            raise UsageError(f"{entry} links to a folder that it lies in, whose images would be read twice; remove it")
    return sorted(entry.name for entry in found)


def _half(root: Path, classes: list[str]) -> _Half:
    """Sort the files below a folder of class folders, in the order of their paths on any system."""
    images: dict[str, list[Path]] = {}
    left_out: dict[str, list[str]] = {}
    for entry in root.iterdir():
        if not (entry.is_dir() or entry.name.startswith(".")):
            left_out.setdefault("outside the class folders", []).append(entry.name)
    for name in classes:
        images[name] = []
        for file in sorted(files_below(root / name), key=Path.as_posix):
            suffix, special = file.suffix.lower(), not file.is_file()
            if suffix in SUFFIXES and not special:
                images[name].append(file)
            else:
                kind = "special files and links" if special else suffix or "without a suffix"
                left_out.setdefault(kind, []).append(file.relative_to(root).as_posix())
    return _Half(root, images, left_out)


def _say_left_out(halves: list[_Half]) -> str:
    """Return what was left out, by kind and with one name of each, as the end of a sentence; empty without any."""
    names: dict[str, list[str]] = {}
    for half in halves:
        for kind, found in half.left_out.items():
            names.setdefault(kind, []).extend(found)
    if not names:
        return ""
    ranked = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    shown = [f"{len(found):,} {clean(kind, 40)} (such as {clean(min(found), 80)})" for kind, found in ranked]
    rest = [f"{len(shown) - NAMED_KINDS} more kinds"] if len(shown) > NAMED_KINDS else []
    total = sum(len(found) for found in names.values())
    files = f"{total:,} file{'' if total == 1 else 's'}"
    return (
        f"; left out {files}, because images are {_kinds()} in class folders: {', '.join(shown[:NAMED_KINDS] + rest)}"
    )


def _kinds() -> str:
    return ", ".join(sorted(SUFFIXES))


def _numbered(by_class: dict[str, list[Path]]) -> list[Item]:
    return [(file, label) for label, files in enumerate(by_class.values()) for file in files]


def _decode(items: list[Item], size: int) -> NDArray[np.uint8]:
    """Return uint8 [N, 3, size, size]."""
    images = np.empty((len(items), 3, size, size), np.uint8)
    with bar("decoding images", len(items)) as advance:
        for row, (file, _) in zip(images, items, strict=True):
            row[:] = _image(file, size)
            advance()
    return images


def _image(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        if regular(file, "the image") > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES:,} B")
        with file.open("rb") as opened:
            square = ImageOps.fit(decode(opened, upright=True), (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no readable image ({clean(str(error))}); repair or remove it") from error
    channels_first: NDArray[np.uint8] = np.asarray(square, np.uint8).transpose(2, 0, 1)
    return channels_first


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int64], middle: int) -> str:
    digest = xxhash.xxh3_128(f"{images.shape} {middle}".encode())
    digest.update(images.data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
