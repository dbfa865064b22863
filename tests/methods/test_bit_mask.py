"""Masks: what is written is read, both kinds multiply alike, and each holds its bytes and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmem.methods.parts.bit_mask import MASKS, BitMask, FloatMask, MaskKind

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def pattern(shape: list[int], seed: int, share: float = 0.4) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).random(shape) < share)


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10_000))
def test_a_mask_of_any_shape_is_read_as_it_was_written(shape: list[int], seed: int) -> None:
    first, second = pattern(shape, seed).flatten(), pattern(shape, seed + 1).flatten()
    for kind in MASKS.values():
        mask = kind(first)
        assert torch.equal(mask.read(), first)
        mask.write(second)
        assert torch.equal(mask.read(), second), "nothing of the mask before is left"
        assert mask.read().dtype == torch.bool


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10_000))
def test_both_kinds_multiply_to_the_same_bits(shape: list[int], seed: int) -> None:
    open_ = pattern(shape, seed).flatten()
    values = torch.tensor(np.random.default_rng(seed).standard_normal(len(open_)).astype(np.float32))
    results = []
    for kind in MASKS.values():
        result = values.clone()
        kind(open_).multiply(result)
        results.append(result.view(torch.int32))  # so that 0 and -0 differ
    assert torch.equal(*results)
    assert torch.equal(results[0].view(torch.float32), values * open_)


@pytest.mark.parametrize(("elements", "packed"), [(1, 1), (7, 1), (8, 1), (9, 2), (216, 27), (2_359_296, 294_912)])
def test_a_bit_mask_takes_one_bit_per_element_rounded_up_to_a_byte(elements: int, packed: int) -> None:
    open_ = torch.zeros(elements, dtype=torch.bool)
    assert BitMask(open_).stored.untyped_storage().nbytes() == packed
    assert FloatMask(open_).stored.untyped_storage().nbytes() == 4 * elements


@pytest.mark.parametrize("kind", ["bit", "float32"])
def test_a_mask_keeps_its_bytes_where_they_are(kind: MaskKind) -> None:
    mask = MASKS[kind](pattern([100], 0))
    address, values = mask.stored.data_ptr(), torch.randn(100)
    mask.write(pattern([100], 1))
    mask.multiply(values)
    mask.read().fill_(True)
    assert mask.stored.data_ptr() == address
    assert torch.equal(mask.read(), pattern([100], 1)), "what is read is a copy"


def test_a_mask_multiplies_a_view_in_place() -> None:
    open_, values = pattern([40], 3), torch.randn(2, 5, 4)
    expected = values * open_.view(2, 5, 4)
    BitMask(open_).multiply(values.view(-1))
    assert torch.equal(values, expected)
