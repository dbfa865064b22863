"""The official formats are read right, and whatever is wrong with a file is said in one sentence with its name."""

from __future__ import annotations

import functools
import gzip
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import UsageError
from harness.streams import archives, cifar, idx, open_stream, prepare
from harness.streams.samples import grey_to_colour
from harness.streams.stream import TaskStream


def opened(name: str, data_root: Path | None, **changes: Any) -> TaskStream:
    return open_stream(name, **{"seed": 0, "batch_size": 2, "epochs": 1, "data_root": data_root, **changes})


def samples(stream: TaskStream) -> dict[bytes, int]:
    """Return every training sample and its label."""
    batches = (batch for t in range(stream.num_tasks) for batch in stream.train_batches(t))
    return {raw.tobytes(): int(label) for b in batches for raw, label in zip(b.raw, b.labels, strict=True)}


def test_idx_files_are_read_whole(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> None:
    expected = grey_to_colour(tiny_fashion["train_images"])
    pairs = zip(expected, tiny_fashion["train_labels"], strict=True)
    stream = opened("split-fashion-mnist", data_root)
    assert samples(stream) == {raw.tobytes(): int(label) for raw, label in pairs}
    assert torch.cat([labels for _, labels in stream.test_batches(4)]).tolist() == [8, 9, 8, 9]


@pytest.mark.parametrize("subfolder", ["FashionMNIST/raw", "fashion-mnist"])
def test_idx_files_may_be_unpacked_and_lie_where_others_put_them(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, subfolder: str
) -> None:
    (data_root / subfolder).mkdir(parents=True)
    for packed in data_root.glob("*.gz"):
        (data_root / subfolder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert len(samples(opened("split-fashion-mnist", data_root))) == 40


def test_data_is_found_by_variable_and_in_system_folders(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(archives, "SYSTEM_FOLDERS", (data_root,))
    found = samples(opened("split-fashion-mnist", None))
    monkeypatch.setattr(archives, "SYSTEM_FOLDERS", ())
    monkeypatch.setenv("CLMEM_DATA_ROOT", str(data_root))
    monkeypatch.setenv("CLMEM_CACHE", str(tmp_path / "other"))
    assert samples(opened("split-fashion-mnist", None)) == found


@pytest.mark.parametrize("name", ["split-cifar10", "split-cifar100"])
def test_cifar_is_read_whole(tiny_cifar: dict[str, Any], data_root: Path, name: str) -> None:
    pairs = zip(tiny_cifar[name]["train_images"], tiny_cifar[name]["train_labels"], strict=True)
    stream = opened(name, data_root)
    assert samples(stream) == {raw.tobytes(): int(label) for raw, label in pairs}
    last = stream.tasks[-1]
    assert set(torch.cat([labels for _, labels in stream.test_batches(stream.num_tasks - 1)]).tolist()) == set(last)


def test_tinyimagenet_is_numbered_by_wnids_and_tested_on_val(tiny_imagenet: list[str], data_root: Path) -> None:
    stream = opened("split-tinyimagenet", data_root)
    batches = [batch for t in range(10) for batch in stream.train_batches(t)]
    levels = {int(label): int(raw.mean().round()) for b in batches for raw, label in zip(b.raw, b.labels, strict=True)}
    assert all(abs(levels[label] - label) <= 1 for label in range(200))
    assert len(levels) == 200
    images, labels = (torch.cat(parts) for parts in zip(*stream.test_batches(9), strict=True))
    assert labels.tolist() == list(range(180, 200))
    assert images.shape == (20, 3, 64, 64)
    assert (images[1:].mean((1, 2, 3)) >= images[:-1].mean((1, 2, 3)) - 1e-3).all()


def test_a_corrupt_idx_file_is_named_with_both_checksums(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> None:
    path = data_root / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"\0"))
    with pytest.raises(
        UsageError, match=rf"{path.name} .* after decompression is [0-9a-f]{{32}}, expected [0-9a-f]{{32}}"
    ):
        prepare("split-fashion-mnist", data_root)


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b"not gzip", lambda b: b[:40] + b"\xff" * 40 + b[80:]])
def test_a_broken_gzip_is_named(tiny_fashion: dict[str, np.ndarray], data_root: Path, damage: Any) -> None:
    path = data_root / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=f"{path.name} .*official"):
        prepare("split-fashion-mnist", data_root)


def test_corrupt_cifar_is_never_unpickled(
    tiny_cifar: dict[str, Any], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar.pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    for path in (data_root / "cifar-10-python.tar.gz", data_root / "cifar-10-batches-py" / "data_batch_1"):
        if path.exists():
            path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match=r"(python\.tar\.gz|data_batch_1) is not the official file: its md5 is"):
        prepare("split-cifar10", data_root)


