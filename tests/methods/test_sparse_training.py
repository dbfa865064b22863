"""SparCL's masks: how many weights are open when, which ones, and which gradients pass."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clmem.methods.base import Network
from clmem.methods.parts.sparse_training import (
    SparseConfig,
    SparseTraining,
    bounds,
    open_by_chance,
    open_count,
    update_at,
)
from tests.methods.toys import make_context


@settings(max_examples=100, deadline=None)
@given(total=st.integers(1, 3000))
@example(total=1)
@example(total=2)
@example(total=10)
@example(total=157)
def test_updates_are_in_order_begin_at_once_and_end_with_the_last(total: int) -> None:
    at = {step: update_at(step, total) for step in range(total)}
    updates = {step: update for step, update in at.items() if update is not None}
    numbers = list(updates.values())
    assert numbers == sorted(set(numbers)), "each at most once, in order"
    assert len(numbers) == min(10, total)
    assert 0 in updates
    assert numbers[-1] == 9
    assert all(step == update * total // 10 for step, update in updates.items())
    assert update_at(total, total) is None


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, {0: 9}),
        (2, {0: 4, 1: 9}),
        (10, {k: k for k in range(10)}),
        (157, dict(zip((0, 15, 31, 47, 62, 78, 94, 109, 125, 141), range(10), strict=True))),
        (50 * 313, {5 * 313 * k: k for k in range(10)}),
    ],
)
def test_updates_fall_on_the_tenths_of_a_task(total: int, expected: dict[int, int]) -> None:
    assert {step: k for step in range(total) if (k := update_at(step, total)) is not None} == expected


def test_bounds_are_those_of_the_released_schedule_at_75_percent() -> None:
    found = [tuple(round(value, 10) for value in bounds(k, 0.75, 0.01)) for k in range(10)]
    assert found == [(0.75, 0.74), *[(0.76, 0.75)] * 8, (0.75, 0.75)]


@settings(max_examples=100, deadline=None)
@given(sparsity=st.floats(0.001, 0.999), margin=st.floats(0, 0.2), elements=st.integers(1, 5000))
def test_a_task_never_asks_for_more_open_weights_than_there_are_and_ends_at_its_sparsity(
    sparsity: float, margin: float, elements: int
) -> None:
    now = open_count(elements, sparsity)
    for total in (1, 2, 3, 10, 17):
        for step in range(total):
            update = update_at(step, total)
            if update is not None:
                lower, upper = (open_count(elements, value) for value in bounds(update, sparsity, margin))
                assert 0 <= lower <= now <= elements, "there is something to close, or nothing to do"
                assert lower <= upper <= elements
                now = upper
        assert now == open_count(elements, sparsity)


class OneLayer(Network):
    """One masked convolution as large as those of layer1 (36,864 weights), and no stem."""

    boundaries = ("stem", "layer1")  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer1 = nn.Conv2d(64, 64, 3, bias=False)

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        return []


NAME = "layer1.weight"


def one_layer(seed: int = 0, **config: object) -> tuple[SparseTraining, nn.Parameter]:
    network = OneLayer()
    context = make_context(cast(Any, network), rng=np.random.default_rng(seed))
    return SparseTraining(context, SparseConfig.model_validate(config)), network.layer1.weight


def with_gradient(weight: nn.Parameter, seed: int) -> Tensor:
    """Give the weight a gradient of noise; return a copy of it, flat."""
    weight.grad = torch.tensor(np.random.default_rng(seed).standard_normal(weight.shape).astype(np.float32))
    return weight.grad.flatten().clone()


def test_every_update_closes_to_the_lower_bound_and_opens_to_the_upper_one() -> None:
    sparse, weight = one_layer(sparsity=0.75)
    assert int(sparse.weights[NAME].read().sum()) == 9216
    for k in range(10):
        before = sparse.weights[NAME].read()
        values = torch.tensor(np.random.default_rng(k).uniform(0.5, 1, len(before)).astype(np.float32)) * before
        weight.data.copy_(values.view_as(weight))  # no open weight is 0, so that survivors can be counted
        gradient = with_gradient(weight, 100 + k)
        sparse.begin_step(k, 10)
        sparse.adjust_gradient(NAME, weight)
        after, kept = sparse.weights[NAME].read(), weight.detach().flatten() != 0
        closed_to, opened_to = [(9216, 9585), *[(8847, 9216)] * 8, (9216, 9216)][k]  # .75/.74, .76/.75, .75/.75
        assert (int(kept.sum()), int(after.sum())) == (closed_to, opened_to)
        importance = values + 0.5 * gradient.abs()
        assert not (kept & ~before).any()
        assert torch.equal(weight.detach().flatten()[kept], values[kept])
        if bool((before & ~kept).any()):
            assert importance[kept].min() > importance[before & ~kept].max()
        assert torch.equal(after & kept, kept), "what is opened is added, with value 0"


def test_what_opens_is_chosen_evenly_among_the_closed() -> None:
    rng, counts, trials = np.random.default_rng(0), torch.zeros(60), 3000
    start = torch.zeros(60, dtype=torch.bool)
    start[::3] = True
    for _ in range(trials):
        open_ = start.clone()
        open_by_chance(open_, 5, rng)
        assert int(open_.sum()) == 25
        counts += open_ & ~start
    assert torch.equal(counts > 0, ~start)
    expected = trials * 5 / 40
    statistic = float(((counts[~start] - expected) ** 2 / expected).sum()) / (1 - 5 / 40) * 39 / 40
    assert statistic < 86  # chi square, 39 degrees of freedom: one in 50,000


def test_opening_nothing_is_possible_when_nothing_is_closed() -> None:
    open_ = torch.ones(5, dtype=torch.bool)
    open_by_chance(open_, 0, np.random.default_rng(0))
    assert bool(open_.all())


def test_what_opens_is_drawn_from_the_methods_generator_anew_at_every_update() -> None:
    found = []
    for seed in (0, 0, 1):
        sparse, weight = one_layer(seed, sparsity=0.75)
        opened = []
        for k in (1, 2):
            before = sparse.weights[NAME].read()
            with_gradient(weight, k)
            sparse.begin_step(k, 10)
            sparse.adjust_gradient(NAME, weight)
            opened.append(sparse.weights[NAME].read() & ~before)
        assert int((opened[0] & opened[1]).sum()) < 20, "of 369 each"
        found.append(opened[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("sparsity", "kept"), [(0.75, 7373), (0.9, 3686)], ids=["the largest fifth of the layer", "all that is open"]
)
def test_a_gradient_mask_keeps_a_fifth_of_the_layer_or_all_that_is_open(sparsity: float, kept: int) -> None:
    sparse, weight = one_layer(sparsity=sparsity, margin=0.0)
    open_, gradient = sparse.weights[NAME].read(), with_gradient(weight, 0)
    sparse.begin_step(0, 100)
    sparse.adjust_gradient(NAME, weight)
    passed = weight.grad.flatten() != 0  # type: ignore[union-attr]
    assert int(passed.sum()) == int(sparse.gradients[NAME].read().sum()) == kept
    assert torch.equal(weight.grad.flatten()[passed], gradient[passed])  # type: ignore[union-attr]
    assert not (passed & ~open_).any()
    if bool((open_ & ~passed).any()):
        assert gradient[passed].abs().min() > gradient[open_ & ~passed].abs().max()


def test_a_gradient_mask_is_renewed_every_30_batches_and_with_every_weight_mask() -> None:
    sparse, weight = one_layer(sparsity=0.75, margin=0.0)  # without a margin weight masks never move
    renewed, mask = [], torch.zeros(0)
    for step in range(91):
        gradient = with_gradient(weight, step)
        sparse.begin_step(step, 91)
        sparse.adjust_gradient(NAME, weight)
        now = sparse.gradients[NAME].read()
        if not torch.equal(now, mask):
            renewed.append(step)
        mask = now
        assert torch.equal(weight.grad.flatten(), gradient * mask)  # type: ignore[union-attr]
    assert renewed == sorted({0, 30, 60, 90, *(k * 91 // 10 for k in range(10))})


def test_a_weight_that_opens_gets_its_gradient_at_once_and_one_that_closes_gets_none() -> None:
    sparse, weight = one_layer(sparsity=0.9)
    for step in range(31):
        before = sparse.weights[NAME].read()
        with_gradient(weight, step)
        sparse.begin_step(step, 31)
        sparse.adjust_gradient(NAME, weight)
        now = sparse.weights[NAME].read()
        passed = weight.grad.flatten() != 0  # type: ignore[union-attr]
        assert torch.equal(passed, now), "at 90 % the fifth of a layer that may move is more than is open"
        moved = bool((now & ~before).any()) and bool((before & ~now).any())
        assert moved == (0 < step < 27 and step in {k * 31 // 10 for k in range(10)})
