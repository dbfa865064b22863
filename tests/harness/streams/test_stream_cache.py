"""Data is converted once, whoever asks and however many, and read without entering the resident size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clmem.harness.errors import UsageError
from clmem.harness.streams import cache, idx, open_stream, prepare, tinyimagenet
from clmem.harness.streams.catalog import lookup
from clmem.harness.streams.samples import ArrayImages, open_images

NAME = "split-fashion-mnist"
EVERY = np.arange(40)


def opened(data_root: Path | None) -> str:
    stream = open_stream(NAME, seed=0, batch_size=2, epochs=1, data_root=data_root)
    list(stream.train_batches(0))
    return stream.fingerprint


def test_prepared_data_outlives_its_source(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> None:
    first = opened(data_root)
    shutil.rmtree(data_root)
    assert opened(None) == first


def test_embedded_and_synthetic_streams_need_no_cache(tmp_path: Path) -> None:
    for name in ("split-fashion-mini", "synthetic-tinyimagenet"):
        prepare(name)
        open_stream(name, seed=0, batch_size=2, epochs=1)
    assert not (tmp_path / "cache").exists()


def test_concurrent_callers_convert_once(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, calls = idx.convert, []

    def slow(folder: Path, source: idx.IdxSource, root: str | Path | None) -> None:
        calls.append(folder)
        time.sleep(0.1)
        convert(folder, source, root)

    monkeypatch.setattr(idx, "convert", slow)
    threads = [threading.Thread(target=prepare, args=(NAME, data_root)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    opened(None)


def test_a_failed_conversion_leaves_nothing_and_can_be_repeated(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, tmp_path: Path
) -> None:
    path = data_root / "t10k-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(b"broken")
    with pytest.raises(UsageError):
        prepare(NAME, data_root)
    left = [item.name for item in (tmp_path / "cache" / "streams").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []
    path.write_bytes(good)
    opened(data_root)


def test_what_a_killed_conversion_left_is_removed(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> None:
    target = cache.prepared_folder(NAME)
    abandoned = target.parent / f".{target.name}.killed"
    abandoned.mkdir(parents=True)
    (abandoned / "train_images.npy").write_bytes(b"half")
    prepare(NAME, data_root)
    assert target.exists()
    assert not abandoned.exists()


@pytest.fixture
def prepared(tiny_fashion: dict[str, np.ndarray], data_root: Path) -> Path:
    """Return the folder of prepared data, whose source is gone."""
    prepare(NAME, data_root)
    shutil.rmtree(data_root)
    return cache.prepared_folder(NAME)


def change(path: Path, place: int, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] = byte
    path.write_bytes(content)


def refusal() -> str:
    with pytest.raises(UsageError, match=r"does not hold prepared data .*; delete this folder") as refused:
        prepare(NAME)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_prepared_files_that_somebody_edited_are_refused(prepared: Path) -> None:
    path = prepared / "train_images.npy"
    change(path, -1, path.read_bytes()[-1] ^ 1)
    assert "not the ones that were written" in refusal()
    change(path, -1, path.read_bytes()[-1] ^ 1)
    prepare(NAME)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    file=st.sampled_from([*(f"{part}.npy" for part in cache.FILES), cache.META]),
    place=st.floats(0, 1),
    to=st.binary(min_size=1, max_size=1),
)
def test_a_changed_byte_is_refused_or_says_the_same(prepared: Path, file: str, place: float, to: bytes) -> None:
    path = prepared / file
    good = path.read_bytes()
    data = cache.load(lookup(NAME))
    change(path, min(int(place * len(good)), len(good) - 1), to[0])
    try:
        prepare(NAME)
        again = cache.load(lookup(NAME))
        assert again.digest == data.digest
        assert np.array_equal(again.train.labels, data.train.labels)
        assert np.array_equal(again.train.images.gather(EVERY), data.train.images.gather(EVERY))
    except UsageError:
        refusal()
    finally:
        path.write_bytes(good)


def test_a_process_reads_prepared_files_through_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(cache, "_blocks", lambda path, _: read.append(path) or [])
    opened(None)
    assert read == [], "a process that measures only opens them"
    prepare(NAME)
    assert read == [], "they were read when they were prepared"
    os.utime(prepared / "test_labels.npy", ns=(1, 1))
    assert "not the ones that were written" in refusal()
    assert len(read) == 4


def test_prepared_files_are_checked_in_shape_and_type(prepared: Path) -> None:
    labels, images = prepared / "train_labels.npy", prepared / "train_images.npy"
    good = {path: path.read_bytes() for path in (labels, images)}
    for path, array, said in (
        (labels, np.full(40, 10, np.uint8), "a train label of 10, but there are 10 classes"),
        (labels, np.zeros(39, np.uint8), "with labels of shape (39,)"),
        (labels, np.zeros(40, np.int64), "which its header of int64 (40,) does not say"),
        (images, np.zeros((40, 28, 27), np.uint8), "train images of shape (40, 28, 27)"),
        (images, np.zeros((28, 28, 40), np.uint8).T, "which its header of uint8 (40, 28, 28) does not say"),
        (images, np.array([{}]), "which its header of object (1,) does not say"),
    ):
        np.save(path, array)
        assert said in refusal()
        path.write_bytes(good[path])
    (prepared / "train_images.npy").write_bytes(npy_header("(" * 5000))
    assert "train_images.npy is no .npy file" in refusal()
    (prepared / "train_images.npy").write_bytes(npy_header("'shape': (10**18, 28, 28)"))
    refusal()


def npy_header(text: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, {text}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "meta",
    [
        b"null",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "digest": 5}',
        b'{"format": 1, "digest": "../x"}',
        b'{"format": 2, "digest": "' + b"0" * 32 + b'"}',
        b"[" * 4000,
        b" " * 5000,
        b"\xff",
    ],
)
def test_a_description_that_clmem_did_not_write_is_refused(prepared: Path, meta: bytes) -> None:
    (prepared / cache.META).write_bytes(meta)
    assert "meta.json is not what clmem wrote" in refusal()


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "meta.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_in_the_cache_is_refused(
    prepared: Path, file: str, make: Any, within_a_minute: None
) -> None:
    (prepared / file).unlink()
    make(prepared / file)
    assert file in refusal()
    with pytest.raises(UsageError, match="delete this folder"):
        cache.load(lookup(NAME))


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "meta.json"])
def test_damaged_prepared_data_is_named_with_the_remedy(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, file: str
) -> None:
    prepare(NAME, data_root)
    path = cache.prepared_folder(NAME) / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="delete this folder and it is made again"):
        opened(None)
    shutil.rmtree(path.parent)
    opened(data_root)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here to write to")
@pytest.mark.parametrize(("name", "reader"), [(NAME, idx), ("split-tinyimagenet", tinyimagenet)])
@pytest.mark.parametrize("tiny_imagenet", ["extracted"], indirect=True)
def test_a_full_disk_is_named_and_leaves_nothing(
    name: str,
    reader: Any,
    tiny_fashion: object,
    tiny_imagenet: object,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert = reader.convert

    def onto_a_full_disk(folder: Path, source: object, root: str | Path | None) -> None:
        (folder / "train_images.npy").symlink_to("/dev/full")
        convert(folder, source, root)

    monkeypatch.setattr(reader, "convert", onto_a_full_disk)
    with pytest.raises(UsageError, match=rf"{name} could not be prepared in .*free space"):
        prepare(name, data_root)
    left = [item.name for item in cache.prepared_folder(name).parent.iterdir() if not item.name.endswith(".lock")]
    assert left == []


def test_who_waits_for_another_process_says_so(
    tiny_fashion: object, data_root: Path, monkeypatch: pytest.MonkeyPatch, within_a_minute: None
) -> None:
    target = cache.prepared_folder(NAME)
    target.parent.mkdir(parents=True)
    held, said = FileLock(target.with_name(f"{target.name}.lock")), []

    def hear(text: str, **_: object) -> None:
        said.append(text)
        held.release()

    monkeypatch.setattr(cache, "PATIENCE_S", 0.0)
    monkeypatch.setattr(cache, "print", hear, raising=False)
    held.acquire()
    prepare(NAME, data_root)
    assert said == [f"clmem: waiting for another process that prepares {target}"]
    opened(None)


def test_prepared_data_are_read_from_a_cache_without_locks(prepared: Path) -> None:
    for lock in prepared.parent.glob("*.lock"):
        lock.unlink()
    prepare(NAME)
    opened(None)
    assert [path.name for path in prepared.parent.iterdir()] == [prepared.name]


def test_an_unusable_cache_is_named(
    tiny_fashion: dict[str, np.ndarray], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLMEM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=f"{NAME} could not be prepared in .*CLMEM_CACHE"):
        prepare(NAME, data_root)


def test_files_and_arrays_give_the_same_images(tmp_path: Path) -> None:
    for shape in ((20, 28, 28), (20, 3, 8, 8)):
        array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.save(tmp_path / "images.npy", array)
        images = open_images(tmp_path / "images.npy")
        indices = np.array([3, 19, 0, 3])
        assert len(images) == 20
        assert np.array_equal(images.gather(indices), ArrayImages(array).gather(indices))


def test_a_file_that_shrinks_while_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((20, 3, 8, 8), np.uint8))
    images = open_images(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"images\.npy became shorter"):
        images.gather(np.array([19]))


def test_a_data_set_on_disk_does_not_enter_the_resident_size(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the resident size is read from /proc, which this system does not have")
    np.save(tmp_path / "images.npy", np.ones((20_000, 3, 32, 32), np.uint8))
    code = """
import sys, numpy as np
from pathlib import Path
from clmem.harness.streams.samples import open_images
def peak_kib():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
images = open_images(Path(sys.argv[1]))
images.gather(np.arange(32))
before = peak_kib()
for start in range(0, len(images), 32):
    assert images.gather(np.arange(start, start + 32)).all()
print(peak_kib() - before)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "images.npy")], check=True, capture_output=True)
    assert int(run.stdout) < 4096  # of 60,000 KiB
