"""The controls: tails of the network trained by plain SGD, by replay, and the head alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from clmem.harness.networks.resnet18 import ResNet18
from clmem.methods.base import Trunk
from clmem.methods.head_only import HeadOnly
from tests.methods.toys import (
    TwoLayers,
    assert_same,
    declared,
    make_batch,
    make_method,
    make_task,
    normalise,
    run_task,
    slice_loss,
    step_by_hand,
    tail,
    two_layers,
)

TAILS = ["tail-sgd", "tail-er", "head-only"]


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_tail_er_steps_with_the_tail_on_one_forward_of_batch_and_replayed_samples(head: str) -> None:
    network, first, second = two_layers(), make_batch(0), make_batch(1, 1)
    expected = copy.deepcopy(network)
    _, runner = make_method("tail-er", network, {"lr": 0.1, "head": head, "trunk": "frozen"})
    losses = [float(runner.learn(batch)) for batch in (first, second)]

    def alone(net: TwoLayers) -> Tensor:
        logits = tail(net, first.images)[1]
        return F.cross_entropy(logits, first.labels) if head == "class_il" else slice_loss(logits, first)

    def together(net: TwoLayers) -> Tensor:  # four slots, four drawn: the draw is all of the first batch
        logits = tail(net, torch.cat([second.images, normalise(torch.tensor(first.raw))]))[1]
        if head == "class_il":
            return F.cross_entropy(logits, torch.cat([second.labels, first.labels]))
        return (slice_loss(logits[:4], second) + F.cross_entropy(logits[4:], first.labels)) / 2

    by_hand = [step_by_hand(expected, 0.1, alone), step_by_hand(expected, 0.1, together)]
    assert losses == pytest.approx(by_hand, abs=1e-6)
    assert_same(network, expected)


def test_head_only_steps_with_the_linear_layer_on_features_in_eval_mode() -> None:
    network, batch = two_layers(), make_batch()
    expected = copy.deepcopy(network)
    _, runner = make_method("head-only", network, {"lr": 0.1, "trunk": "frozen"})
    losses = [float(runner.learn(batch)) for _ in range(2)]

    def by_hand(net: TwoLayers) -> Tensor:
        net.eval()
        with torch.no_grad():
            features = net.run(batch.images, stop="fc")
        return slice_loss(F.linear(features.mean((2, 3)), net.fc.weight, net.fc.bias), batch)

    assert losses == pytest.approx([step_by_hand(expected, 0.1, by_hand) for _ in range(2)], abs=1e-6)
    assert_same(network, expected)


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize(("trunk", "frozen_from"), [("frozen", 0), ("first_task", 1)])
def test_only_the_tail_moves_once_the_trunk_is_frozen(name: str, trunk: str, frozen_from: int) -> None:
    network = two_layers()
    method, runner = make_method(name, network, {"trunk": trunk, "lr": 0.1})
    before_the_boundary = ("conv1", "bn1", "layer4") if name == "head-only" else ("conv1", "bn1")
    for index in range(3):
        before = copy.deepcopy(network.state_dict())
        run_task(method, runner, index)
        for key, value in network.state_dict().items():
            still = key.startswith(before_the_boundary) and index >= frozen_from
            assert torch.equal(value, before[key]) == still, (index, key)


@pytest.mark.parametrize("name", TAILS)
def test_loaded_weights_are_frozen_from_the_start(name: str) -> None:
    boundary = "fc" if name == "head-only" else "layer4"
    assert make_method(name, two_layers(), pretrained=True)[0].trunk == Trunk(boundary)
    assert make_method(name, two_layers())[0].trunk is None


@pytest.mark.parametrize("boundary", ["fc", "layer4", "layer3.1"])
@pytest.mark.parametrize("name", ["tail-sgd", "tail-er"])
def test_a_tail_starts_at_any_boundary(name: str, boundary: str) -> None:
    config = {"boundary": boundary, "trunk": "frozen"}
    torch.manual_seed(0)  # of one channel each, some networks have ReLUs that let nothing through
    method, runner = make_method(name, ResNet18(6, width=1), config, image_shape=(3, 16, 16))
    before = copy.deepcopy(method.network.state_dict())
    runner.learn(make_task(0, size=4, side=16).batch(0, 0))
    trunk = {id(p) for module in method.network.stage_modules(boundary) for p in module.parameters()}
    for key, parameter in method.network.named_parameters():
        assert torch.equal(parameter, before[key]) == (id(parameter) in trunk), key


def test_head_only_has_no_other_boundary() -> None:
    with pytest.raises(ValidationError, match="boundary"):
        HeadOnly.Config.model_validate({"boundary": "layer4"})


def test_tail_er_is_er_while_nothing_is_frozen() -> None:
    networks = two_layers(), two_layers()
    for name, network in zip(("er", "tail-er"), networks, strict=True):
        method, runner = make_method(name, network, {"lr": 0.1})
        run_task(method, runner, 0)
        assert declared(method) == {"replay": 4 * (3 * 8 * 8 + 8)}
    assert_same(networks[0], networks[1])
