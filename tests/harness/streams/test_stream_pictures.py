"""An image file becomes RGB with white at 255, whatever wrote it, or one reason says why not."""

from __future__ import annotations

import inspect
import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clmem.harness.streams import pictures
from clmem.harness.streams.pictures import decode, files_below, to_rgb


def written(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def png(width: int, height: int, depth: int = 8, kind: int = 0, *, body: bytes = b"", extra: bytes = b"") -> io.BytesIO:
    """Return a PNG by hand. kind: 0 grey, 2 colour, 4 grey with alpha. extra: chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(body))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b""))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def refusal(file: io.BytesIO) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the caller looks at the message
        decode(file)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_grey_of_16_bits_is_scaled_and_rounded() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exact = np.rint(values / 257).astype(np.uint8)
    for file in (png(256, 256, 16, body=body), io.BytesIO(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())):
        found = np.asarray(decode(file))
        assert all(np.array_equal(found[:, :, channel], exact) for channel in range(3))


def test_every_scale_of_a_portable_greymap_ends_at_white() -> None:
    for largest in (1, 9, 255, 256, 1023, 4095, 65535):
        width = 1 if largest < 256 else 2
        body = b"".join(value.to_bytes(width, "big") for value in (0, largest))
        assert pixels(decode(io.BytesIO(b"P5 2 1 %d\n" % largest + body))) == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_every_mode_of_16_bit_grey_has_one_scale(mode: str) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), 0xFFFF)
    image.putpixel((1, 0), 0x0101 * 100)
    assert pixels(to_rgb(image)) == [(255, 255, 255), (100, 100, 100)]


@pytest.mark.parametrize("value", [-1, 2**16])
def test_integers_beyond_16_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="clmem reads grey up to 65,535"):
        to_rgb(Image.new("I", (1, 1), value))


@pytest.mark.parametrize("mode", ["F", "LAB", "RGBX", "RGBa", "La"])
def test_a_mode_of_unknown_scale_is_refused_by_name(mode: str) -> None:
    with pytest.raises(ValueError, match=f"it is of mode {mode}, and clmem does not know"):
        to_rgb(Image.new(mode, (1, 1)))


def test_a_floating_point_map_is_refused() -> None:
    message = refusal(io.BytesIO(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5)))
    assert "mode F" in message or "none of" in message, "which old versions of Pillow do not read at all"


@pytest.mark.parametrize(
    ("mode", "colour"),
    [
        ("1", 1),
        ("L", 255),
        ("RGB", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0)),
        ("YCbCr", (255, 128, 128)),
        ("HSV", (0, 0, 255)),
    ],
)
def test_modes_of_8_bits_keep_their_colours(mode: str, colour: Any) -> None:
    assert pixels(to_rgb(Image.new(mode, (1, 1), colour))) == [(255, 255, 255)]
    assert pixels(to_rgb(Image.new(mode, (1, 1), colour))) == pixels(Image.new(mode, (1, 1), colour).convert("RGB"))


def test_colour_of_16_bits_is_scaled() -> None:
    body = b"\0" + struct.pack(">6H", 0xFFFF, 0, 0x8080, 0, 0x1010, 0xFFFF)
    assert pixels(decode(png(2, 1, 16, 2, body=body))) == [(255, 0, 128), (0, 16, 255)]


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert pixels(decode(written(image))) == [(10, 20, 30), (200, 100, 0)]


def test_white_shows_where_an_image_is_transparent() -> None:
    clear, solid = (255, 255, 255), (10, 20, 30)
    alpha = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    alpha.putpixel((0, 0), (10, 20, 30, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    colour = Image.new("RGB", (2, 1), solid)
    colour.putpixel((0, 0), (9, 9, 9))
    for file in (
        written(alpha),
        written(palette, transparency=0),
        written(palette, transparency=b"\x00\xff"),
        written(colour, transparency=(9, 9, 9)),
    ):
        assert pixels(decode(file)) == [clear, solid]
    grey = Image.new("LA", (2, 1), (50, 0))
    grey.putpixel((1, 0), (50, 255))
    assert pixels(decode(written(grey))) == [clear, (50, 50, 50)]
    key = chunk(b"tRNS", struct.pack(">H", 0x0505))
    for depth, body in ((16, b"\0\x05\x05\x32\x32"), (8, b"\0\x05\x32")):
        assert pixels(decode(png(2, 1, depth, body=body, extra=key if depth == 16 else chunk(b"tRNS", b"\0\x05")))) == [
            clear,
            (50, 50, 50),
        ]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert pixels(decode(written(Image.new("RGBA", (1, 1), (0, 0, 0, 51))))) == [(204, 204, 204)]


@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_as_its_camera_was_held(orientation: int) -> None:
    seen = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    # what each orientation does to a picture, by the EXIF standard: where its row 0 and its column 0 are seen
    kept = {
        2: seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: seen.rotate(180),
        4: seen.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: seen.transpose(Image.Transpose.TRANSPOSE),
        6: seen.rotate(90, expand=True),
        7: seen.transpose(Image.Transpose.TRANSVERSE),
        8: seen.rotate(-90, expand=True),
    }.get(orientation, seen)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = written(kept, exif=exif)
    assert pixels(decode(file, upright=True)) == pixels(seen.convert("RGB"))
    assert pixels(decode(file)) == pixels(kept.convert("RGB"))


def test_broken_exif_data_do_not_lose_an_image() -> None:
    for broken in (b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0no tiff at all"):
        assert pixels(decode(written(Image.new("L", (1, 1), 7), exif=broken), upright=True)) == [(7, 7, 7)]


def test_the_first_of_several_images_is_taken() -> None:
    first, second = Image.new("RGB", (2, 2), (1, 2, 3)), Image.new("RGB", (2, 2), (250, 0, 0))
    assert set(pixels(decode(written(first, save_all=True, append_images=[second])))) == {(1, 2, 3)}
    photograph = decode(written(first, "MPO", save_all=True, append_images=[second]))
    assert max(max(pixel) for pixel in pixels(photograph)) < 10


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    side = 2**13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "8,193 x 8,192 pixels are more than the 67,108,864" in refusal(png(side + 1, side))
        assert "12,000 x 12,000 pixels" in refusal(png(12_000, 12_000))
        refusal(png(60_000, 60_000))  # which Pillow itself refuses
        refusal(io.BytesIO(b"P6 99999 99999 255\n"))


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n",
        b"GIF89a",
        b"II*\0",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"\x89PNG\r\n\x1a\n",
        b"no image at all",
        b"",
    ],
)
def test_another_format_is_refused_by_whatever_name(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    assert "it is none of BMP, JPEG, PNG, PPM" in refusal(io.BytesIO(content))


SMALL = [
    written(Image.effect_noise((9, 7), 90).convert(mode), kind).getvalue()
    for kind, modes in {
        "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "PPM": ("1", "L", "RGB", "I"),
    }.items()
    for mode in modes
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_an_image_or_one_reason_comes(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(pictures, "LARGEST_PIXELS", 2**14)
        warnings.simplefilter("ignore")
        try:
            image = decode(io.BytesIO(content), upright=True)
        except ValueError as error:
            assert str(error).isprintable()  # noqa: PT017 - an image is as good as a reason
        else:
            assert image.mode == "RGB"


def test_files_below_a_folder_are_found_without_going_in_circles(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    for path in (tmp_path / "one", deep / "two", deep / ".hidden", tmp_path / ".git" / "three"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (deep / "circle").symlink_to(tmp_path)
    (deep / "itself").symlink_to(deep / "itself")
    os.mkfifo(deep / "pipe")
    assert {path.name for path in files_below(tmp_path)} == {"one", "two", "circle", "itself", "pipe"}


def test_folders_nested_deeper_than_calls_may_be_are_walked(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 200)  # not deeper, because pytest could not remove it
    deep.mkdir(parents=True)
    (deep / "found").touch()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        found = list(files_below(tmp_path))
    finally:
        sys.setrecursionlimit(before)
    assert [path.name for path in found] == ["found"]
