"""Reads CIFAR-10 and CIFAR-100 in their "python version": pickled batches, in the archive or extracted from it."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.streams.archives import Archive, check_md5, download, find, missing


@dataclass(frozen=True)
class CifarSource:
    """One of the two data sets.

    folder: what the archive extracts to. train, test: (file, md5) of its pickles. label_key: which labels to take.
    """

    archive: Archive
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    label_key: str


CIFAR10 = CifarSource(
    archive=Archive(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
    ),
    folder="cifar-10-batches-py",
    train=(
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    label_key="labels",
)

CIFAR100 = CifarSource(
    archive=Archive(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
    folder="cifar-100-python",
    train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    label_key="fine_labels",
)

_SUBFOLDERS = ("", "cifar10", "cifar100", "CIFAR10", "CIFAR100")


def convert(folder: Path, source: CifarSource, data_root: str | Path | None) -> None:
    """Write the four arrays of `cache.FILES` into `folder`: images [N, 3, 32, 32], labels [N]. Raises UsageError."""
    path = find(data_root, _SUBFOLDERS, (source.archive.file, source.folder))
    if path is not None and path.is_dir():
        extracted = path
        _write(folder, source, path, lambda name: _read_file(extracted / name))
        return
    if path is None:
        archive = download(source.archive, data_root)
    else:
        archive = path
        check_md5(archive, None, source.archive.md5)
    with tarfile.open(archive, "r:gz") as tar:
        _write(folder, source, archive, lambda name: _read_member(tar, archive, f"{source.folder}/{name}"))


def _write(folder: Path, source: CifarSource, place: Path, read: Callable[[str], bytes]) -> None:
    for split, files in (("train", source.train), ("test", source.test)):
        images, labels = [], []
        for name, md5 in files:
            content = read(name)
            # A pickle can run code: nothing is unpickled but the official bytes.
            check_md5(place / name, content, md5)
            batch = pickle.loads(content, encoding="latin1")
            images.append(batch["data"].reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[source.label_key], np.uint8))
        np.save(folder / f"{split}_images.npy", np.concatenate(images))
        np.save(folder / f"{split}_labels.npy", np.concatenate(labels))


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise missing(path.parent, f"the file {path.name} in it")
    return path.read_bytes()


def _read_member(tar: tarfile.TarFile, path: Path, name: str) -> bytes:
    try:
        member = tar.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise missing(path, f"the member {name} in it")
    return member.read()
