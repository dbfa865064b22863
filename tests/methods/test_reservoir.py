"""The replay buffer: what it holds, what it hands out, and that every sample has the same chance."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clmem.methods.parts.reservoir import Reservoir
from tests.methods.toys import make_context


def numbered(first: int, count: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Return `count` samples whose pixels (modulo 256), labels and logits say which number in the stream they have."""
    numbers = np.arange(first, first + count)
    raw = np.broadcast_to((numbers % 256).astype(np.uint8)[:, None, None, None], (count, 1, 2, 2)).copy()
    labels = torch.tensor(numbers)
    return raw, labels, torch.stack([labels, -labels], 1).float()


def make_reservoir(slots: int, rng: Any = 0) -> Reservoir:
    generator = np.random.default_rng(rng) if isinstance(rng, int) else rng
    context = make_context(nn.Identity(), image_shape=(1, 2, 2), rng=generator)
    return Reservoir(context, slots, num_logits=2)


def chi_square_limit(cells: int) -> float:
    """Return a value that chi square with `cells - 1` degrees of freedom exceeds about once in a hundred thousand."""
    k = cells - 1
    return float(k * (1 - 2 / (9 * k) + 4.3 * (2 / (9 * k)) ** 0.5) ** 3)  # Wilson-Hilferty


@settings(max_examples=60, deadline=None)
@given(slots=st.integers(1, 12), sizes=st.lists(st.integers(1, 9), max_size=8), seed=st.integers(0, 1000))
def test_a_reservoir_fills_in_order_never_overflows_and_keeps_samples_whole(
    slots: int, sizes: list[int], seed: int
) -> None:
    reservoir = make_reservoir(slots, seed)
    for size in sizes:
        reservoir.add(*numbered(reservoir.seen, size))
        filled = len(reservoir)
        assert filled == min(reservoir.seen, slots) <= slots
        labels = reservoir.labels[:filled]
        if reservoir.seen <= slots:
            assert labels.tolist() == list(range(reservoir.seen))
        assert len(set(labels.tolist())) == filled
        assert int(labels.max()) < reservoir.seen
        assert torch.equal(reservoir.images[:filled, 0, 0, 0], (labels % 256).to(torch.uint8))
        assert torch.equal(reservoir.logits[:filled], torch.stack([labels, -labels], 1).float())


def test_all_slots_are_allocated_at_the_first_sample_and_stay() -> None:
    reservoir = make_reservoir(10)
    assert list(reservoir.tensors()) == []
    reservoir.add(*numbered(0, 1))
    before = [(t.data_ptr(), t.untyped_storage().nbytes()) for t in reservoir.tensors()]
    assert [nbytes for _, nbytes in before] == [10 * 4, 10 * 8, 10 * 2 * 4]
    reservoir.add(*numbered(1, 50))
    assert [(t.data_ptr(), t.untyped_storage().nbytes()) for t in reservoir.tensors()] == before


class Scripted:
    """Stands for a generator whose next draws are known."""

    def __init__(self, *draws: list[int]) -> None:
        self.draws = list(draws)
        self.highs: list[list[int]] = []

    def integers(self, low: int, highs: np.ndarray) -> np.ndarray:
        self.highs.append(list(highs))
        return np.array(self.draws.pop(0))


def test_the_last_of_several_writes_to_one_slot_wins() -> None:
    rng = Scripted([2, 0, 2, 7, 0])
    reservoir = make_reservoir(3, cast(np.random.Generator, rng))
    reservoir.add(*numbered(0, 8))
    assert rng.highs == [[4, 5, 6, 7, 8]], "sample n draws from {0 ... n}"
    assert reservoir.labels.tolist() == [7, 1, 5]


def test_a_slot_filled_and_overwritten_within_one_batch_holds_the_later_sample() -> None:
    reservoir = make_reservoir(2, cast(np.random.Generator, Scripted([1, 5])))
    reservoir.add(*numbered(0, 4))
    assert reservoir.labels.tolist() == [0, 2]


def test_every_position_of_the_stream_is_kept_equally_often() -> None:
    rng, kept, trials, positions, slots = np.random.default_rng(1), np.zeros(40), 1500, 40, 8
    for _ in range(trials):
        reservoir = make_reservoir(slots, rng)
        for first in range(0, positions, 10):
            reservoir.add(*numbered(first, 10))
        kept[reservoir.labels.numpy()] += 1
    expected = trials * slots / positions
    statistic = ((kept - expected) ** 2 / expected).sum()
    # Exactly `slots` are kept in a trial, so the cells vary less than independent ones.
    assert statistic / (1 - slots / positions) * (positions - 1) / positions < chi_square_limit(positions)


def test_every_slot_is_drawn_equally_often() -> None:
    reservoir, drawn, trials, slots, count = make_reservoir(20), np.zeros(20), 2000, 20, 5
    reservoir.add(*numbered(0, slots))
    for _ in range(trials):
        drawn[reservoir.draw(count).labels.numpy()] += 1
    expected = trials * count / slots
    statistic = ((drawn - expected) ** 2 / expected).sum()
    assert statistic / (1 - count / slots) * (slots - 1) / slots < chi_square_limit(slots)


@pytest.mark.parametrize(("seen", "asked", "given_"), [(3, 5, 3), (8, 5, 5), (30, 8, 8)])
def test_a_draw_is_without_replacement_and_takes_only_what_is_stored(seen: int, asked: int, given_: int) -> None:
    reservoir = make_reservoir(8)
    reservoir.add(*numbered(0, seen))
    for _ in range(20):
        labels = reservoir.draw(asked).labels
        assert len(labels) == len(labels.unique()) == given_
        assert set(labels.tolist()) <= set(reservoir.labels[: len(reservoir)].tolist())


def test_a_drawn_sample_keeps_its_label_and_logits_and_is_augmented_by_the_methods_generator() -> None:
    reservoir = make_reservoir(8)
    reservoir.add(*numbered(0, 8))
    given_generators = []

    def augment(raw: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        given_generators.append(rng)
        assert raw.dtype == torch.uint8
        return raw.float() + 0.5

    object.__setattr__(reservoir.context, "augment", augment)
    images, labels, logits = reservoir.draw(5)
    assert torch.equal(images[:, 0, 0, 0], labels + 0.5)
    assert images.dtype == torch.float32
    assert torch.equal(logits, torch.stack([labels, -labels], 1).float())
    assert given_generators == [reservoir.context.rng]


def test_changing_a_drawn_sample_leaves_the_buffer_alone() -> None:
    reservoir = make_reservoir(4)
    reservoir.add(*numbered(0, 4))
    object.__setattr__(reservoir.context, "augment", lambda raw, rng: raw)  # even if augmentation copied nothing
    before = [tensor.clone() for tensor in reservoir.tensors()]
    for tensor in reservoir.draw(4):
        tensor.fill_(9)
    assert all(torch.equal(a, b) for a, b in zip(before, reservoir.tensors(), strict=True))


def test_a_reservoir_without_slots_holds_nothing() -> None:
    reservoir = make_reservoir(0)
    reservoir.add(*numbered(0, 4))
    assert len(reservoir) == 0
    assert list(reservoir.tensors()) == []
