"""Techniques that compute something else say so, and compute what they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.learning.registry import method_class
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.techniques import LEAN, techniques
from clmem.harness.techniques.parts.batch_norm import batch_norms
from clmem.harness.techniques.registry import TECHNIQUES
from clmem.methods.base import Method
from tests.harness.execution.test_exactness import NAMES, learn, prepared, tiny_resnet
from tests.methods.toys import make_batch, make_method


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normalising_by_running_statistics() -> ResNet18:
    """Return a network whose batch norms are in eval mode for good: an image's outputs depend on no other image."""
    network = tiny_resnet()
    for norm in batch_norms(network):
        norm.eval()
        norm.train = lambda mode=True, norm=norm: norm  # type: ignore[method-assign]
    return network


def largest_difference(one: Method, other: Method) -> float:
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    return max(float((first - second).detach().abs().max()) for first, second in pairs)


@pytest.mark.parametrize("name", ["derpp", "sparcl-er", "lightcl", "ewc"])
def test_but_for_batch_statistics_micro_batches_bring_the_gradients_of_the_whole_batch(name: str) -> None:
    plain = learn(name, "plain", 3, normalising_by_running_statistics())
    lean = learn(name, "micro_batch=3,optimizer_in_backward", 3, normalising_by_running_statistics())
    assert largest_difference(plain, lean) < 1e-9


def test_with_batch_statistics_micro_batches_compute_something_else() -> None:
    assert largest_difference(learn("sgd", "plain", 1), learn("sgd", "micro_batch=3", 1)) > 1e-6


def test_what_learns_behind_a_trunk_without_batch_norms_is_the_same_in_micro_batches() -> None:
    assert largest_difference(learn("head-only", "plain", 3), learn("head-only", "micro_batch=3", 3)) < 1e-9


@pytest.mark.parametrize(("stored", "bits"), [("int8", 6), ("bfloat16", 8), ("float16", 11)])
def test_a_trunk_stored_in_fewer_bits_is_the_rounded_trunk_and_learns_like_it(stored: str, bits: int) -> None:
    lean = learn("tail-sgd", f"frozen_weights={stored}", 2)
    start = tiny_resnet()
    changed = lean.network.state_dict()
    for name, weight in start.state_dict().items():
        if name.startswith("layer3") and weight.ndim == 4:
            scale = weight.abs().amax((1, 2, 3), keepdim=True) if stored == "int8" else weight.abs().clamp(min=2.0**-14)
            assert bool(((changed[name] - weight).abs() <= scale * 2.0**-bits).all())
            assert not torch.equal(changed[name], weight)
    rounded = tiny_resnet()
    kept = {name: value for name, value in changed.items() if not name.startswith(("layer4", "fc"))}
    rounded.load_state_dict({**start.state_dict(), **kept})
    assert largest_difference(learn("tail-sgd", "plain", 2, rounded), _whole(lean)) < 1e-9


def _whole(method: Method) -> Method:
    """Return the method with a network that holds its weights as others do."""
    network = tiny_resnet()
    network.load_state_dict(method.network.state_dict())
    method.network = network
    return method


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("lightcl", {"first_boundary": "layer3.1"}),  # the trunk grows after the first task
        ("lightcl", {"trunk": "first_task"}),
        ("lightcl", {}),
    ],
)
def test_what_is_frozen_is_rounded_and_nothing_else(name: str, config: dict[str, object]) -> None:
    method = learn(name, "frozen_weights=int8", 1, **config)
    assert method.trunk is not None
    frozen = {module for stage in method.network.stage_modules(method.trunk.boundary) for module in stage.modules()}
    for module in method.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert (module.weight.untyped_storage().nbytes() == 0) == (module in frozen)


def test_a_boundary_that_thaws_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="choose an earlier first_boundary"):
        learn("lightcl", "plain", 1, first_boundary="fc")


def test_a_trunk_that_will_normalise_by_the_batch_is_not_sliced_even_if_it_freezes_later() -> None:
    with pytest.raises(ValueError, match="use trunk_bn=eval"):
        prepared("lightcl", "trunk_chunk=2", trunk="first_task", trunk_bn="train")


def test_rounding_what_was_rounded_changes_nothing() -> None:
    once = learn("head-only", "frozen_weights=int8", 1).network
    before = {name: value.clone() for name, value in once.state_dict().items()}
    once.load_state_dict(before)
    assert all(torch.equal(before[name], value) for name, value in once.state_dict().items())


def test_autocast_keeps_activations_in_half_the_bits() -> None:
    torch.set_default_dtype(torch.float32)
    sizes = {}
    for technique in ("plain", "autocast=bfloat16"):
        network = tiny_resnet()
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            if tensor.ndim == 4:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        method, runner = make_method("sgd", network, technique=technique)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = runner.learn(make_batch(size=8, side=16))
        assert loss.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in method.network.parameters())
        sizes[technique] = sum(kept.values())
    assert sizes["autocast=bfloat16"] < 0.75 * sizes["plain"]


@pytest.mark.parametrize(
    ("name", "technique", "reason"),
    [
        ("sgd", "frozen_weights=int8", "this method freezes nothing"),
        ("derpp", "autocast=bfloat16,conv_slice=4", "use it without them"),
        ("pnn", "autocast=bfloat16,bn_parts=3", "and bn_parts replace some of those"),
        ("derpp", "lean,autocast=bfloat16", "and conv_slice and bn_parts replace"),
        ("lightcl", "micro_batch=4,grouped_bn", "choose one"),
    ],
)
def test_what_cannot_be_combined_is_refused(name: str, technique: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        learn(name, technique, 1)


def test_results_mark_what_is_inexact_and_no_preset_is() -> None:
    values = {"micro_batch": "4", "frozen_weights": "int8", "autocast": "bfloat16"}
    assert values.keys() == {name for name, technique in TECHNIQUES.items() if not technique.exact}
    for name, value in values.items():
        assert PreparedNetwork(Unwatched(), techniques(f"{name}={value}", {})).describe()["exact"] is False
    for name in NAMES:
        assert techniques(LEAN, method_class(name).lean).is_exact
    assert "exact" not in PreparedNetwork(Unwatched(), techniques("checkpoint=block", {})).describe()
