"""Raw images where they lie: a small array in memory or a file, of which only the asked ones are copied."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clmem.harness.errors import UsageError


class Images(Protocol):
    """A sequence of images of one shape."""

    def __len__(self) -> int: ...

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a fresh uint8 [n, C, H, W] of the images at `indices` [n]."""
        ...


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set: images and their global class numbers, int64 [N]."""

    images: Images
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class DataSet:
    """Both halves, and a digest of their contents (hex)."""

    train: Split
    test: Split
    digest: str


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: uint8 [N, C, H, W], or grey [N, 28, 28] which become [3, 32, 32] when gathered."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a fresh uint8 [n, C, H, W] of the images at `indices` [n]."""
        return _in_colour(self.array[indices])


@dataclass(frozen=True)
class FileImages:
    """Images in a .npy file of the same two shapes, read one by one.

    Not memory-mapped: pages of a mapping count in the resident size, some systems map far more than was touched, and
    the data set would creep into the process peak that is being measured.
    """

    path: Path
    shape: tuple[int, ...]
    offset_bytes: int

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a fresh uint8 [n, C, H, W] of the images at `indices` [n]. Raises UsageError if the file shrank."""
        out = np.empty((len(indices), *self.shape[1:]), np.uint8)
        size = math.prod(self.shape[1:])
        with self.path.open("rb", buffering=0) as file:
            for row, index in zip(out, indices, strict=True):
                if os.preadv(file.fileno(), [row.data], self.offset_bytes + int(index) * size) != size:
                    raise UsageError(f"{self.path} became shorter while in use; delete its folder and it is made again")
        return _in_colour(out)


def read_header(path: Path) -> tuple[tuple[int, ...], int]:
    """Return the shape of a .npy file of uint8, and how many bytes before its values.

    Raises OSError or ValueError if it is not such a file, or not whole; a pipe or a device is never opened.
    """
    if not path.is_file():
        raise ValueError(f"there is no regular file {path.name}")
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy's reader raises whatever the text makes it stumble over
            raise ValueError(f"{path.name} is no .npy file") from error
        offset = file.tell()
    if fortran_order or dtype != np.uint8 or size != offset + math.prod(shape):
        raise ValueError(f"{path.name} has {size:,} B, which its header of {dtype} {shape} does not say")
    return shape, offset


def open_images(path: Path) -> FileImages:
    """Open a .npy file of uint8 images. Raises as `read_header` does."""
    return FileImages(path, *read_header(path))


def read_labels(path: Path) -> NDArray[np.int64]:
    """Return the class numbers in a .npy file of uint8 [N] as int64 [N]. Raises as `read_header` does."""
    shape, offset = read_header(path)
    return np.fromfile(path, np.uint8, offset=offset).reshape(shape).astype(np.int64)


def _in_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images if images.ndim == 4 else grey_to_colour(images)


def grey_to_colour(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Zero-pad uint8 [n, 28, 28] to 32 x 32 and repeat it in three channels: [n, 3, 32, 32]."""
    colour = np.zeros((len(grey), 3, 32, 32), np.uint8)
    colour[:, :, 2:30, 2:30] = grey[:, np.newaxis]
    return colour
