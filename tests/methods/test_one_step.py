"""One step of each method, next to the same step written out by hand on a two-layer network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clmem.methods.base import Batch
from tests.methods.toys import (
    TwoLayers,
    assert_same,
    make_batch,
    make_method,
    make_task,
    normalise,
    slice_loss,
    step_by_hand,
    tail,
    two_layers,
)

BETA_LIGHTCL = 0.3  # large enough to be seen in 1e-6


@pytest.mark.parametrize("name", ["sgd", "joint"])
@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_plain_methods_step_on_the_cross_entropy_of_the_batch(name: str, head: str) -> None:
    network, batch = two_layers(), make_batch(task=1)
    expected = copy.deepcopy(network)
    _, runner = make_method(name, network, {"lr": 0.1, "head": head})
    loss = runner.learn(batch)

    def by_hand(net: TwoLayers) -> Tensor:
        logits = net(batch.images)
        return F.cross_entropy(logits, batch.labels) if head == "class_il" else slice_loss(logits, batch)

    assert float(loss) == pytest.approx(step_by_hand(expected, 0.1, by_hand), abs=1e-6)
    assert_same(network, expected)


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_er_steps_on_one_forward_of_batch_and_replayed_samples(head: str) -> None:
    network, first, second = two_layers(), make_batch(0), make_batch(1, 1)
    expected = copy.deepcopy(network)
    _, runner = make_method("er", network, {"lr": 0.1, "head": head})
    losses = [float(runner.learn(batch)) for batch in (first, second)]

    def alone(net: TwoLayers) -> Tensor:
        return (
            F.cross_entropy(net(first.images), first.labels)
            if head == "class_il"
            else slice_loss(net(first.images), first)
        )

    def together(net: TwoLayers) -> Tensor:  # four slots, four drawn: the draw is all of the first batch
        logits = net(torch.cat([second.images, normalise(torch.tensor(first.raw))]))
        if head == "class_il":
            return F.cross_entropy(logits, torch.cat([second.labels, first.labels]))
        return (slice_loss(logits[:4], second) + F.cross_entropy(logits[4:], first.labels)) / 2

    by_hand = [step_by_hand(expected, 0.1, alone), step_by_hand(expected, 0.1, together)]
    assert losses == pytest.approx(by_hand, abs=1e-6)
    assert_same(network, expected)


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_derpp_steps_on_three_forwards_and_the_logits_of_the_step_that_stored_them(head: str) -> None:
    network, first, second = two_layers(), make_batch(0), make_batch(1, 1)
    expected = copy.deepcopy(network)
    _, runner = make_method("derpp", network, {"lr": 0.1, "alpha": 0.7, "beta": 0.4, "head": head})
    losses = [float(runner.learn(batch)) for batch in (first, second)]
    stored: list[Tensor] = []

    def learnt(logits: Tensor, batch: Batch) -> Tensor:  # what is replayed is learnt over all classes
        return F.cross_entropy(logits, batch.labels) if head == "class_il" else slice_loss(logits, batch)

    def alone(net: TwoLayers) -> Tensor:
        stored.append(net(first.images))
        return learnt(stored[0], first)

    def three_terms(net: TwoLayers) -> Tensor:
        replayed = normalise(torch.tensor(first.raw))
        loss = learnt(net(second.images), second)  # first, as its batch norms' statistics are the first
        loss = loss + 0.7 * ((net(replayed) - stored[0].detach()) ** 2).mean()
        return loss + 0.4 * F.cross_entropy(net(replayed), first.labels)

    by_hand = [step_by_hand(expected, 0.1, alone), step_by_hand(expected, 0.1, three_terms)]
    assert losses == pytest.approx(by_hand, abs=1e-6)
    assert_same(network, expected)


def test_derpp_draws_its_two_replay_batches_independently() -> None:
    method, runner = make_method("derpp", two_layers(), buffer_size=16, replay_size=3)
    for step in range(4):
        runner.learn(make_batch(0, step))
    pairs = [next(iter(method.terms(make_batch(1)))) for _ in range(5)]
    assert any(not torch.equal(terms[1].images, terms[2].images) for terms in pairs)


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_tail_sgd_steps_with_the_tail_alone(head: str) -> None:
    network, batch = two_layers(), make_batch(task=1)
    expected = copy.deepcopy(network)
    _, runner = make_method("tail-sgd", network, {"lr": 0.1, "trunk": "frozen", "head": head})
    loss = runner.learn(batch)

    def by_hand(net: TwoLayers) -> Tensor:
        logits = tail(net, batch.images)[1]
        return F.cross_entropy(logits, batch.labels) if head == "class_il" else slice_loss(logits, batch)

    assert float(loss) == pytest.approx(step_by_hand(expected, 0.1, by_hand), abs=1e-6)
    assert_same(network, expected)


@pytest.mark.parametrize("keep_ratio", [0.3, 1.0])
def test_lightcl_steps_on_the_slice_and_the_summed_drift_of_masked_features_and_all_logits(keep_ratio: float) -> None:
    network, task = two_layers(), make_task(1)
    config = {"lr": 0.1, "trunk": "frozen", "beta": BETA_LIGHTCL, "keep_ratio": keep_ratio, "memory_size": 3}
    method, runner = make_method("lightcl", network, config)
    method.before_task(make_task(0))
    runner.learn(make_batch(0))
    method.after_task(make_task(0))
    expected = copy.deepcopy(network)

    mask = torch.ones(6, dtype=torch.bool)
    if keep_ratio < 1:  # int(6 * .3 + .5) = 2 channels, and the one at the threshold
        features = tail(copy.deepcopy(expected).eval(), make_batch(0).images)[0]
        mask = torch.zeros(6, dtype=torch.bool)
        mask[features.abs().sum((0, 2, 3)).argsort(descending=True)[:3]] = True
    memory = task.batch(0, 0).images[:3]
    anchor_features, anchor_logits = (t.detach() for t in tail(copy.deepcopy(expected).train(), memory))

    method.before_task(task)
    losses = [float(runner.learn(task.batch(0, step))) for step in range(2)]

    def by_hand(batch: Batch) -> Callable[[TwoLayers], Tensor]:
        def loss(net: TwoLayers) -> Tensor:
            features, logits = tail(net, memory)
            learnt = slice_loss(tail(net, batch.images)[1], batch)
            drift = ((features - anchor_features) ** 2)[:, mask].sum() + ((logits - anchor_logits) ** 2).sum()
            return learnt + BETA_LIGHTCL * drift

        return loss

    assert losses == pytest.approx(
        [step_by_hand(expected, 0.1, by_hand(task.batch(0, step))) for step in range(2)], abs=1e-6
    )
    assert_same(network, expected)


def test_lightcl_learns_task_0_on_the_slice_alone() -> None:
    network, batch = two_layers(), make_batch()
    expected = copy.deepcopy(network)
    method, runner = make_method("lightcl", network, {"lr": 0.1})
    method.before_task(make_task(0))
    loss = runner.learn(batch)
    assert float(loss) == pytest.approx(step_by_hand(expected, 0.1, lambda net: slice_loss(net(batch.images), batch)))
    assert_same(network, expected)
