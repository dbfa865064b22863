"""Reads a folder of images as training data for one task of all its classes, to pretrain a network on.

FOLDER/class/image, or FOLDER/train/class/image with FOLDER/val/class/image (else FOLDER/test/...) beside it. Classes
are numbered in the order of their names, images lie in the order of their paths. The JPEG decoder is the machine's, so
the data digest may differ between machines by its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.streams.bar import bar
from harness.streams.catalog import StreamInfo
from harness.streams.samples import ArrayImages, DataSet, Split

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm"})
"""Which files are images, in small or capital letters; others are left alone, as is whatever is hidden."""

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
class _Found:
    """The image files of both halves, and how many classes they have."""

    num_classes: int
    train: list[Item]
    test: list[Item]


def open_folder(path: str | Path, size: int = 32) -> tuple[StreamInfo, DataSet]:
    """Return an image folder as a stream of one task; `TaskStream(info, data, ...)` opens it.

    size: pixels on a side; the largest centred square of an image is resized to it (bilinear, RGB). All images stay in
    memory as one uint8 array, 3 * size^2 bytes each: 100,000 of 64 x 64 take 1.1 GiB. Raises UsageError for a folder
    of another layout, too few images in a class, an unreadable image, and more than `LIMIT_BYTES` in all.
    """
    path = Path(path).expanduser()
    if size < SMALLEST:
        raise UsageError(f"images of {size} x {size} pixels are too small; choose a size of at least {SMALLEST}")
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}, but the image folder must be a folder with one folder of images per class")
    try:
        found = _find(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be listed ({error}); check its permissions") from error
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
    info = StreamInfo(
        # No part of the path: the same images have the same fingerprint wherever they lie.
        name="image-folder",
        description=f"{path}: {middle:,} + {len(found.test):,} images of {found.num_classes} classes, one task",
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
    by_class = {name: _images(root / name) for name in classes}
    if not any(by_class.values()):
        kinds = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"there are no images in the {len(classes)} class folders of {root}; expected are {kinds}")
    if len(classes) == 1:
        raise UsageError(f"{root} has the one class {classes[0]}, but at least 2 class folders are needed")
    if not tests:
        _check_counts(root, by_class, HOLD_OUT, f"so that every {HOLD_OUT}th can be held out for testing")
        train = {name: [f for i, f in enumerate(files, 1) if i % HOLD_OUT] for name, files in by_class.items()}
        test = {name: files[HOLD_OUT - 1 :: HOLD_OUT] for name, files in by_class.items()}
        return _Found(len(classes), _numbered(train), _numbered(test))
    if _subfolders(tests[0]) != classes:
        odd = sorted(set(_subfolders(tests[0])) ^ set(classes))
        raise UsageError(
            f"{tests[0]} and {root} must have the same class folders, but only one of them has {odd[0]} "
            f"({len(odd)} such in all)"
        )
    test_by_class = {name: _images(tests[0] / name) for name in classes}
    _check_counts(root, by_class, 1, "to train on")
    _check_counts(tests[0], test_by_class, 1, "to test on")
    return _Found(len(classes), _numbered(by_class), _numbered(test_by_class))


def _check_counts(root: Path, by_class: dict[str, list[Path]], least: int, why: str) -> None:
    for name, files in by_class.items():
        if len(files) < least:
            count = f"{len(files)} image{'' if len(files) == 1 else 's'}"
            raise UsageError(f"class {name} has {count} in {root / name}, but at least {least} is needed {why}")


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Return the image files in a class folder or below it, in the order of their paths on any system."""
    found = {file.relative_to(folder): file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES}
    shown = [inner for inner in found if not any(part.startswith(".") for part in inner.parts)]
    return [found[inner] for inner in sorted(shown, key=Path.as_posix) if found[inner].is_file()]


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
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # PIL's readers raise whatever the bytes make them stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{file} is no readable image ({reason}); repair or remove it") from error
    channels_first: NDArray[np.uint8] = np.asarray(square, np.uint8).transpose(2, 0, 1)
    return channels_first


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int64], middle: int) -> str:
    digest = xxhash.xxh3_128(f"{images.shape} {middle}".encode())
    digest.update(images.data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
