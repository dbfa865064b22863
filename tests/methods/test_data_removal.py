"""SparCL's removal of data: how many samples stay away when, which ones, and what a batch loses by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmem.methods.parts.data_removal import DataRemoval, removals_until
from tests.methods.toys import make_context, two_layers


def removal(num_samples: int, share: float = 0.3, seed: int = 0) -> DataRemoval:
    found = DataRemoval(make_context(two_layers(), rng=np.random.default_rng(seed)), share)
    found.begin_task(num_samples)
    return found


def test_a_quarter_of_the_share_is_removed_at_each_of_four_tenths_and_all_return() -> None:
    samples = removal(1000)
    counts = []
    for step in range(100):
        samples.begin_step(step, 100)
        counts.append(int(samples.removed.sum()))
    assert counts == [0] * 10 + [75] * 10 + [150] * 10 + [225] * 10 + [300] * 60
    samples.end_task()
    samples.begin_task(500)
    assert len(samples.rows(np.arange(500))) == 500


@pytest.mark.parametrize(
    ("total", "expected"), [(1, [0]), (2, [0, 0]), (3, [0, 1, 1]), (10, [0, 1, 2, 3, 4, 4, 4, 4, 4, 4])]
)
def test_nothing_is_removed_before_anything_was_learnt(total: int, expected: list[int]) -> None:
    assert [removals_until(step, total) for step in range(total)] == expected


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 2000), num_samples=st.integers(0, 400), share=st.floats(0, 0.99))
def test_removals_only_grow_and_never_exceed_their_share(total: int, num_samples: int, share: float) -> None:
    samples, before = removal(num_samples, share), 0
    for step in sorted({0, *(tenth * total // 10 for tenth in range(10)), total - 1}):
        samples.begin_step(step, total)
        now = int(samples.removed.sum())
        assert before <= now <= round(share * num_samples)
        before = now
    assert total < 10 or before == (round(share * num_samples) if share > 0 else 0)


def test_the_least_forgotten_are_removed_first() -> None:
    samples = removal(40)
    samples.forgotten.copy_(torch.tensor([step % 4 for step in range(40)]))
    samples.correct.fill_(True)
    samples.begin_step(10, 100)  # 3 of the ten samples that were never forgotten
    assert int(samples.removed.sum()) == 3
    assert set(samples.removed.nonzero().flatten().tolist()) <= set(range(0, 40, 4))
    samples.begin_step(40, 100)  # 12: all ten of those, and two of the next ten
    assert bool(samples.removed[::4].all())
    assert int(samples.removed[1::4].sum()) == 2


def test_samples_that_were_never_learnt_are_removed_last() -> None:
    samples = removal(100)
    samples.correct[:25] = True  # learnt and kept
    samples.forgotten[25:28] = 2  # learnt and forgotten; the others were never right
    samples.begin_step(30, 100)  # 22 of the first
    assert int(samples.removed.sum()) == int(samples.removed[:25].sum()) == 22
    samples.begin_step(40, 100)  # 30: all of the first, those that were forgotten, and two of the others
    assert bool(samples.removed[:28].all())
    assert int(samples.removed[28:].sum()) == 2


def test_ties_are_broken_by_the_methods_chance() -> None:
    chosen = []
    for seed in (0, 0, 1):
        samples = removal(400, seed=seed)
        samples.begin_step(40, 100)
        chosen.append(samples.removed.clone())
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert 30 < int(chosen[0][:200].sum()) < 90, "not the first in the file"


def test_a_sample_is_forgotten_when_it_turns_from_right_to_wrong_in_its_tasks_slice() -> None:
    samples = removal(3)
    right, wrong = [9.0, 0.0, 1.0, 0.0], [9.0, 0.0, 0.0, 1.0]  # class 2 of the slice {2, 3}; class 0 is no candidate
    for answers in ([right, wrong], [wrong, wrong], [wrong, right], [right, right], [wrong, right]):
        samples.observe(np.array([2, 0]), torch.tensor(answers), torch.tensor([2, 2]), range(2, 4))
    assert samples.forgotten.tolist() == [0, 0, 2]
    assert samples.correct.tolist() == [True, False, False]


@pytest.mark.parametrize(("left", "learnt"), [(4, [0, 1, 2, 3]), (2, [0, 2]), (1, [0, 1, 2, 3]), (0, [0, 1, 2, 3])])
def test_a_batch_loses_its_removed_samples_unless_fewer_than_two_would_remain(left: int, learnt: list[int]) -> None:
    samples = removal(8)
    positions = np.array([6, 1, 3, 0])
    samples.removed[positions[[1, 3, 2, 0][: 4 - left]]] = True
    assert samples.rows(positions).tolist() == learnt
