"""Batch norms in groups and in parts refuse what torch's own refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clmem.harness.techniques.parts.batch_norm import grouped, part_batch_norms


@pytest.mark.parametrize("sizes", [[2, 1], [1, 1]])
def test_a_group_of_one_value_is_refused(sizes: list[int]) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    images = torch.randn(sum(sizes), 3, 1, 1)
    with grouped(network, sizes), pytest.raises(ValueError, match="more than 1 value per channel"):
        network(images)
    with grouped(network, sizes):
        assert network(torch.randn(sum(sizes), 3, 2, 1)).isfinite().all()


def test_one_value_is_refused_in_parts_too() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4))
    part_batch_norms(network, 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.randn(1, 4, 1, 1))
