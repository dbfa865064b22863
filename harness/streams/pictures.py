"""Image files of others: found in folders and decoded to RGB, with nothing taken for granted.

A file is opened as one of `FORMATS` whatever its name says, because other readers of Pillow start programs (an EPS is
given to Ghostscript). Of several images in a file, the first is taken.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from clmem.harness.text import clean

FORMATS = ("BMP", "JPEG", "PNG", "PPM")

LARGEST_PIXELS = 2**26
"""Of one image, 8192 x 8192: a file of some kilobytes can claim any number, and each takes 3 B and more."""

LARGEST_BYTES = 2**29
"""Of one file: `LARGEST_PIXELS` of 16 bits in three colours, uncompressed."""

BACKGROUND = (255, 255, 255, 255)
"""What shows where an image is transparent: white, as on a page."""

_ALPHA = frozenset({"LA", "PA", "RGBA"})
_FULL_SCALE_255 = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"})
_GREY_16 = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
"""Grey up to 65,535. In `I` an integer may be larger or negative, but the readers of `FORMATS` make none."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that a camera notes in the EXIF data."""
_ORIENTATION = 0x0112


def decode(file: BinaryIO, *, upright: bool = False) -> Image.Image:
    """Return an image file's (first) image in mode RGB, scaled to 0..255, on white where it is transparent.

    upright: turn it as its EXIF data say. Raises ValueError with the reason for whatever cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            # What Pillow warns of is an error here, as too many pixels are, or harmless, as broken EXIF data are.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                return _decoded(image, upright)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # the readers raise whatever the bytes make them stumble over
        raise ValueError(clean(str(error)) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in mode RGB, 0..255. Raises ValueError for a mode whose full scale is unknown."""
    if image.mode in _GREY_16:
        return _scaled(image).convert("RGB")
    if image.mode in _ALPHA or (image.mode in _FULL_SCALE_255 and "transparency" in image.info):
        page = Image.new("RGBA", image.size, BACKGROUND)
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    if image.mode in _FULL_SCALE_255:
        return image.convert("RGB")
    raise ValueError(f"it is of mode {image.mode}, and clmem does not know which of its values is white")


def files_below(folder: Path) -> Iterator[Path]:
    """Yield whatever lies below a folder and is no folder, in no order, without what is hidden.

    A link to a folder is yielded, not followed: it may lead in a circle. Raises OSError.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield Path(entry.path)


def _decoded(image: Image.Image, upright: bool) -> Image.Image:
    if image.width * image.height > LARGEST_PIXELS:
        claimed = f"{image.width:,} x {image.height:,} pixels"
        raise ValueError(f"its {claimed} are more than the {LARGEST_PIXELS:,} that clmem reads")
    turn = _turn(image) if upright else None
    rgb = to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF data say nothing, and the pixels beside them can be read
        return None


def _scaled(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8-bit grey, rounded."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its grey reaches {values.max():,}, and clmem reads grey up to 65,535")
    grey = ((values.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = BACKGROUND[0]
    return Image.fromarray(grey)
