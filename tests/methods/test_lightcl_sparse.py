"""LightCL with channel sparsity: which channels fall, that they stay down, and what the masks weigh."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_config
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Batch, Method, Trunk
from clmem.methods.lightcl_sparse import LightCLSparse
from clmem.methods.parts.channels import Ranking, convolutions, kept_channels, pruned_weights, top_channels
from tests.methods.toys import (
    NUM_CLASSES,
    TwoLayers,
    assert_same,
    make_batch,
    make_method,
    make_task,
    run_task,
    slice_loss,
    step_by_hand,
    tail,
    two_layers,
)

RANKINGS: list[Ranking] = ["grouped", "per_convolution"]
PARAMETERS, CHANNELS = 11_173_962, 5 * (64 + 128 + 256 + 512)  # of ResNet-18 at width 64 with 10 classes


def resnet(width: int = 2, num_classes: int = NUM_CLASSES) -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet18(num_classes, width)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # otherwise a batch norm's shift would be zero anyway
                nn.init.uniform_(module.bias, 0.1, 0.3)
                nn.init.uniform_(cast(Tensor, module.running_mean), -0.2, 0.2)
        return network


def sparse(network: ResNet18 | TwoLayers, **config: object) -> tuple[LightCLSparse, StepRunner]:
    values = {"memory_size": 3, "lr": 0.1, **config}
    method, runner = make_method("lightcl-sparse", network, values, image_shape=(3, 16, 16))
    return cast(LightCLSparse, method), runner


def held_bytes(method: Method) -> dict[str, int]:
    """Return the bytes held by role, each storage once."""
    roles = {}
    for role, tensors in method.memory_roles().items():
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        roles[role] = sum(storages.values())
    return roles


def zeros_of(method: LightCLSparse) -> dict[str, Tensor]:
    """Return, by parameter, a bool tensor of its shape that is True where it is pruned."""
    full = {}
    for name, parameter in method.network.named_parameters():
        full[name] = torch.zeros(parameter.shape, dtype=torch.bool)
        for mask in method.pruned.get(name, ()):
            full[name] |= mask
    return full


@pytest.mark.parametrize("ranking", RANKINGS)
def test_width_64_keeps_52_103_78_and_103_channels(ranking: Ranking) -> None:
    kept = {"conv1": 52, "layer1": 52, "layer2": 103, "layer3": 78, "layer4": 103}
    masks = kept_channels(resnet(64), ranking)
    assert len(masks) == 20
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {n: kept[n.split(".")[0]] for n in masks}


@pytest.mark.parametrize("weight_masks", ["none", "bool"])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_at_width_64_90_38_percent_of_the_weights_are_zero(ranking: Ranking, weight_masks: str) -> None:
    network = resnet(64, num_classes=10)
    sparse(network, ranking=ranking, weight_masks=weight_masks)
    weights = [parameter for name, parameter in network.named_parameters() if name.endswith(".weight")]
    non_zeros, total = sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)
    assert round(1 - non_zeros / total, 4) == 0.9038
    assert round(4 * non_zeros / 2**20, 2) == 4.10


@pytest.mark.parametrize(("config", "held"), [({}, CHANNELS), (LightCLSparse.presets["released"], PARAMETERS)])
def test_the_masks_of_width_64_are_a_byte_per_channel_or_as_released_per_parameter(
    config: Mapping[str, object], held: int
) -> None:
    method, _ = sparse(resnet(64, num_classes=10), **config)
    assert held_bytes(method) == {"replay": 0, "method_state": held}
    assert round(PARAMETERS / 2**20, 1) == 10.7
    method.after_task(make_task(0, size=4, side=8))
    assert held_bytes(method) == {"replay": 0, "method_state": held + 4 * 512}


def test_channels_are_scored_by_the_signed_mean_of_their_filter() -> None:
    network = two_layers()
    with torch.no_grad():
        for channel, value in enumerate([-9.0, 0.1, 3.0, 0.2, -0.1, 0.4]):
            network.get_parameter("layer4.0.conv1.weight")[channel].fill_(value)
    kept = kept_channels(network, "per_convolution")
    assert kept["layer4.0.conv1"].tolist() == [False, False, True, False, False, True]  # int(6 * .2 + .5) + 1
    assert kept["conv1"].tolist() == [True] * 4  # int(4 * .8 + .5) + 1


def test_convolutions_that_are_added_keep_the_channels_of_the_largest_mean_score() -> None:
    network = resnet(8)
    kept = kept_channels(network, "grouped")
    groups = {
        "layer1": ["conv1", "layer1.0.conv2", "layer1.1.conv2"],
        **{layer: [f"{layer}.{c}" for c in ("0.conv2", "0.downsample.0", "1.conv2")] for layer in ("layer2", "layer4")},
    }
    for layer, members in groups.items():
        scores = sum(network.get_parameter(f"{name}.weight").detach().mean((1, 2, 3)) for name in members) / 3
        expected = top_channels(cast(Tensor, scores), 0.2 if layer == "layer4" else 0.8)
        assert all(torch.equal(kept[name], expected) for name in members)
    alone = kept_channels(network, "per_convolution")
    assert torch.equal(alone["layer3.1.conv1"], kept["layer3.1.conv1"]), "an inner convolution is added to nothing"
    assert not torch.equal(alone["layer4.0.conv2"], alone["layer4.0.downsample.0"])


def test_filter_norm_and_the_next_inputs_fall_with_a_channel_and_a_shortcuts_inputs_stay() -> None:
    network = resnet(8)
    kept = kept_channels(network, "per_convolution")
    masks = pruned_weights(network, kept)
    rows, columns = masks["layer3.0.conv1.weight"]
    assert torch.equal(rows.flatten(), ~kept["layer3.0.conv1"])
    assert torch.equal(columns.flatten(), ~kept["layer2.1.conv2"])
    assert torch.equal(masks["layer3.0.conv2.weight"][1].flatten(), ~kept["layer3.0.conv1"])
    assert torch.equal(masks["layer3.0.bn1.bias"][0], ~kept["layer3.0.conv1"])
    assert torch.equal(masks["layer3.0.downsample.1.weight"][0], ~kept["layer3.0.downsample.0"])
    assert torch.equal(masks["fc.weight"][0].flatten(), ~kept["layer4.1.conv2"])
    assert len(masks["layer3.0.downsample.0.weight"]) == len(masks["conv1.weight"]) == 1
    assert set(masks) == {name for name, _ in network.named_parameters()} - {"fc.bias"}


@pytest.mark.parametrize("mode", [True, False])
def test_grouped_channels_that_are_pruned_are_zero_after_every_relu(mode: bool) -> None:
    network = resnet(8)
    method, _ = sparse(network, ranking="grouped")
    maps: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, output, name=name: maps.__setitem__(name, output))
    network.train(mode)(make_batch(side=16).images)
    for convolution in convolutions(network):
        if "downsample" not in convolution.name:
            after = "relu" if convolution.name == "conv1" else convolution.name.replace("conv", "relu")
            pruned = method.pruned[f"{convolution.norm}.bias"][0]
            assert bool((maps[after][:, pruned] == 0).all()), after
            assert bool(pruned.any())


@pytest.mark.parametrize("trunk", ["frozen", "first_task"])
@pytest.mark.parametrize("weight_masks", ["none", "bool"])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_pruned_weights_stay_exactly_zero_and_kept_ones_learn(ranking: str, weight_masks: str, trunk: str) -> None:
    method, runner = sparse(resnet(), ranking=ranking, weight_masks=weight_masks, trunk=trunk)
    zeros, before = zeros_of(method), copy.deepcopy(method.network.state_dict())
    for index in range(3):
        run_task(method, runner, index, size=4, side=16)
    for name, parameter in method.network.named_parameters():
        assert bool((parameter[zeros[name]] == 0).all()), name
        if name.startswith(("layer3.1", "layer4", "fc")) or trunk == "first_task":
            assert not torch.equal(parameter, before[name]), name
    assert all(bool(buffer.isfinite().all()) for buffer in method.network.buffers())


@pytest.mark.parametrize(("ranking", "stay"), [("grouped", True), ("per_convolution", False)])
def test_only_separately_ranked_channels_would_come_back_without_the_gradients_mask(
    ranking: str, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LightCLSparse, "adjust_gradient", lambda self, name, parameter: None)
    method, runner = sparse(resnet(), ranking=ranking, trunk="first_task")
    zeros = zeros_of(method)
    run_task(method, runner, 0, size=4, side=16)
    assert all(bool((p[zeros[name]] == 0).all()) for name, p in method.network.named_parameters()) == stay


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_step_is_sgds_in_what_is_kept(ranking: str) -> None:
    network = resnet()
    method, runner = sparse(network, ranking=ranking, trunk="first_task")
    expected, zeros = copy.deepcopy(network), zeros_of(method)
    method.before_task(make_task(0))
    for step in range(2):
        batch = make_batch(0, step, side=16)
        loss = runner.learn(batch)
        wanted = slice_loss(expected.train()(batch.images), batch)
        gradients = torch.autograd.grad(wanted, list(expected.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(expected.named_parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient * ~zeros[name]
        assert float(loss) == pytest.approx(float(wanted.detach()), abs=1e-6)
    for (name, tensor), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_of_a_later_task_is_lightcls_in_what_is_kept() -> None:
    network, task, beta = two_layers(), make_task(1), 0.3
    scores = network.get_parameter("layer4.0.conv1.weight").detach().mean((1, 2, 3))
    method, runner = sparse(network, trunk="frozen", first_boundary="layer4", beta=beta, keep_ratio=1.0)
    fallen = scores.argsort()[:4]  # int(6 * .2 + .5) + 1 are kept

    def prune(net: TwoLayers) -> None:
        with torch.no_grad():
            for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
                net.get_parameter(f"layer4.0.{name}")[fallen] = 0
            net.fc.weight[:, fallen] = 0

    run_task(method, runner, 0)
    expected = copy.deepcopy(network)
    prune(expected)
    assert_same(network, expected)
    memory = task.batch(0, 0).images[:3]
    anchor_features, anchor_logits = (t.detach() for t in tail(copy.deepcopy(expected).train(), memory))

    def loss(net: TwoLayers, batch: Batch) -> Tensor:
        features, logits = tail(net, memory)
        learnt = slice_loss(tail(net, batch.images)[1], batch)
        drift = F.mse_loss(features, anchor_features, reduction="sum")
        return learnt + beta * (drift + F.mse_loss(logits, anchor_logits, reduction="sum"))

    method.before_task(task)
    for step in range(2):
        batch = task.batch(0, step)
        wanted = step_by_hand(expected, 0.1, lambda net, batch=batch: loss(net, batch))
        prune(expected)
        assert float(runner.learn(batch)) == pytest.approx(wanted, abs=1e-6)
    assert_same(network, expected)


def test_task_0_learns_from_layer3_1_on_and_later_tasks_from_layer4() -> None:
    method, _ = sparse(resnet(), trunk="frozen")
    trunks = []
    for index in range(3):
        method.before_task(make_task(index, size=4, side=16))
        trunks.append(method.trunk)
    assert trunks == [Trunk("layer3.1"), Trunk("layer4"), Trunk("layer4")]


def test_a_frozen_trunk_does_not_change_after_it_was_pruned() -> None:
    network = resnet()
    method, runner = sparse(network, trunk="frozen")
    before = copy.deepcopy(network.state_dict())
    for index in range(2):
        run_task(method, runner, index, size=4, side=16)
    for name, value in network.state_dict().items():
        frozen = not name.startswith(("layer3.1", "layer4", "fc"))
        assert not frozen or torch.equal(value, before[name]), name


def test_a_network_of_another_kind_is_refused() -> None:
    network = resnet()
    network.add_module("adapter", nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="ResNet of basic blocks, and this network has weights in 'adapter'"):
        sparse(network)


def test_settings_can_be_checked_without_memory() -> None:
    with torch.device("meta"):
        method, _ = sparse(ResNet18(NUM_CLASSES, width=2), **LightCLSparse.presets["released"])
        assert all(mask.is_meta for masks in method.pruned.values() for mask in masks)


def test_as_released_differs_in_what_is_held_and_in_the_ranking() -> None:
    config = cast(LightCLSparse.Config, method_config(RunSpec(method="lightcl-sparse@released")))
    held = (config.weight_masks, config.ranking, config.trunk_bn, config.evaluation_graph)
    assert held == ("bool", "per_convolution", "train", True)
    assert config.first_boundary == "layer3.1"
