"""Reads CIFAR-10 and CIFAR-100 in their "python version": pickled batches, in the archive or extracted from it."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clmem.harness.streams.archives import Archive, check_sha256, download, find, missing, not_official, official


@dataclass(frozen=True)
class CifarSource:
    """One of the two data sets.

    folder: what the archive extracts to. train, test: (file, sha256) of its pickles. label_key: which labels to take.
    """

    archive: Archive
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    label_key: str


# Archives: keras-team/keras src/datasets/cifar10.py and cifar100.py, and pytorch/vision prototype/datasets/_builtin/
# cifar.py. Pickles: pytorch/vision prints no more than their md5; these sha256 are the same in four public lists of
# others, who print those md5 or the archives' sha256 beside them.
CIFAR10 = CifarSource(
    archive=Archive(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        170_498_071,
    ),
    folder="cifar-10-batches-py",
    train=(
        ("data_batch_1", "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
        ("data_batch_2", "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
        ("data_batch_3", "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
        ("data_batch_4", "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
        ("data_batch_5", "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
    ),
    test=(("test_batch", "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),),
    label_key="labels",
)

CIFAR100 = CifarSource(
    archive=Archive(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        169_001_437,
    ),
    folder="cifar-100-python",
    train=(("train", "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b"),),
    test=(("test", "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864"),),
    label_key="fine_labels",
)

LARGEST_PICKLE_BYTES = 2**28
"""Of one file of pickled images, of which the largest, CIFAR-100's training half, has 155,249,918 B."""

_SUBFOLDERS = ("", "cifar10", "cifar100", "CIFAR10", "CIFAR100")


def convert(folder: Path, source: CifarSource, data_root: str | Path | None) -> None:
    """Write the four arrays of `cache.FILES` into `folder`: images [N, 3, 32, 32], labels [N]. Raises UsageError."""
    path = find(data_root, _SUBFOLDERS, (source.archive.file, source.folder))
    if path is not None and path.is_dir():
        extracted = path
        _write(folder, source, path, lambda name: _read_file(extracted / name))
        return
    archive = download(source.archive, data_root) if path is None else path
    with official(archive, source.archive) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
        _write(folder, source, archive, lambda name: _read_member(tar, archive, f"{source.folder}/{name}"))


def _write(folder: Path, source: CifarSource, place: Path, read: Callable[[str], bytes]) -> None:
    for split, files in (("train", source.train), ("test", source.test)):
        images, labels = [], []
        for name, sha256 in files:
            content = read(name)
            # A pickle can run code: nothing is unpickled but the official bytes.
            check_sha256(place / name, hashlib.sha256(content).hexdigest(), sha256)
            batch = pickle.loads(content, encoding="latin1")
            images.append(batch["data"].reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[source.label_key], np.uint8))
        np.save(folder / f"{split}_images.npy", np.concatenate(images))
        np.save(folder / f"{split}_labels.npy", np.concatenate(labels))


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise missing(path.parent, f"the file {path.name} in it")
    _check_size(path, path.stat().st_size)
    return path.read_bytes()


def _read_member(tar: tarfile.TarFile, path: Path, name: str) -> bytes:
    member = next((member for member in tar.getmembers() if member.name == name), None)
    file = tar.extractfile(member) if member is not None and member.isreg() else None
    if member is None or file is None:
        raise missing(path, f"the file {name} in it")
    _check_size(path / name, member.size)
    return file.read()


def _check_size(path: Path, size: int) -> None:
    if size > LARGEST_PICKLE_BYTES:
        raise not_official(path, f"it has {size:,} B, more than any file of CIFAR")
