"""Every test has a cache and data folders of its own, and data sets as small as their formats allow."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import signal
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clmem.harness.streams import archives, cifar, idx, tinyimagenet

UNREACHABLE = "http://127.0.0.1:9/"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive_of(file: str, content: bytes) -> archives.Archive:
    """Return an archive that is told by this content and cannot be fetched."""
    return archives.Archive(file, UNREACHABLE + file, sha256(content), len(content))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLMEM_DATA_ROOT", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(archives, "SYSTEM_FOLDERS", ())


@pytest.fixture
def within_a_minute() -> Iterator[None]:
    """Fail instead of waiting for ever, as whoever opens a pipe that nobody writes to does."""

    def fail(*_: object) -> None:
        pytest.fail("nothing came for a minute")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def tiny_fashion(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write four gzipped idx files (40 training, 20 test images) and make their checksums the expected ones."""
    rng = np.random.default_rng(0)
    arrays, files = {}, {}
    for split, stem, count in (("train", "train", 40), ("test", "t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for part, array, kind in (("images", images, "images-idx3"), ("labels", labels, "labels-idx1")):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            content = header + array.tobytes()
            packed = gzip.compress(content)
            (data_root / f"{stem}-{kind}-ubyte.gz").write_bytes(packed)
            arrays[f"{split}_{part}"] = array
            files[f"{split}_{part}"] = idx.IdxFile(
                f"{stem}-{kind}-ubyte", sha256(packed), len(packed), sha256(content), len(content)
            )
    monkeypatch.setattr(idx, "_URL", UNREACHABLE)
    monkeypatch.setattr(idx, "FASHION_MNIST", idx.IdxSource(**files))
    return arrays


@pytest.fixture(params=["archive", "extracted"])
def tiny_cifar(request: pytest.FixtureRequest, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write both CIFAR data sets, 2 images per class and pickle, in the official layout and with its keys."""
    rng = np.random.default_rng(1)
    made: dict[str, Any] = {}
    for name, source, classes, key in (
        ("split-cifar10", cifar.CIFAR10, 10, "labels"),
        ("split-cifar100", cifar.CIFAR100, 100, "fine_labels"),
    ):
        contents, images, labels = {}, {}, {}
        for file, _ in (*source.train, *source.test):
            images[file] = rng.integers(0, 256, (2 * classes, 3072), np.uint8)
            labels[file] = (np.arange(2 * classes) % classes).tolist()
            contents[file] = pickle.dumps({"data": images[file], key: labels[file], "coarse_labels": [0]}, protocol=2)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for file, content in contents.items():
                member = tarfile.TarInfo(f"{source.folder}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if request.param == "archive":
            (data_root / source.archive.file).write_bytes(buffer.getvalue())
        else:
            (data_root / source.folder).mkdir()
            for file, content in contents.items():
                (data_root / source.folder / file).write_bytes(content)
        expected = replace(
            source,
            archive=archive_of(source.archive.file, buffer.getvalue()),
            train=tuple((file, sha256(contents[file])) for file, _ in source.train),
            test=tuple((file, sha256(contents[file])) for file, _ in source.test),
        )
        monkeypatch.setattr(cifar, {"split-cifar10": "CIFAR10", "split-cifar100": "CIFAR100"}[name], expected)
        train = [file for file, _ in source.train]
        made[name] = {
            "train_images": np.concatenate([images[file] for file in train]).reshape(-1, 3, 32, 32),
            "train_labels": np.concatenate([labels[file] for file in train]),
        }
    return made


@pytest.fixture(params=["archive", "extracted"])
def tiny_imagenet(request: pytest.FixtureRequest, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write TinyImageNet, 1 training and 1 validation image per class, class i of grey level i; return the wnids."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow decodes TinyImageNet and is not installed")
    # Not in alphabetical order, so that numbering by folder name would be found out.
    words = [f"n{(i * 77) % 200:08d}" for i in range(200)]
    files: dict[str, bytes] = {"wnids.txt": "\n".join(words).encode()}
    lines = []
    for i, word in enumerate(words):
        buffer = io.BytesIO()
        # Greyscale JPEGs occur in the original too.
        image_module.new("L" if i % 2 else "RGB", (64, 64), i if i % 2 else (i, i, i)).save(buffer, "JPEG", quality=100)
        files[f"train/{word}/images/{word}_0.JPEG"] = buffer.getvalue()
        files[f"val/images/val_{i}.JPEG"] = buffer.getvalue()
        lines.append(f"val_{i}.JPEG\t{word}\t0\t0\t62\t62")
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    source = tinyimagenet.TINY_IMAGENET
    archive = data_root / source.archive.file
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            file.writestr(f"{source.folder}/{name}", content)
    expected = archive_of(source.archive.file, archive.read_bytes())
    if request.param == "extracted":
        with zipfile.ZipFile(archive) as file:
            file.extractall(data_root)
        archive.unlink()
    source = replace(source, archive=expected, train_per_class=1, num_test=200)
    monkeypatch.setattr(tinyimagenet, "TINY_IMAGENET", source)
    return words
