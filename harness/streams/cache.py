"""Prepared data: converted once under a lock, kept as .npy files that whoever measures reads from."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import xxhash
from filelock import FileLock, Timeout

from clmem.harness.errors import UsageError
from clmem.harness.files import read_text
from clmem.harness.streams.archives import cache_folder
from clmem.harness.streams.catalog import StreamInfo, lookup
from clmem.harness.streams.samples import ArrayImages, DataSet, Split, open_images, read_header, read_labels
from clmem.harness.streams.synthetic import synthetic
from clmem.harness.text import clean

FORMAT = 1
"""Bump when converted files change: older ones are then left alone."""

FILES = ("train_images", "train_labels", "test_images", "test_labels")
"""What a converter writes, each as FILE.npy of uint8."""

META = "meta.json"
"""What says by which format and with which digest the files were written."""
LARGEST_META_BYTES = 4096

GREY_SHAPE = (28, 28)
"""Of the images of idx files, which are padded and coloured when they are gathered."""

PATIENCE_S = 1.0
"""How long another process may hold the lock before that is said."""

Part = tuple[str, tuple[int, ...], Iterable[bytes | memoryview]]
"""A file of the four: its name, its shape, its values in blocks."""

Converter = Callable[[Path, "str | Path | None"], None]

_EMBEDDED = Path(__file__).parent.parent / "data" / "fashion_mnist_mini.npz"


def prepared_folder(name: str) -> Path:
    """Return where the stream's converted files are, or will be."""
    return cache_folder() / "streams" / f"{name}-{FORMAT}"


def prepare(name: str, data_root: str | Path | None = None) -> None:
    """Convert the stream's data unless that is done, and check that the converted files are what was written.

    Concurrent callers wait for the first. Raises UsageError.
    """
    info = lookup(name)
    if not info.archive:
        return
    target = prepared_folder(name)
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target):
                if not target.exists():
                    _convert(target, _converter(info), data_root)
    except (OSError, NotImplementedError) as error:  # the latter from file systems without locks
        raise UsageError(
            f"{name} could not be prepared in {target.parent} ({error}); check its permissions and free space, "
            "or name another folder with the variable CLMEM_CACHE"
        ) from error
    with _refusing(target):
        digest = _open(target, info).digest
        if _digest_once(target, _signature(target)) != digest:
            raise ValueError("its files are not the ones that were written")


def load(info: StreamInfo, data_root: str | Path | None = None) -> DataSet:
    """Return the stream's data, preparing it first when nobody has. Raises UsageError.

    Prepared data are opened without reading them through, because this is called where memory is measured: `prepare`,
    in the parent of such a process, has checked them.
    """
    if info.data == "synthetic":
        return synthetic(info)
    if info.data == "mini":
        with np.load(_EMBEDDED) as file:
            arrays = {part: np.asarray(file[part], np.uint8) for part in FILES}
        train, test = (
            Split(ArrayImages(arrays[f"{half}_images"]), arrays[f"{half}_labels"].astype(np.int64))
            for half in ("train", "test")
        )
        return DataSet(train, test, _digest((part, arrays[part].shape, [arrays[part].data]) for part in FILES))
    folder = prepared_folder(info.name)
    if not os.path.exists(folder):  # noqa: PTH110 - which answers False where `Path.exists` raises
        prepare(info.name, data_root)
    with _refusing(folder):
        return _open(folder, info)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a prepared folder; say so when another process has it."""
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        print(f"clmem: waiting for another process that prepares {target}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _converter(info: StreamInfo) -> Converter:
    module, name = info.archive.split(":")
    reader = import_module(f"{__package__}.{module}")
    return lambda folder, root: reader.convert(folder, getattr(reader, name), root)


def _convert(target: Path, convert: Converter, data_root: str | Path | None) -> None:
    for abandoned in target.parent.glob(f".{target.name}.*"):
        # The lock is ours, so whoever began this was killed.
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        convert(temporary, data_root)
        meta = {"format": FORMAT, "digest": _digest(_parts(temporary))}
        (temporary / META).write_text(json.dumps(meta))
        # mkdtemp keeps others out, but a cache named by CLMEM_CACHE may be shared.
        temporary.chmod(0o755)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn whatever is wrong with prepared files into a UsageError with the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} does not hold prepared data ({clean(str(error))}); delete this folder and it is made again"
        ) from error


def _open(folder: Path, info: StreamInfo) -> DataSet:
    digest = _read_digest(folder / META)
    train, test = (_open_split(folder, half, info) for half in ("train", "test"))
    return DataSet(train, test, digest)


def _open_split(folder: Path, half: str, info: StreamInfo) -> Split:
    images, labels = open_images(folder / f"{half}_images.npy"), read_labels(folder / f"{half}_labels.npy")
    expected = GREY_SHAPE if info.archive.startswith("idx:") else info.image_shape
    if images.shape[1:] != expected or labels.shape != images.shape[:1] or not labels.size:
        raise ValueError(f"{half} images of shape {images.shape} with labels of shape {labels.shape}")
    if labels.max() >= info.num_classes:
        raise ValueError(f"a {half} label of {labels.max()}, but there are {info.num_classes} classes")
    return Split(images, labels)


def _read_digest(path: Path) -> str:
    try:
        meta = json.loads(read_text(path, "the prepared file", LARGEST_META_BYTES))
    except (ValueError, RecursionError, UsageError):
        meta = None
    digest = meta.get("digest") if isinstance(meta, dict) and meta.get("format") == FORMAT else None
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{32}", digest):
        raise ValueError(f"{path.name} is not what clmem wrote")
    return digest


@lru_cache(maxsize=8)
def _digest_once(folder: Path, signature: tuple[tuple[int, int, int], ...]) -> str:
    """Return the digest of what a folder holds; its files are read again only when their signature changed."""
    return _digest(_parts(folder))


def _signature(folder: Path) -> tuple[tuple[int, int, int], ...]:
    found = [(folder / f"{part}.npy").stat() for part in FILES]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


def _parts(folder: Path) -> Iterator[Part]:
    for part in FILES:
        path = folder / f"{part}.npy"
        shape, offset = read_header(path)
        yield part, shape, _blocks(path, offset)


def _blocks(path: Path, offset_bytes: int) -> Iterator[bytes]:
    """Yield what a file holds from a place on. Not memory-mapped: pages of a mapping count as this process's memory."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset_bytes)
        while block := file.read(1 << 20):
            yield block


def _digest(parts: Iterable[Part]) -> str:
    digest = xxhash.xxh3_128()
    for part, shape, blocks in parts:
        digest.update(f"{part} {tuple(int(n) for n in shape)}".encode())
        for block in blocks:
            digest.update(block)
    return digest.hexdigest()
