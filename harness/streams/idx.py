"""Reads Fashion-MNIST in the idx format of LeCun's MNIST page: a big-endian header, then bytes; gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clmem.harness.errors import UsageError
from clmem.harness.files import regular
from clmem.harness.streams.archives import Archive, check_sha256, download, find, not_official

# The publisher's repository, at the commit where it was last changed: its own bucket of files is served without TLS.
_URL = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/"
)

_GZIP_BYTES = 1 << 16
"""How much larger than its content a gzipped file may be."""


@dataclass(frozen=True)
class IdxFile:
    """One idx file: as it is offered (gz) and decompressed (content), since distributions compress files again."""

    name: str
    gz_sha256: str
    gz_bytes: int
    content_sha256: str
    content_bytes: int

    @property
    def archive(self) -> Archive:
        """Return the file as its publisher offers it."""
        return Archive(f"{self.name}.gz", f"{_URL}{self.name}.gz", self.gz_sha256, self.gz_bytes)


@dataclass(frozen=True)
class IdxSource:
    """A data set of four idx files. subfolders: where, below a data root, people keep them."""

    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    subfolders: tuple[str, ...] = ("", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "dataset-fashion-mnist")


# gz: tensorflow/datasets url_checksums/fashion_mnist.txt and pytorch/vision prototype/datasets/_builtin/mnist.py; the
# files have the md5 that the publisher's README prints. content: what those files decompress to, and what Debian's
# package dataset-fashion-mnist does.
FASHION_MNIST = IdxSource(
    train_images=IdxFile(
        "train-images-idx3-ubyte",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        26_421_880,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        47_040_016,
    ),
    train_labels=IdxFile(
        "train-labels-idx1-ubyte",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        29_515,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        60_008,
    ),
    test_images=IdxFile(
        "t10k-images-idx3-ubyte",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        4_422_102,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        7_840_016,
    ),
    test_labels=IdxFile(
        "t10k-labels-idx1-ubyte",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        5_148,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        10_008,
    ),
)


def convert(folder: Path, source: IdxSource, data_root: str | Path | None) -> None:
    """Write the four arrays of `cache.FILES` into `folder`: images [N, 28, 28], labels [N]. Raises UsageError."""
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(folder / f"{part}.npy", _read(getattr(source, part), source.subfolders, data_root))


def _read(file: IdxFile, subfolders: tuple[str, ...], data_root: str | Path | None) -> NDArray[np.uint8]:
    path = find(data_root, subfolders, (f"{file.name}.gz", file.name))
    return _parse(_content(path or download(file.archive, data_root), file))


def _content(path: Path, file: IdxFile) -> bytes:
    """Return the official bytes of an idx file, never reading more than it has: a few may unpack to any number."""
    size = regular(path, "the idx file")
    if size > file.content_bytes + _GZIP_BYTES:
        raise not_official(path, f"it has {size:,} B, more than its content of {file.content_bytes:,} B needs")
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as opened:
            content: bytes = opened.read(file.content_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): expected a gzipped idx file; delete it or put the official one there"
        ) from error
    if len(content) > file.content_bytes:
        raise not_official(path, f"it unpacks to more than {file.content_bytes:,} B")
    digest = hashlib.sha256(content).hexdigest()
    check_sha256(path, digest, file.content_sha256, "its sha256 after decompression" if zipped else "its sha256")
    return content


def _parse(content: bytes) -> NDArray[np.uint8]:
    # The digest is that of a good file, so the header needs no second look.
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(content, ">i4", dimensions, 4))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
