"""Raw uint8 images to what a network sees: random crop, mirror, normalise. One implementation for stream and replay.

Pixel x of channel c becomes x * scale[c] - shift[c] in float32, two roundings in that order, so numpy and every torch
device give the same bits. Zero padding comes before normalisation, as in torchvision's usual list of transforms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clmem.harness.streams.catalog import PAD


@dataclass(frozen=True)
class Crops:
    """What was drawn for n images: top and left of each crop in the padded image, int64 [n], and mirrored or not."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]


@dataclass(frozen=True)
class Normalisation:
    """Per-channel constants, float32 [C]: normalised = pixel * scale - shift."""

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]


def normalisation(mean: tuple[int, ...], std: tuple[int, ...]) -> Normalisation:
    """Return the constants of (x / 255 - mean) / std, both given in ten-thousandths."""
    scale = 1e4 / (255.0 * np.asarray(std, np.float64))
    shift = np.asarray(mean, np.float64) / np.asarray(std, np.float64)
    return Normalisation(scale.astype(np.float32), shift.astype(np.float32))


def draw_crops(count: int, flips: bool, bits: np.random.BitGenerator) -> Crops:
    """Draw crops for `count` images from raw bits, whose sequence numpy guarantees across versions."""
    raw = np.asarray(bits.random_raw(3 * count)).reshape(3, count)
    top, left = (raw[:2] % np.uint64(2 * PAD + 1)).astype(np.int64)
    flip = (raw[2] % np.uint64(2)).astype(bool) if flips else np.zeros(count, bool)
    return Crops(top, left, flip)


def to_tensor(raw: NDArray[np.uint8], constants: Normalisation, crops: Crops | None) -> Tensor:
    """Return float32 [n, C, H, W] on the CPU of uint8 `raw`, cropped unless `crops` is None.

    The result is the one tensor that torch allocates here; scratch is numpy's.
    """
    out = torch.empty(raw.shape, dtype=torch.float32)
    pixels = raw if crops is None else _crop(raw, crops)
    values = out.numpy()
    np.multiply(pixels, constants.scale[:, np.newaxis, np.newaxis], out=values)
    np.subtract(values, constants.shift[:, np.newaxis, np.newaxis], out=values)
    return out


def augment(raw: Tensor, constants: Normalisation, flips: bool, rng: np.random.Generator) -> Tensor:
    """Return float32 [n, C, H, W], augmented and normalised, on the device of uint8 `raw` [n, C, H, W]."""
    crops = draw_crops(len(raw), flips, rng.bit_generator)
    if raw.device.type == "cpu":
        return to_tensor(raw.numpy(), constants, crops)
    return augment_on_device(raw, constants, crops)


def augment_on_device(raw: Tensor, constants: Normalisation, crops: Crops) -> Tensor:
    """Do `to_tensor` with torch operations where `raw` lies: the same bits, temporaries of uint8 only."""
    count, channels, height, width = raw.shape
    columns = np.where(crops.flip[:, np.newaxis], np.arange(width)[::-1], np.arange(width))

    def index(values: NDArray[np.int64], *shape: int) -> Tensor:
        return torch.from_numpy(values).to(raw.device).reshape(shape)

    padded = raw.new_zeros(count, channels, height + 2 * PAD, width + 2 * PAD)
    padded[:, :, PAD : PAD + height, PAD : PAD + width] = raw
    cropped = padded[
        index(np.arange(count), count, 1, 1, 1),
        index(np.arange(channels), 1, channels, 1, 1),
        index(crops.top[:, np.newaxis] + np.arange(height), count, 1, height, 1),
        index(crops.left[:, np.newaxis] + columns, count, 1, 1, width),
    ]
    del padded
    out = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    out.copy_(cropped)
    out.mul_(torch.from_numpy(constants.scale).to(raw.device).reshape(channels, 1, 1))
    return out.sub_(torch.from_numpy(constants.shift).to(raw.device).reshape(channels, 1, 1))


def _crop(raw: NDArray[np.uint8], crops: Crops) -> NDArray[np.uint8]:
    count, channels, height, width = raw.shape
    padded = np.zeros((count, channels, height + 2 * PAD, width + 2 * PAD), np.uint8)
    padded[:, :, PAD : PAD + height, PAD : PAD + width] = raw
    out = np.empty_like(raw)
    for image, source, top, left, flip in zip(out, padded, crops.top, crops.left, crops.flip, strict=True):
        window = source[:, top : top + height, left : left + width]
        image[:] = window[:, :, ::-1] if flip else window
    return out
