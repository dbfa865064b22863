"""Crop, mirror and normalise: against the definition, against the stream's own batches, and on the allocator's log."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from clmem.harness.streams import open_stream
from clmem.harness.streams.augment import Crops, augment_on_device, draw_crops, normalisation, to_tensor
from clmem.harness.streams.catalog import PAD, lookup

CIFAR = lookup("split-cifar10")
CONSTANTS = normalisation(CIFAR.mean, CIFAR.std)
FASHION = lookup("split-fashion-mini")


def reference(raw: np.ndarray, crops: Crops) -> np.ndarray:
    """One sample, one channel, one pixel after the other, in float64."""
    height, width = raw.shape[2:]
    out = np.empty(raw.shape)
    for i, c, y, x in np.ndindex(*raw.shape):
        source_x = width - 1 - x if crops.flip[i] else x
        row, column = crops.top[i] + y - PAD, crops.left[i] + source_x - PAD
        inside = 0 <= row < height and 0 <= column < width
        pixel = raw[i, c, row, column] / 255 if inside else 0.0
        out[i, c, y, x] = (pixel - CIFAR.mean[c] / 1e4) / (CIFAR.std[c] / 1e4)
    return out


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_crop_mirror_and_normalise_follow_the_definition() -> None:
    raw = noise(12, 3, 8, 10)
    crops = draw_crops(12, True, np.random.Philox(0))
    assert crops.flip.any()
    assert not crops.flip.all()
    np.testing.assert_allclose(to_tensor(raw, CONSTANTS, crops).numpy(), reference(raw, crops), atol=1e-6)


def test_without_crops_only_the_values_change() -> None:
    raw = noise(2, 3, 8, 8)
    still = Crops(np.full(2, PAD), np.full(2, PAD), np.zeros(2, bool))
    assert torch.equal(to_tensor(raw, CONSTANTS, None), to_tensor(raw, CONSTANTS, still))
    np.testing.assert_allclose(to_tensor(raw, CONSTANTS, None).numpy(), reference(raw, still), atol=1e-6)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ],
)
def test_the_device_path_gives_the_same_bits(device: str) -> None:
    raw = noise(9, 3, 16, 12)
    crops = draw_crops(9, True, np.random.Philox(3))
    there = augment_on_device(torch.from_numpy(raw).to(device), CONSTANTS, crops)
    assert torch.equal(there.cpu(), to_tensor(raw, CONSTANTS, crops))


def test_all_offsets_and_both_orientations_are_drawn_evenly() -> None:
    crops = draw_crops(9000, True, np.random.Philox(1))
    for offsets in (crops.top, crops.left):
        assert np.bincount(offsets, minlength=9).min() > 850
        assert offsets.max() == 2 * PAD
    assert 4300 < crops.flip.sum() < 4700
    assert abs(np.corrcoef(crops.top, crops.left)[0, 1]) < 0.05


def candidates(sample: np.ndarray, name: str) -> dict[tuple[int, int, bool], torch.Tensor]:
    info = lookup(name)
    keys = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    crops = Crops(*(np.array(column) for column in zip(*keys, strict=True)))
    images = to_tensor(np.repeat(sample[np.newaxis], len(keys), 0), normalisation(info.mean, info.std), crops)
    return dict(zip(keys, images, strict=True))


@pytest.mark.parametrize("name", ["split-fashion-mini", "synthetic-cifar10"])
def test_a_batch_holds_crops_of_its_raw_samples_and_only_colour_is_mirrored(name: str) -> None:
    batch = open_stream(name, seed=0, batch_size=16, epochs=1).train_task(0).batch(0, 0)
    mirrored = []
    for image, sample in zip(batch.images, batch.raw, strict=True):
        found = [key for key, expected in candidates(sample, name).items() if torch.equal(image, expected)]
        assert found
        mirrored.append(all(flip for _, _, flip in found))
    assert any(mirrored) == (name != "split-fashion-mini")


def test_replay_is_augmented_like_the_stream_and_draws_from_the_given_generator_only() -> None:
    stream = open_stream("synthetic-cifar10", seed=0, batch_size=8, epochs=1)
    batch = stream.train_task(0).batch(0, 0)
    raw = torch.from_numpy(batch.raw)
    once = stream.augment(raw, np.random.default_rng(5))
    assert torch.equal(once, stream.augment(raw, np.random.default_rng(5)))
    rng = np.random.default_rng(5)
    assert not torch.equal(stream.augment(raw, rng), stream.augment(raw, rng))
    for image, sample in zip(once, batch.raw, strict=True):
        assert any(torch.equal(image, expected) for expected in candidates(sample, stream.name).values())
    assert torch.equal(stream.train_task(0).batch(0, 0).images, batch.images)


def test_replayed_fashion_is_never_mirrored() -> None:
    stream = open_stream("split-fashion-mini", seed=0, batch_size=8, epochs=1)
    batch = stream.train_task(0).batch(0, 0)
    for image, sample in zip(
        stream.augment(torch.from_numpy(batch.raw), np.random.default_rng(0)), batch.raw, strict=True
    ):
        found = [key for key, expected in candidates(sample, stream.name).items() if torch.equal(image, expected)]
        assert any(not flip for _, _, flip in found)


def test_grey_images_are_padded_and_repeated() -> None:
    stream = open_stream("split-fashion-mini", seed=0, batch_size=8, epochs=1)
    raw = stream.train_task(0).batch(0, 0).raw
    assert raw.shape == (8, 3, 32, 32)
    assert raw.dtype == np.uint8
    assert (raw[:, 0] == raw[:, 1]).all()
    assert (raw[:, 0] == raw[:, 2]).all()
    border = raw.copy()
    border[:, :, 2:30, 2:30] = 0
    assert not border.any()
    assert raw.any()


def test_constants_are_those_of_the_data() -> None:
    stream = open_stream("split-fashion-mini", seed=0, batch_size=1000, epochs=1)
    raw = np.concatenate([stream.train_task(t).batch(0, 0).raw for t in range(5)])[:, 0, 2:30, 2:30] / 255
    assert abs(raw.mean() - FASHION.mean[0] / 1e4) < 0.003
    assert abs(raw.std() - FASHION.std[0] / 1e4) < 0.003


def test_test_images_are_not_augmented() -> None:
    stream = open_stream("split-fashion-mini", seed=0, batch_size=100, epochs=1)
    images = torch.cat([x for x, _ in stream.test_batches(0)])
    black = (0 - 0.2860) / 0.3530
    assert torch.allclose(images[:, :, :2], torch.tensor(black))
    assert torch.allclose(images[..., 30:], torch.tensor(black))
    assert torch.equal(images, torch.cat([x for x, _ in stream.test_batches(0)]))


@pytest.mark.parametrize("source", ["train", "test", "augment"])
def test_torch_allocates_the_images_and_labels_and_nothing_else(source: str) -> None:
    stream = open_stream("synthetic-cifar10", seed=0, batch_size=32, epochs=1)
    task, raw, rng = stream.train_task(0), torch.zeros(15, 3, 32, 32, dtype=torch.uint8), np.random.default_rng(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        if source == "train":
            kept = task.batch(0, 0)
        elif source == "test":
            kept = next(stream.test_batches(0))
        else:
            kept = stream.augment(raw, rng)
    sizes = [event.nbytes() for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert kept is not None
    image_bytes = 3 * 32 * 32 * 4
    assert sizes == ([15 * image_bytes] if source == "augment" else [32 * image_bytes, 32 * 8])


def test_the_list_of_streams_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, clmem.harness.streams as s; assert s.STREAMS; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_a_stream_imports_neither_torchvision_nor_pillow() -> None:
    code = (
        "import sys; from clmem.harness.streams import open_stream;"
        "s = open_stream('split-fashion-mini', seed=0, batch_size=4, epochs=1); s.train_task(0).batch(0, 0);"
        "assert not {'torchvision', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
