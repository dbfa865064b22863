"""Prepared data: converted once under a lock, kept as .npy files that whoever measures reads from."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash
from filelock import FileLock
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.streams import cifar, idx, tinyimagenet
from harness.streams.archives import cache_folder
from harness.streams.catalog import lookup
from harness.streams.samples import ArrayImages, DataSet, Split, open_images
from harness.streams.synthetic import synthetic

FORMAT = 1
"""Bump when converted files change: older ones are then left alone."""

FILES = ("train_images", "train_labels", "test_images", "test_labels")
"""What a converter writes, each as FILE.npy of uint8."""

Converter = Callable[[Path, "str | Path | None"], None]

CONVERTERS: dict[str, Converter] = {
    "split-fashion-mnist": lambda folder, root: idx.convert(folder, idx.FASHION_MNIST, root),
    "split-cifar10": lambda folder, root: cifar.convert(folder, cifar.CIFAR10, root),
    "split-cifar100": lambda folder, root: cifar.convert(folder, cifar.CIFAR100, root),
    "split-tinyimagenet": lambda folder, root: tinyimagenet.convert(folder, tinyimagenet.TINY_IMAGENET, root),
}

_EMBEDDED = Path(__file__).parent.parent / "data" / "fashion_mnist_mini.npz"


def prepared_folder(name: str) -> Path:
    """Return where the stream's converted files are, or will be."""
    return cache_folder() / "streams" / f"{name}-{FORMAT}"


def prepare(name: str, data_root: str | Path | None = None) -> None:
    """Convert the stream's data unless that is done; concurrent callers wait for the first. Raises UsageError."""
    lookup(name)
    if name not in CONVERTERS:
        return
    target = prepared_folder(name)
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not target.exists():
                _convert(target, CONVERTERS[name], data_root)
    except OSError as error:
        raise UsageError(
            f"{name} could not be prepared in {target.parent} ({error}); check its permissions and free space, "
            "or name another folder with the variable CLMEM_CACHE"
        ) from error


def load(name: str, data_root: str | Path | None = None) -> DataSet:
    """Return the stream's data, preparing it first when nobody has. Raises UsageError."""
    info = lookup(name)
    if info.data == "synthetic":
        return synthetic(info)
    if info.data == "mini":
        with np.load(_EMBEDDED) as file:
            arrays = {part: np.asarray(file[part], np.uint8) for part in FILES}
        train, test = (
            Split(ArrayImages(arrays[f"{half}_images"]), arrays[f"{half}_labels"].astype(np.int64))
            for half in ("train", "test")
        )
        return DataSet(train, test, _digest(arrays))
    prepare(name, data_root)
    return _open(prepared_folder(name))


def _convert(target: Path, convert: Converter, data_root: str | Path | None) -> None:
    for abandoned in target.parent.glob(f".{target.name}.*"):
        # The lock is ours, so whoever began this was killed.
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        convert(temporary, data_root)
        meta = {"format": FORMAT, "digest": _digest(_arrays(temporary))}
        (temporary / "meta.json").write_text(json.dumps(meta))
        # mkdtemp keeps others out, but a cache named by CLMEM_CACHE may be shared.
        temporary.chmod(0o755)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _open(folder: Path) -> DataSet:
    try:
        digest = json.loads((folder / "meta.json").read_text())["digest"]
        train, test = (
            Split(open_images(folder / f"{half}_images.npy"), np.load(folder / f"{half}_labels.npy").astype(np.int64))
            for half in ("train", "test")
        )
        return DataSet(train, test, digest)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder} does not hold prepared data ({error}); delete this folder and it is made again"
        ) from error


def _arrays(folder: Path) -> dict[str, NDArray[np.uint8]]:
    return {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in FILES}


def _digest(arrays: dict[str, NDArray[np.uint8]]) -> str:
    digest = xxhash.xxh3_128()
    for part in FILES:
        digest.update(f"{part} {tuple(int(n) for n in arrays[part].shape)}".encode())
        digest.update(np.ascontiguousarray(arrays[part]).data)
    return digest.hexdigest()
