"""Data is converted once, whoever asks and however many, and read without entering the resident size."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from harness.errors import UsageError
from harness.streams import cache, open_stream, prepare
from harness.streams.samples import ArrayImages, open_images

NAME = "split-fashion-mnist"


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
    convert, calls = cache.CONVERTERS[NAME], []

    def slow(folder: Path, root: str | Path | None) -> None:
        calls.append(folder)
        time.sleep(0.1)
        convert(folder, root)

    monkeypatch.setitem(cache.CONVERTERS, NAME, slow)
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
from harness.streams.samples import open_images
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
