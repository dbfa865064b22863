"""Channels that are removed physically: the same function, the same gradients, fewer bytes."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_class
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.techniques.parts.compact import remove_channels
from clmem.harness.techniques.registry import Techniques
from clmem.methods.base import Method, Network
from clmem.methods.parts.channels import kept_channels, pruned_weights
from tests.methods.toys import NUM_CLASSES, make_batch, make_context, make_task

SIDE = 16


def network(width: int = 8) -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ResNet18(NUM_CLASSES, width=width)
        for module in made.modules():  # batch norms that are not the identity, so that every tensor counts
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
                nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
    return made


def masked(network: ResNet18) -> tuple[ResNet18, dict[str, Tensor]]:
    kept = kept_channels(network, "grouped")
    with torch.no_grad():
        for name, masks in pruned_weights(network, kept).items():
            for mask in masks:
                network.get_parameter(name).masked_fill_(mask, 0)
    return network, kept


def on_kept(tensor: Tensor, kept_out: Tensor | None, kept_in: Tensor | None) -> Tensor:
    """Return the part of a dense weight that a compact one holds."""
    if kept_in is not None and tensor.dim() > 1:
        tensor = tensor[:, kept_in]
    return tensor if kept_out is None else tensor[kept_out]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_compact_network_gives_the_outputs_and_gradients_of_the_masked_one(mode: str) -> None:
    dense, kept = masked(network())
    compact = copy.deepcopy(dense)
    remove_channels(compact, kept, (3, SIDE, SIDE))
    images, labels = torch.randn(6, 3, SIDE, SIDE), torch.arange(6) % NUM_CLASSES
    for net in (dense, compact):
        net.train(mode == "train")
    outputs = [net(images) for net in (dense, compact)]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    for output in outputs:
        nn.functional.cross_entropy(output, labels).backward()
    last = [name for name in kept if "downsample" not in name][-1]
    read: dict[str, str | None] = {}
    before: str | None = None
    for name in kept:
        read[name] = read[name.replace("downsample.0", "conv1")] if "downsample" in name else before
        before = before if "downsample" in name else name
    for name, mask in kept.items():
        source = read[name]
        inputs = None if source is None else kept[source]
        expected = on_kept(dense.get_parameter(f"{name}.weight").grad, mask, inputs)  # type: ignore[arg-type]
        found = compact.get_parameter(f"{name}.weight").grad
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        for part in ("weight", "bias"):
            expected, found = (net.get_parameter(f"{norm}.{part}").grad for net in (dense, compact))
            torch.testing.assert_close(found, expected[mask], atol=1e-5, rtol=1e-5)
        for part in ("running_mean", "running_var"):
            expected, found = (net.get_buffer(f"{norm}.{part}") for net in (dense, compact))
            torch.testing.assert_close(found, expected[mask])
    torch.testing.assert_close(compact.fc.weight.grad, dense.fc.weight.grad[:, kept[last]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compact.fc.bias.grad, dense.fc.bias.grad, atol=1e-5, rtol=1e-5)


def test_at_full_width_nine_tenths_of_the_weights_are_gone() -> None:
    net = network(width=64)
    before = sum(parameter.numel() for parameter in net.parameters())
    kept = kept_channels(net, "grouped")
    remove_channels(net, kept, (3, 32, 32))
    after = sum(parameter.numel() for parameter in net.parameters())
    assert (net.conv1.out_channels, net.layer4[1].conv1.out_channels, net.fc.in_features) == (52, 103, 103)
    assert 1 - after / before >= 0.90


def test_summed_branches_that_keep_other_channels_are_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"are added, but not the same channels .*ranking=grouped"):
        remove_channels(net, kept_channels(net, "per_convolution"), (3, SIDE, SIDE))


def sparse(storage: Any, net: Network, **config: Any) -> tuple[Method, StepRunner]:
    prepared = PreparedNetwork(Unwatched(), Techniques(storage=storage))
    context = make_context(net, runner=prepared, image_shape=(3, SIDE, SIDE), batch_size=8)
    cls = method_class("lightcl-sparse")
    method = cls(context, cls.Config.model_validate({"memory_size": 3, "keep_ratio": 0.1, **config}))
    prepared.attach(method)
    return method, StepRunner(prepared)


def test_lightcl_learns_the_same_with_its_channels_removed() -> None:
    pairs = [sparse(storage, network()) for storage in ("masked", "compact")]
    images = make_batch(0, size=8, side=SIDE).images
    for method, runner in pairs:
        for index in range(2):
            task = make_task(index, size=8, side=SIDE, steps=2)
            method.before_task(task)
            for step in range(2):
                runner.learn(task.batch(0, step))
            method.after_task(task)
    (dense, _), (compact, _) = pairs
    torch.testing.assert_close(compact.predict(images), dense.predict(images), atol=1e-4, rtol=1e-4)
    held = {method: sum(t.numel() for t in method.memory_roles()["method_state"]) for method in (dense, compact)}
    assert held[compact] < held[dense]
    kept = dense.kept_channels()
    for name, mask in dense.masks.items():  # type: ignore[attr-defined]
        alive = kept[name.replace("relu", "conv")]
        assert torch.equal(mask[alive], compact.masks[name]), "the same channels are important"  # type: ignore[attr-defined]


def test_nothing_of_the_dense_network_outlives_the_removal() -> None:
    net = network()
    dense = weakref.ref(net.layer4[1].conv1.weight)
    gc.disable()  # the garbage collector comes when it likes
    try:
        sparse("compact", net)
        assert dense() is None
    finally:
        gc.enable()


def test_a_compact_network_goes_through_a_checkpoint() -> None:
    method, runner = sparse("compact", network())
    task = make_task(0, size=8, side=SIDE)
    method.before_task(task)
    runner.learn(task.batch(0, 0))
    file = io.BytesIO()
    torch.save({"network": method.network.state_dict(), "method": method.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, _ = sparse("compact", network())
    other.network.load_state_dict(state["network"])
    other.load_state_dict(state["method"])
    images = task.batch(0, 1).images
    assert torch.equal(other.predict(images), method.predict(images))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sgd", {}),
        ("lightcl-sparse", {"ranking": "per_convolution"}),
        ("lightcl-sparse", {"weight_masks": "bool"}),
    ],
)
def test_where_nothing_can_be_removed_it_is_refused(name: str, config: dict[str, Any]) -> None:
    cls = method_class(name)
    prepared = PreparedNetwork(Unwatched(), Techniques(storage="compact"))
    values = {"memory_size": 3, **config} if name.startswith("lightcl") else config
    context = make_context(network(), runner=prepared, image_shape=(3, SIDE, SIDE))
    method = cls(context, cls.Config.model_validate(values))
    with pytest.raises(ValueError, match="this method has none"):
        prepared.attach(method)
