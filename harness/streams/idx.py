"""Reads Fashion-MNIST in the idx format of LeCun's MNIST page: a big-endian header, then bytes; gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.streams.archives import Archive, check_md5, download, find

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


@dataclass(frozen=True)
class IdxFile:
    """One idx file. content_md5: of the decompressed bytes, since distributions compress them again."""

    name: str
    gz_md5: str
    content_md5: str

    @property
    def archive(self) -> Archive:
        """Return the file as its publisher offers it."""
        return Archive(f"{self.name}.gz", f"{_URL}{self.name}.gz", self.gz_md5)


@dataclass(frozen=True)
class IdxSource:
    """A data set of four idx files. subfolders: where, below a data root, people keep them."""

    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    subfolders: tuple[str, ...] = ("", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "dataset-fashion-mnist")


FASHION_MNIST = IdxSource(
    train_images=IdxFile(
        "train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"
    ),
    train_labels=IdxFile(
        "train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"
    ),
    test_images=IdxFile(
        "t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"
    ),
    test_labels=IdxFile(
        "t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"
    ),
)


def convert(folder: Path, source: IdxSource, data_root: str | Path | None) -> None:
    """Write the four arrays of `cache.FILES` into `folder`: images [N, 28, 28], labels [N]. Raises UsageError."""
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(folder / f"{part}.npy", _read(getattr(source, part), source.subfolders, data_root))


def _read(file: IdxFile, subfolders: tuple[str, ...], data_root: str | Path | None) -> NDArray[np.uint8]:
    path = find(data_root, subfolders, (f"{file.name}.gz", file.name))
    return _parse(path or download(file.archive, data_root), file.content_md5)


def _parse(path: Path, content_md5: str) -> NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): expected a gzipped idx file; delete it or put the official one there"
        ) from error
    check_md5(path, content, content_md5)
    # The checksum is that of a good file, so the header needs no second look.
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(content, ">i4", dimensions, 4))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
