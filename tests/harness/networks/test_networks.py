"""ResNet-18: the published parameter counts, and splitting that changes nothing."""

from __future__ import annotations

import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.networks.registry import architecture, build_network


@pytest.mark.parametrize(("classes", "parameters"), [(10, 11_173_962), (200, 11_271_432)])
def test_parameter_counts_are_the_published_ones(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = build_network("resnet18", num_classes=classes, width=64, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("boundary", ["layer1", "layer3.0", "layer3.1", "layer4", "layer4.1", "fc"])
def test_trunk_then_tail_equals_the_whole(boundary: str) -> None:
    network = build_network("resnet18", num_classes=10, width=4, seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        network.run(network.run(images, stop=boundary), start=boundary), network(images), rtol=0, atol=0
    )


def test_the_modules_before_a_boundary_are_all_of_the_trunk() -> None:
    network = build_network("resnet18", num_classes=10, width=4, seed=0)
    trunk = {id(p) for module in network.stage_modules("layer4") for p in module.parameters()}
    tail = {id(p) for name, p in network.named_parameters() if name.startswith(("layer4", "fc"))}
    assert trunk | tail == {id(p) for p in network.parameters()}
    assert not trunk & tail


def test_layers_are_named_once_each() -> None:
    assert architecture("resnet18").stages.layers == ["stem", "layer1", "layer2", "layer3", "layer4", "fc"]


def test_an_unknown_boundary_is_refused_with_the_nearest() -> None:
    network = build_network("resnet18", num_classes=10, width=1, seed=0)
    with pytest.raises(UsageError, match=r"no boundary 'layer9'.*layer"):
        network.stage_index("layer9")


def test_an_unknown_network_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no network 'resnet81'.*resnet18"):
        build_network("resnet81", num_classes=10, width=1, seed=0)


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_network("resnet18", num_classes=10, width=2, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    same = build_network("resnet18", num_classes=10, width=2, seed=3)
    other = build_network("resnet18", num_classes=10, width=2, seed=4)
    assert torch.equal(first.conv1.weight, same.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
