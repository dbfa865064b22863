"""Gradients of other samples, taken while a step's own are there: neither knows of the other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.specs.techniques import techniques
from clmem.methods.base import Batch, Method, Outputs, Step, Term
from tests.methods.toys import TwoLayers, assert_same, make_batch, make_context, step_by_hand, two_layers

OTHER = make_batch(task=1)


def all_classes(outputs: Outputs, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels)


def term(batch: Batch) -> Term:
    return Term(batch.images, all_classes, (batch.labels,))


class Looking(Method):
    """SGD that looks, while its gradients are there, at those of another batch."""

    name = "looking"

    def terms(self, batch: Batch) -> Iterable[Step]:
        return [[term(batch)]]

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        own = parameter.grad
        assert own is not None
        before = own.clone()
        self.found = self.context.runner.gradients(term(OTHER), bn="train")
        assert parameter.grad is own
        torch.testing.assert_close(own, before, rtol=0, atol=0)


def looking(technique: str) -> tuple[Looking, StepRunner]:
    prepared = PreparedNetwork(Unwatched(), techniques(technique, {}))
    method = Looking(make_context(two_layers(), runner=prepared), Looking.Config())
    prepared.attach(method)
    return method, StepRunner(prepared)


def other_loss(network: TwoLayers, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(network(batch.images), batch.labels)


def test_a_step_goes_on_with_its_own_gradients() -> None:
    method, runner = looking("plain")
    expected = two_layers()
    batch = make_batch()
    runner.learn(batch)
    step_by_hand(expected, method.config.lr, partial(other_loss, batch=batch))
    assert_same(cast(TwoLayers, method.network), expected)


def test_where_parameters_move_one_by_one_they_are_refused() -> None:
    _, runner = looking("optimizer_in_backward")
    with pytest.raises(ClmemError, match=r"takes gradients while optimizer_in_backward .* needs_whole_gradients"):
        runner.learn(make_batch())


def test_gradients_of_others_are_not_added_to_the_step_s() -> None:
    method, runner = looking("plain")
    runner.learn(make_batch())
    network = two_layers().train()
    loss = other_loss(network, OTHER)
    right = dict(
        zip(dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters())), strict=True)
    )
    for name, gradient in method.found.items():
        torch.testing.assert_close(gradient, right[name])
    assert method.found.keys() == right.keys()