@pytest.mark.parametrize("tiny_cifar", ["extracted"], indirect=True)
def test_an_incomplete_cifar_folder_is_named(tiny_cifar: dict[str, Any], data_root: Path) -> None:
    (data_root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UsageError, match=r"cifar-10-batches-py is not complete: expected the file data_batch_3"):
        prepare("split-cifar10", data_root)


@pytest.mark.parametrize("tiny_imagenet", ["extracted"], indirect=True)
@pytest.mark.parametrize("lost", ["wnids.txt", "val/val_annotations.txt", "train image", "val image"])
def test_an_incomplete_tinyimagenet_folder_is_named(tiny_imagenet: list[str], data_root: Path, lost: str) -> None:
    word = tiny_imagenet[5]
    file = {"train image": f"train/{word}/images/{word}_0.JPEG", "val image": "val/images/val_5.JPEG"}.get(lost, lost)
    (data_root / "tiny-imagenet-200" / file).unlink()
    shown = f"train/{word}, found 0" if lost == "train image" else file
    with pytest.raises(UsageError, match=rf"tiny-imagenet-200 .*{shown}.*extract the official archive again"):
        prepare("split-tinyimagenet", data_root)


@pytest.mark.parametrize("tiny_imagenet", ["archive"], indirect=True)
def test_a_corrupt_zip_is_named(tiny_imagenet: list[str], data_root: Path) -> None:
    path = data_root / "tiny-imagenet-200.zip"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"tiny-imagenet-200\.zip is not the official file"):
        prepare("split-tinyimagenet", data_root)


def test_missing_data_says_where_to_put_it(tiny_fashion: dict[str, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision downloads and is not installed")
    empty = tmp_path / "empty"
    with pytest.raises(
        UsageError, match=rf"train-images-idx3-ubyte\.gz was not found .* put it .* into {empty}.*--data-root"
    ):
        prepare("split-fashion-mnist", empty)


def test_without_torchvision_a_download_says_so(
    tiny_fashion: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets.utils", None)
    with pytest.raises(UsageError, match=r"could not be downloaded .*torchvision.* put it"):
        prepare("split-fashion-mnist", tmp_path)


def test_a_data_root_that_is_a_file_is_refused(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> None:
    file = data_root / "train-images-idx3-ubyte.gz"
    with pytest.raises(UsageError, match="is a file, but the data root must be the folder"):
        prepare("split-fashion-mnist", file)


@pytest.fixture
def served(data_root: Path) -> Iterator[str]:
    """Serve the data folder over HTTP and give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(data_root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_are_checked_and_leave_no_half_file(
    tiny_fashion: dict[str, np.ndarray], served: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision", reason="torchvision downloads and is not installed")
    monkeypatch.setattr(idx, "_URL", served)
    file = data_root / "t10k-labels-idx1-ubyte.gz"
    good = file.read_bytes()
    file.write_bytes(good[:-4])
    target = tmp_path / "downloads"
    with pytest.raises(UsageError, match=f"{file.name} was not found and could not be downloaded"):
        prepare("split-fashion-mnist", target)
    assert not (target / file.name).exists()
    file.write_bytes(good)
    prepare("split-fashion-mnist", target)
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in data_root.iterdir())


def test_the_real_fashion_mnist_of_a_distribution_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = (Path("/usr/share/datasets"), Path("/usr/share"))
    monkeypatch.setattr(archives, "SYSTEM_FOLDERS", folders)
    if archives.find(None, idx.FASHION_MNIST.subfolders, ("train-images-idx3-ubyte.gz",)) is None:
        pytest.skip("the package dataset-fashion-mnist is not installed")
    stream = opened("split-fashion-mnist", None, batch_size=32)
    assert [stream.train_task(t).steps_per_epoch for t in range(5)] == [375] * 5
    mini = opened("split-fashion-mini", None)
    ours, theirs = (torch.cat([x for x, _ in s.test_batches(0)]) for s in (mini, stream))
    whole = {image.numpy().tobytes() for image in theirs}
    assert len(theirs) == 2000
    assert all(image.numpy().tobytes() in whole for image in ours)


def test_the_official_checksums_are_the_published_ones() -> None:
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision lists them and is not installed")
    for ours, theirs in ((cifar.CIFAR10, datasets.CIFAR10), (cifar.CIFAR100, datasets.CIFAR100)):
        assert ours.archive == archives.Archive(theirs.filename, theirs.url, theirs.tgz_md5)
        assert [list(pair) for pair in (*ours.train, *ours.test)] == theirs.train_list + theirs.test_list
    source = idx.FASHION_MNIST
    files = (source.train_images, source.train_labels, source.test_images, source.test_labels)
    assert [(file.archive.file, file.gz_md5) for file in files] == [tuple(r) for r in datasets.FashionMNIST.resources]
