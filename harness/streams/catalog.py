"""The streams by name: how many tasks and classes, which shape, which normalisation. No torch, no numpy, no files."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from clmem.harness.errors import UsageError, nearest
from clmem.harness.specs.run import LARGEST_SIDE, SMALLEST_SIDE
from clmem.harness.text import clean

PAD = 4
"""Zero pixels around an image before the random crop, for every stream."""


@dataclass(frozen=True)
class StreamInfo:
    """One stream. Classes are split into tasks of equal size in natural order.

    archive: for data from an archive, `module:NAME` of its reader and its description in this folder, such as
    `cifar:CIFAR10`; empty for other data. image_shape: of a raw sample, (channels, height, width).
    mean, std: of each channel in ten-thousandths of full scale: integers, so that they print and hash alike anywhere.
    flip: whether half of the training images are mirrored.
    """

    name: str
    description: str
    data: Literal["mini", "archive", "synthetic", "folder"]
    num_tasks: int
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[int, int, int]
    std: tuple[int, int, int]
    flip: bool
    archive: str = ""

    @property
    def tasks(self) -> list[range]:
        """Return the global class numbers of each task."""
        size = self.num_classes // self.num_tasks
        return [range(start, start + size) for start in range(0, self.num_classes, size)]


def _synthetic(like: StreamInfo) -> StreamInfo:
    channels, height, width = like.image_shape
    classes = like.num_classes // like.num_tasks
    text = f"noise, {channels} x {height} x {width}, {like.num_tasks} tasks of {classes} classes"
    name = like.name.replace("split-", "synthetic-")
    return replace(like, name=name, description=f"{text}: memory only, no accuracy", data="synthetic", archive="")


# Constants: the published per-channel statistics of each training set. Fashion-MNIST's are those of its 28 x 28
# images, as everywhere, although ours are padded.
_MINI = StreamInfo(
    name="split-fashion-mini",
    description="5,000 + 1,000 images of Fashion-MNIST that come with clmem, 5 tasks of 2 classes",
    data="mini",
    num_tasks=5,
    num_classes=10,
    image_shape=(3, 32, 32),
    mean=(2860, 2860, 2860),
    std=(3530, 3530, 3530),
    flip=False,
)
_FASHION = replace(
    _MINI,
    name="split-fashion-mnist",
    description="Fashion-MNIST, 60,000 + 10,000 images, 5 tasks of 2 classes",
    data="archive",
    archive="idx:FASHION_MNIST",
)
_CIFAR10 = StreamInfo(
    name="split-cifar10",
    description="CIFAR-10, 50,000 + 10,000 images, 5 tasks of 2 classes",
    data="archive",
    archive="cifar:CIFAR10",
    num_tasks=5,
    num_classes=10,
    image_shape=(3, 32, 32),
    mean=(4914, 4822, 4465),
    std=(2470, 2435, 2615),
    flip=True,
)
_CIFAR100 = StreamInfo(
    name="split-cifar100",
    description="CIFAR-100, 50,000 + 10,000 images, 10 tasks of 10 classes",
    data="archive",
    archive="cifar:CIFAR100",
    num_tasks=10,
    num_classes=100,
    image_shape=(3, 32, 32),
    mean=(5071, 4867, 4408),
    std=(2675, 2565, 2761),
    flip=True,
)
_TINY = StreamInfo(
    name="split-tinyimagenet",
    description="TinyImageNet, 100,000 + 10,000 images of 64 x 64, 10 tasks of 20 classes",
    data="archive",
    archive="tinyimagenet:TINY_IMAGENET",
    num_tasks=10,
    num_classes=200,
    image_shape=(3, 64, 64),
    mean=(4802, 4480, 3975),
    std=(2770, 2691, 2821),
    flip=True,
)

_INFOS = {
    info.name: info
    for info in (
        _MINI,
        _FASHION,
        _CIFAR10,
        _CIFAR100,
        _TINY,
        _synthetic(_CIFAR10),
        _synthetic(_CIFAR100),
        _synthetic(_TINY),
    )
}

STREAMS: dict[str, str] = {name: info.description for name, info in _INFOS.items()}
"""Every stream's name and one line about it."""


def lookup(name: str, num_classes: int | None = None, image_size: int | None = None) -> StreamInfo:
    """Return the stream of that name; `synthetic-96px` is noise of 96 x 96 pixels.

    num_classes, image_size: of a synthetic stream, instead of what its name says. Raises UsageError with the nearest
    names, for other streams' sizes, and for classes that its tasks cannot share equally.
    """
    info = _named(name)
    if num_classes is None and image_size is None:
        return info
    if info.data != "synthetic":
        raise UsageError(
            f"stream {name!r} has {info.num_classes} classes and images of {info.image_shape[1]} x "
            f"{info.image_shape[2]}; num_classes and image_size can be chosen of synthetic streams alone"
        )
    classes = info.num_classes if num_classes is None else num_classes
    if classes % info.num_tasks:
        raise UsageError(
            f"num_classes is {classes}, but stream {name!r} has {info.num_tasks} tasks of equally many classes; give a "
            f"multiple of {info.num_tasks}"
        )
    shape = info.image_shape if image_size is None else (info.image_shape[0], image_size, image_size)
    return _synthetic(replace(info, num_classes=classes, image_shape=shape))


def _named(name: str) -> StreamInfo:
    sized = re.fullmatch(r"synthetic-([1-9][0-9]*)px", name)
    if sized is not None:
        # Python refuses to read thousands of digits as a number.
        side = int(sized[1]) if len(sized[1]) <= len(str(LARGEST_SIDE)) else LARGEST_SIDE + 1
        if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
            asked = clean(sized[1], 20)
            raise UsageError(
                f"images of {asked} x {asked} pixels cannot be made; give a side of {SMALLEST_SIDE} to {LARGEST_SIDE}"
            )
        return _synthetic(replace(_CIFAR10, name=f"split-{side}px", image_shape=(3, side, side)))
    if name not in _INFOS:
        shown = clean(name, 80)
        raise UsageError(f"there is no stream {shown!r}: {nearest(shown, list(_INFOS))}")
    return _INFOS[name]
