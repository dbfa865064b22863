"""A folder of images becomes a stream of one task, or one sentence says why not."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clmem.harness.errors import UsageError
from clmem.harness.streams import folder
from clmem.harness.streams.folder import open_folder
from clmem.harness.streams.pictures import LARGEST_BYTES
from clmem.harness.streams.stream import TaskStream


def write(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_class(path: Path, count: int, red: int) -> None:
    """Write images whose red channel says the class and whose green channel says which one it is."""
    for number in range(count):
        write(path / f"{number:03d}.png", (red, number, 0))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    write_class(root / "zebra", 10, 200)
    write_class(root / "ant", 21, 100)
    return root


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(UsageError) as refused:
        open_folder(path, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def colours(images: np.ndarray) -> list[tuple[int, ...]]:
    """Return the colour of each one-coloured image."""
    assert (images == images[:, :, :1, :1]).all()
    return [tuple(image[:, 0, 0].tolist()) for image in images]


def test_classes_are_numbered_by_name_and_every_tenth_image_is_held_out(images: Path) -> None:
    info, data = open_folder(images)
    assert (info.num_tasks, info.num_classes, info.image_shape) == (1, 2, (3, 32, 32))
    assert data.train.labels.tolist() == [0] * 19 + [1] * 9
    assert data.test.labels.tolist() == [0, 0, 1]
    held_out = data.test.images.gather(np.arange(3))
    assert colours(held_out) == [(100, 9, 0), (100, 19, 0), (200, 9, 0)]
    seen = colours(data.train.images.gather(np.arange(28)))
    assert len({*seen, *colours(held_out)}) == 31


def test_all_images_lie_in_one_array_of_bytes(images: Path) -> None:
    _, data = open_folder(images, size=48)
    train, test = data.train.images.array, data.test.images.array  # type: ignore[attr-defined]
    assert train.dtype == np.uint8
    assert train.base is test.base
    assert train.base.shape == (31, 3, 48, 48)


@pytest.mark.parametrize("half", ["val", "test"])
def test_a_test_folder_is_the_test_split(half: str, tmp_path: Path) -> None:
    for name, red in (("ant", 1), ("bee", 2)):
        write_class(tmp_path / "train" / name, 3, red)
        write_class(tmp_path / half / name, 2, red + 10)
    _, data = open_folder(tmp_path)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert colours(data.test.images.gather(np.arange(4))) == [(11, 0, 0), (11, 1, 0), (12, 0, 0), (12, 1, 0)]


def test_a_train_folder_alone_is_held_out_from(images: Path, tmp_path: Path) -> None:
    shutil.move(images, tmp_path / "half" / "train")
    _, data = open_folder(tmp_path / "half")
    assert len(data.test.labels) == 3


def test_a_class_may_be_called_train(images: Path) -> None:
    (images / "ant").rename(images / "train")
    info, data = open_folder(images)
    assert info.num_classes == 2
    assert data.test.labels.tolist() == [0, 0, 1]


def test_the_centred_square_is_kept_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = (10, 20, 30)
    wide[:, :32] = wide[:, 96:] = 255
    for name in ("ant", "bee"):
        write_class(tmp_path / name, 9, 0)
        Image.fromarray(wide).save(tmp_path / name / "zz.png")
    _, data = open_folder(tmp_path)
    inner = data.test.images.gather(np.arange(1))[:, :, :, 1:-1]
    assert colours(inner) == [(10, 20, 30)]


def test_grey_palette_and_transparent_images_become_colour(images: Path) -> None:
    for number, mode in enumerate(("L", "P", "RGBA", "1")):
        Image.new(mode, (40, 32)).save(images / "zebra" / f"a{number}.png")
    _, data = open_folder(images)
    assert data.train.images.gather(np.arange(2)).shape == (2, 3, 32, 32)
    assert len(data.train.labels) + len(data.test.labels) == 35


def test_every_listed_format_is_read_and_hidden_files_are_not(images: Path) -> None:
    for name in ("a.JPG", "b.jpeg", "c.bmp", "d.ppm"):
        write(images / "ant" / "deeper" / name, (1, 2, 3))
    for name in ("._001.png", ".hidden/x.png"):
        (images / "ant" / name).parent.mkdir(exist_ok=True)
        (images / "ant" / name).write_bytes(b"no image")
    (images / ".cache").mkdir()
    (images / ".DS_Store").touch()
    info, data = open_folder(images)
    assert info.num_classes == 2
    assert len(data.train.labels) + len(data.test.labels) == 35
    assert info.description.endswith("32 + 3 images of 2 classes, one task")


def test_files_that_are_not_read_are_counted_and_named(images: Path, within_a_minute: None) -> None:
    for number in range(30):
        (images / "ant" / f"{number}.TIF").touch()
    for name in ("ant/0.webp", "zebra/deeper/1.webp", "zebra/labels", "loose.png", "readme.md"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
    os.mkfifo(images / "zebra" / "0.png")
    (images / "zebra" / "1.png").symlink_to(images / "nowhere")
    (images / "zebra" / "more").symlink_to(images / "ant")
    info, data = open_folder(images)
    assert len(data.train.labels) + len(data.test.labels) == 31
    assert info.description == (
        f"{images}: 28 + 3 images of 2 classes, one task; left out 38 files, because images are "
        ".bmp, .jpeg, .jpg, .png, .ppm in class folders: 30 .tif (such as ant/0.TIF), "
        "3 special files and links (such as zebra/0.png), 2 .webp (such as ant/0.webp), "
        "2 outside the class folders (such as loose.png), 1 without a suffix (such as zebra/labels)"
    )


def test_many_kinds_of_files_that_are_not_read_are_summed_up(tmp_path: Path) -> None:
    for half in ("train", "val"):
        for name in ("ant", "bee"):
            write_class(tmp_path / half / name, 2, 0)
            for number in range(8):
                (tmp_path / half / name / f"x.{number}\x1b[2J\n").touch()
    description = open_folder(tmp_path)[0].description
    assert "left out 32 files" in description
    assert description.endswith(", 4 .4 (such as ant/x.4), 3 more kinds")
    assert description.isprintable()


def test_a_refusal_names_what_was_left_out(images: Path) -> None:
    for file in (images / "zebra").iterdir():
        file.rename(file.with_suffix(".gif"))
    assert "class zebra has 0 images" in (message := refusal(images))
    assert "left out 10 files" in message
    assert "10 .gif (such as zebra/000.gif)" in message
    shutil.rmtree(images / "ant")
    assert "10 .gif" in refusal(images)


def test_links_to_files_are_followed_and_circles_are_not(images: Path, tmp_path: Path) -> None:
    (images / "ant" / "000.png").rename(tmp_path / "elsewhere")
    (images / "ant" / "000.png").symlink_to(tmp_path / "elsewhere")
    (images / "zebra" / "circle").symlink_to(images)
    (images / "itself").symlink_to(images / "itself")
    info, data = open_folder(images)
    assert info.num_classes == 2
    assert len(data.train.labels) + len(data.test.labels) == 31
    (images / "third").symlink_to(images / "ant")
    assert open_folder(images)[0].num_classes == 3, "a class folder may be a link"
    (images / "circle").symlink_to(images)
    assert f"{images / 'circle'} links to a folder that it lies in" in refusal(images)


def test_a_device_named_like_an_image_is_left_out(images: Path, within_a_minute: None) -> None:
    (images / "ant" / "zero.png").symlink_to("/dev/zero")
    assert "1 special files and links (such as ant/zero.png)" in open_folder(images)[0].description


def test_folders_and_files_need_not_have_names_in_utf8(images: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    images.rename(odd)
    (odd / "ant").rename(odd / os.fsdecode(b"\xe4nt"))
    (odd / "zebra" / os.fsdecode(b"\xff.webp")).touch()
    info, data = open_folder(odd)
    assert len(data.train.labels) == 28
    info.description.encode("utf-8")


def test_a_tilde_is_the_home_folder(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(images.parent))
    assert open_folder("~/images")[0].num_classes == 2


def test_16_bit_grey_images_are_not_white(images: Path) -> None:
    for number in range(10):
        Image.fromarray(np.full((32, 32), 257 * 90, np.uint16)).save(images / "zebra" / f"{number:03d}.png")
    _, data = open_folder(images)
    assert colours(data.test.images.gather(np.array([2]))) == [(90, 90, 90)]


def test_photographs_are_turned_upright(images: Path) -> None:
    half = Image.new("RGB", (32, 64), (255, 255, 255))
    half.paste((0, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 3
    half.save(images / "zebra" / "009.png", exif=exif)
    _, data = open_folder(images)
    turned = data.test.images.gather(np.array([2]))[0, 0]
    assert turned[0].tolist() == [255] * 32
    assert turned[-1].tolist() == [0] * 32


def test_a_file_too_large_to_be_an_image_is_refused(images: Path) -> None:
    with (images / "zebra" / "003.png").open("r+b") as file:
        file.truncate(LARGEST_BYTES + 1)
    assert "zebra/003.png is no readable image (it has more than 536,870,912 B)" in refusal(images)


def test_the_digest_is_of_the_content(images: Path, tmp_path: Path) -> None:
    _, first = open_folder(images)
    shutil.copytree(images, tmp_path / "copy")
    _, copy = open_folder(tmp_path / "copy")
    write(images / "ant" / "004.png", (100, 4, 1))
    _, changed = open_folder(images)
    _, larger = open_folder(images, size=64)
    assert first.digest == copy.digest
    assert len({first.digest, changed.digest, larger.digest}) == 3


def test_it_opens_as_a_stream_whose_batches_are_normalised(images: Path) -> None:
    info, data = open_folder(images)
    stream = TaskStream(info, data, seed=0, batch_size=8, epochs=1, joint=True)
    batches = list(stream.train_batches(0))
    assert sum(len(batch.labels) for batch in batches) == 24
    assert batches[0].images.shape == (8, 3, 32, 32)
    tested, labels = next(stream.test_batches(0))
    expected = (np.array([100, 9, 0]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(tested[0, :, 0, 0], expected, rtol=1e-5)
    assert labels.tolist() == [0, 0, 1]
    assert stream.has_data


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    assert "NUL" in refusal(Path("a\0b"))
    assert "cannot be listed" in refusal(tmp_path / ("x" * 5000))
    assert "does not exist" in refusal(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (0, 0, 0))
    assert f"{tmp_path} has no class folders" in refusal(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    assert "no images in the 2 class folders" in refusal(tmp_path)


def test_one_class_is_refused(images: Path) -> None:
    shutil.rmtree(images / "ant")
    assert "the one class zebra" in refusal(images)


def test_a_class_with_too_few_images_is_named(images: Path) -> None:
    (images / "zebra" / "003.png").unlink()
    assert "class zebra has 9 images" in (message := refusal(images))
    assert "at least 10" in message


def test_halves_with_other_classes_or_empty_ones_are_refused(tmp_path: Path) -> None:
    for half, name in (("train", "ant"), ("train", "bee"), ("val", "ant"), ("val", "cow")):
        write_class(tmp_path / half / name, 2, 0)
    assert "only one of them has bee (2 such in all)" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "val" / "cow")
    (tmp_path / "val" / "bee").mkdir()
    assert "class bee has 0 images" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["noise", "truncated", "empty"])
def test_an_unreadable_image_is_named(kind: str, images: Path) -> None:
    victim = images / "zebra" / "005.png"
    content = {"noise": b"no image at all", "truncated": victim.read_bytes()[:-40], "empty": b""}[kind]
    victim.write_bytes(content)
    with pytest.raises(UsageError, match="no readable image") as refused:
        open_folder(images)
    assert str(victim) in str(refused.value)
    # while the error is held: a bar's threads that are left to the garbage collector can block it for ever
    assert not [thread for thread in threading.enumerate() if type(thread).__module__.startswith("rich")]


def test_too_much_for_memory_is_refused_before_reading_with_the_size(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "LIMIT_BYTES", 31 * 3 * 64 * 64 - 1)
    (images / "ant" / "000.png").write_bytes(b"unreadable")
    assert "the 31 images" in (message := refusal(images, size=64))
    assert "64 x 64" in message
    assert "smaller size" in message


def test_too_small_a_size_is_refused(images: Path) -> None:
    assert "at least 32" in refusal(images, size=16)
