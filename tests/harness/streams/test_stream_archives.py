"""The official formats are read right, and whatever is wrong with a file is said in one sentence with its name."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.streams import archives, cifar, idx, open_stream, prepare, tinyimagenet
from clmem.harness.streams.samples import grey_to_colour
from clmem.harness.streams.stream import TaskStream

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


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
        UsageError, match=rf"{path.name} .* after decompression is [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"
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
            path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(UsageError, match=r"(python\.tar\.gz|data_batch_1) is not the official file: its sha256 is"):
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


@pytest.mark.parametrize("tiny_imagenet", ["extracted"], indirect=True)
@pytest.mark.parametrize("name", ["../../../secret.JPEG", "/etc/passwd", "deeper/val_0.JPEG", ".val_0.JPEG", ""])
def test_an_annotation_that_leads_out_of_its_folder_is_refused(
    tiny_imagenet: list[str], data_root: Path, tmp_path: Path, name: str
) -> None:
    folder = data_root / "tiny-imagenet-200"
    shutil.copy(folder / "val" / "images" / "val_0.JPEG", tmp_path / "secret.JPEG")
    shutil.copytree(folder / "val" / "images", folder / "val" / "images" / "deeper")
    lists = folder / "val" / "val_annotations.txt"
    lists.write_text(lists.read_text().replace("val_0.JPEG", name, 1))
    with pytest.raises(UsageError, match=r"expected names of files in val/val_annotations\.txt, found"):
        prepare("split-tinyimagenet", data_root)


@pytest.mark.parametrize("tiny_imagenet", ["extracted"], indirect=True)
@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("wnids.txt", lambda text: text.replace(b"n", b"\xff", 1), "UTF-8 text in wnids.txt"),
        ("wnids.txt", lambda text: text[:10] + text[:10] + text[20:], "200 classes in wnids.txt, found 199"),
        ("val/val_annotations.txt", lambda text: text.replace(b"val_1.", b"val_0.", 1), "200 images .* found 199"),
        ("val/images/val_7.JPEG", lambda image: image + bytes(tinyimagenet.LARGEST_BYTES), "the file val/images/val_7"),
    ],
    ids=["no-utf8", "a-class-twice", "an-image-twice", "huge"],
)
def test_lists_and_files_that_are_not_official_are_named(
    tiny_imagenet: list[str], data_root: Path, file: str, damage: Any, expected: str
) -> None:
    path = data_root / "tiny-imagenet-200" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"tiny-imagenet-200 is not complete: expected {expected}"):
        prepare("split-tinyimagenet", data_root)


@pytest.mark.parametrize("tiny_imagenet", ["extracted"], indirect=True)
def test_a_file_that_is_no_jpeg_is_not_given_to_another_reader(
    tiny_imagenet: list[str], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (data_root / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG").write_bytes(EPS)
    with pytest.raises(UsageError, match=r"holds no readable image val/images/val_3\.JPEG \(it is none of BMP, JPEG"):
        prepare("split-tinyimagenet", data_root)


@pytest.mark.parametrize("tiny_imagenet", ["archive"], indirect=True)
def test_a_corrupt_zip_is_named(tiny_imagenet: list[str], data_root: Path) -> None:
    path = data_root / "tiny-imagenet-200.zip"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"tiny-imagenet-200\.zip is not the official file"):
        prepare("split-tinyimagenet", data_root)


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> None:
    path = data_root / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(2**26), 1))
    with pytest.raises(UsageError, match=rf"{path.name} is not the official file: it has .* more than its content"):
        prepare("split-fashion-mnist", data_root)
    path.write_bytes(gzip.compress(bytes(2**24)))
    tracemalloc.start()
    with pytest.raises(UsageError, match=rf"{path.name} is not the official file: it unpacks to more than 28 B"):
        prepare("split-fashion-mnist", data_root)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_file_of_another_size_is_refused(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, packed: bool
) -> None:
    path = data_root / "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress(path.read_bytes())[:-1]
    path.unlink()
    path = path if packed else path.with_suffix("")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UsageError, match=rf"{path.name} is not the official file: its sha256"):
        prepare("split-fashion-mnist", data_root)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("split-fashion-mnist", "train-images-idx3-ubyte.gz"),
        ("split-cifar10", "cifar-10-python.tar.gz"),
        ("split-tinyimagenet", "tiny-imagenet-200.zip"),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_as_an_archive_is_refused(
    name: str, file: str, make: Any, data_root: Path, within_a_minute: None
) -> None:
    make(data_root / file)
    with pytest.raises(UsageError, match=f"{re.escape(file)}: it is no regular file"):
        prepare(name, data_root)


@pytest.mark.parametrize("tiny_cifar", ["extracted"], indirect=True)
@pytest.mark.parametrize("tiny_imagenet", ["extracted"], indirect=True)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("split-cifar10", "cifar-10-batches-py/data_batch_2"),
        ("split-tinyimagenet", "tiny-imagenet-200/wnids.txt"),
        ("split-tinyimagenet", "tiny-imagenet-200/val/images/val_0.JPEG"),
    ],
)
def test_a_pipe_in_an_extracted_folder_is_refused(
    name: str, file: str, tiny_cifar: dict[str, Any], tiny_imagenet: list[str], data_root: Path, within_a_minute: None
) -> None:
    (data_root / file).unlink()
    os.mkfifo(data_root / file)
    with pytest.raises(UsageError, match=f"is not complete: expected the file .*{Path(file).name}"):
        prepare(name, data_root)


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


def test_every_archive_is_told_by_sha256_and_fetched_with_tls() -> None:
    fashion = idx.FASHION_MNIST
    files = (fashion.train_images, fashion.train_labels, fashion.test_images, fashion.test_labels)
    sources = (cifar.CIFAR10, cifar.CIFAR100, tinyimagenet.TINY_IMAGENET)
    for archive in [file.archive for file in files] + [source.archive for source in sources]:
        assert archive.url.startswith("https://")
        assert archive.url.endswith(f"/{archive.file}")
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
        assert archive.size_bytes > 0


def test_a_data_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    mistyped = tmp_path / "dta"
    with pytest.raises(UsageError, match=r"there is no folder \S+dta to look for data in; make it, or name another"):
        prepare("split-cifar10", mistyped)
    assert not mistyped.exists()
