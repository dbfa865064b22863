"""Open weights alone are stored: to everything else they are ordinary parameters."""

from __future__ import annotations

from functools import partial

import torch

from clmem.methods.base import Term
from tests.harness.execution.test_exactness import double_batch, prepared
from tests.methods.toys import make_task

SPARSE = "storage=sparse,optimizer_in_backward"


def test_gradients_without_a_step_are_those_of_dense_weights() -> None:
    found = []
    for execution in ("plain", SPARSE):
        method, carried = prepared("sparcl-er", execution)
        task = make_task(0, size=8, side=16, steps=2)
        method.before_task(task)
        carried.learn(double_batch(0, 0))
        batch = double_batch(0, 1)
        loss = partial(method.cross_entropy, classes=batch.classes)
        found.append(carried.prepared.gradients(Term(batch.images, loss, (batch.labels,))))
        assert carried.learn(batch).isfinite(), "and what was stored is still there"
    plain, stored = found
    assert plain.keys() == stored.keys()
    for name, gradient in plain.items():
        assert gradient.any()
        torch.testing.assert_close(
            stored[name], gradient, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: name + text
        )


def test_a_weight_takes_four_bytes_for_each_open_element_and_its_mask_one_bit_for_each() -> None:
    method, carried = prepared("sparcl-er", SPARSE)
    masks = method.open_weights()
    values = {name: carried.prepared.open[name].values for name in masks}
    assert all(method.network.get_parameter(name).untyped_storage().nbytes() == 0 for name in masks)
    for name, mask in masks.items():
        assert len(values[name]) == int(mask.read().sum())
        assert torch.equal(method.network.state_dict()[name].view(-1)[mask.read()], values[name])
