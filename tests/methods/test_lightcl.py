"""LightCL: which channels it holds, what it keeps and what it lets go."""

from __future__ import annotations

import copy
import io
from typing import Any, cast

import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_config
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Method, Outputs, Trunk
from clmem.methods.lightcl import LightCL, feature_drift, important_channels, tail_relus
from tests.methods.toys import (
    NUM_CLASSES,
    declared,
    make_batch,
    make_context,
    make_method,
    make_task,
    run_task,
    two_layers,
)

SHAPE = {"size": 4, "side": 8}
PARAMETERS = 11_173_962  # of ResNet-18 at width 64 with 10 classes


def lightcl(**config: object) -> tuple[LightCL, StepRunner]:
    method, runner = make_method("lightcl", two_layers(), config)
    return cast(LightCL, method), runner


def test_15_percent_of_512_channels_are_78() -> None:
    features = torch.rand(32, 512, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = important_channels(features, 0.15)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == 78
    scores = features.abs().sum((0, 2, 3))
    assert scores[mask].min() > scores[~mask].max()
    assert torch.equal(mask, scores >= scores.kthvalue(512 - 77).values), "the threshold as the specification writes it"


def test_a_resnet_of_width_64_is_watched_at_four_maps_of_78_held_channels() -> None:
    network = ResNet18(NUM_CLASSES)
    method, _ = make_method("lightcl", network, {"trunk": "frozen"})
    method.after_task(make_task(0, **SHAPE))
    masks = cast(LightCL, method).masks
    assert list(masks) == ["layer4.0.relu1", "layer4.0.relu2", "layer4.1.relu1", "layer4.1.relu2"]
    assert [(len(mask), int(mask.sum())) for mask in masks.values()] == [(512, 78)] * 4


@pytest.mark.parametrize(
    ("boundary", "watched"),
    [
        ("layer3.1", ["0.relu1", "0.relu2", "1.relu1", "1.relu2"]),
        ("layer4", ["0.relu1", "0.relu2", "1.relu1", "1.relu2"]),
        ("layer4.1", ["1.relu1", "1.relu2"]),
    ],
)
def test_the_relus_of_layer4_that_can_learn_are_watched(boundary: str, watched: list[str]) -> None:
    assert tail_relus(ResNet18(2, width=1), boundary) == tuple(f"layer4.{name}" for name in watched)


def test_a_tail_without_relus_is_refused() -> None:
    with pytest.raises(ValueError, match="no ReLU that could be watched lies from boundary 'fc' on"):
        make_method("lightcl", ResNet18(2, width=1), {"boundary": "fc"})


@pytest.mark.parametrize("name", ["lightcl", "tail-sgd"])
def test_an_unknown_boundary_is_refused_before_anything_is_learnt(name: str) -> None:
    with pytest.raises(UsageError, match="layer4"):
        make_method(name, ResNet18(2, width=1), {"boundary": "layer5"})


class OneChannelATask:
    """A runner under which task t's features are large in channel t alone."""

    def __init__(self) -> None:
        self.task = -1

    def forward(self, images: torch.Tensor, *, watch: tuple[str, ...] = (), bn: str = "eval") -> Outputs:
        self.task += 1
        features = torch.ones(2, 6, 3, 3) * torch.linspace(0.1, 0.6, 6).view(1, 6, 1, 1)
        features[:, self.task] = -9.0  # importance is the sum of magnitudes
        return Outputs(torch.zeros(2, NUM_CLASSES), dict.fromkeys(watch, features))


def test_masks_are_united_over_tasks() -> None:
    # int(6 * .1 + .5) = 1 channel, and the one at the threshold: the last
    config = LightCL.Config(keep_ratio=0.1, memory_size=3, boundary="layer4")
    method = LightCL(make_context(two_layers(), runner=OneChannelATask()), config)
    held = []
    for index in range(3):
        method.after_task(make_task(index))
        held.append(method.masks["layer4.0.relu1"].nonzero().flatten().tolist())
    assert held == [[0, 5], [0, 1, 5], [0, 1, 2, 5]]


def test_keeping_every_channel_holds_no_mask() -> None:
    method, runner = lightcl(keep_ratio=1.0)
    run_task(method, runner, 0)
    assert method.masks == {}
    assert declared(method)["method_state"] == 0


def test_the_drift_counts_masked_channels_only() -> None:
    features, reference = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    mask = torch.tensor([True, False, True])
    by_hand = ((features - reference) ** 2)[:, mask].sum()
    torch.testing.assert_close(feature_drift(features, reference, mask), by_hand)
    torch.testing.assert_close(feature_drift(features, reference, None), ((features - reference) ** 2).sum())


def test_the_drift_saves_no_tensor_of_its_own_for_backward() -> None:
    features, reference = torch.randn(2, 3, 5, 5).requires_grad_().relu(), torch.randn(2, 3, 5, 5)
    mask, saved = torch.tensor([True, False, True]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t), lambda _: None):
        feature_drift(features, reference, mask)
    assert {t.untyped_storage().data_ptr() for t in saved} == {
        t.untyped_storage().data_ptr() for t in (features, reference, mask)
    }


def test_a_step_is_the_memory_and_then_the_batch() -> None:
    method, runner = lightcl(memory_size=3)
    run_task(method, runner, 0)
    method.before_task(make_task(1))
    steps = list(method.terms(make_batch(1, 1)))
    assert [[len(term.images) for term in terms] for terms in steps] == [[3, 4]]


def test_no_sample_and_no_reference_outlives_its_task() -> None:
    method, runner = lightcl(memory_size=3)
    for index in range(3):
        run_task(method, runner, index)
        assert declared(method) == {"replay": 0, "method_state": 6}, "one bool per channel of the one watched map"


def test_during_a_task_the_memory_and_its_reference_are_declared() -> None:
    method, runner = lightcl(memory_size=3)
    run_task(method, runner, 0)
    method.before_task(make_task(1))
    images, features, logits = 3 * 3 * 8 * 8 * 4, 3 * 6 * 4 * 4 * 4, 3 * NUM_CLASSES * 4
    assert declared(method) == {"replay": images, "method_state": features + logits + 6}


def test_the_penalty_is_zero_before_the_first_update_of_a_task() -> None:
    method, runner = lightcl(memory_size=3, lr=0.1)
    run_task(method, runner, 0)
    method.before_task(make_task(1))
    network = method.network
    network.train()
    for module in network.stage_modules("layer4"):  # type: ignore[operator]
        module.eval()
    assert method.memory is not None
    assert method.logits is not None
    with torch.no_grad():
        logits = network(method.memory)
    assert torch.equal(logits, method.logits)


def test_looking_at_the_reference_leaves_running_statistics_alone() -> None:
    method, runner = lightcl(memory_size=3)
    run_task(method, runner, 0)
    before = {name: buffer.clone() for name, buffer in method.network.named_buffers()}
    method.before_task(make_task(1))
    assert all(torch.equal(before[name], buffer) for name, buffer in method.network.named_buffers())


def test_a_reservoir_memory_holds_images_of_old_tasks() -> None:
    method, runner = lightcl(memory_source="reservoir", memory_size=5)
    run_task(method, runner, 0)
    assert declared(method)["replay"] == 5 * (3 * 8 * 8 + 8)
    method.before_task(make_task(1))
    assert method.memory is not None
    old = {make_batch(0, step).raw[i].tobytes() for step in range(2) for i in range(4)}
    drawn = ((method.memory + 1) * 128).to(torch.uint8).numpy()
    assert len(drawn) == 5
    assert {image.tobytes() for image in drawn} <= old


def test_a_trunk_in_train_mode_drifts_in_its_statistics_but_not_in_its_weights() -> None:
    network = two_layers()
    method, runner = make_method("lightcl", network, {"trunk": "frozen", "trunk_bn": "train"})
    weights = [parameter.clone() for parameter in (*network.conv1.parameters(), *network.bn1.parameters())]
    mean = network.bn1.running_mean.clone()  # type: ignore[union-attr]
    run_task(method, runner, 0)
    now = (*network.conv1.parameters(), *network.bn1.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    assert not torch.equal(mean, network.bn1.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lightcl", "tail-sgd"])
@pytest.mark.parametrize(("trunk", "frozen_from"), [("frozen", 0), ("first_task", 1)])
def test_a_frozen_trunk_does_not_change(name: str, trunk: str, frozen_from: int) -> None:
    network = two_layers()
    method, runner = make_method(name, network, {"trunk": trunk, "lr": 0.1})
    for index in range(3):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        run_task(method, runner, index)
        same = {key: torch.equal(value, before[key]) for key, value in network.state_dict().items()}
        in_trunk = [key for key in same if key.startswith(("conv1", "bn1"))]
        assert all(same[key] == (index >= frozen_from) for key in in_trunk), (index, same)
        assert not same["fc.weight"]
        assert not same["layer4.0.conv1.weight"]


def test_the_memory_is_the_start_of_the_new_tasks_first_batch_and_no_view_of_it() -> None:
    method, _ = lightcl(memory_size=3)
    method.before_task(make_task(2))
    assert method.memory is not None
    assert torch.equal(method.memory, make_batch(2, 0).images[:3])
    assert method.memory.untyped_storage().nbytes() == 3 * 3 * 8 * 8 * 4


def test_settings_are_those_of_the_released_code() -> None:
    config = cast(LightCL.Config, method_config(RunSpec(method="lightcl", stream="synthetic-cifar10")))
    chosen = (config.lr, config.head, config.beta, config.keep_ratio, config.memory_size, config.boundary)
    assert chosen == (0.01, "task_il", 2e-4, 0.15, 15, "layer4")
    assert make_context(two_layers()).buffer_size != config.memory_size, "memory_size is a setting of its own"


def test_a_memory_larger_than_the_batch_it_is_taken_from_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_size is 5 but the batch it is taken from has 4"):
        make_method("lightcl", two_layers(), {"memory_size": 5})
    make_method("lightcl", two_layers(), {"memory_size": 5, "memory_source": "reservoir"})


def test_a_boundary_that_leaves_no_trunk_is_refused() -> None:
    with pytest.raises(ValueError, match="no trunk"):
        make_method("tail-sgd", ResNet18(2, width=1), {"boundary": "stem"})


def test_as_released_all_ones_masks_of_42_625_mib_are_held_and_change_nothing() -> None:
    method, _ = make_method("lightcl", ResNet18(10), LightCL.presets["released"])
    assert declared(method) == {"replay": 0, "method_state": 4 * PARAMETERS}
    assert round(4 * PARAMETERS / 2**20, 3) == 42.625
    assert all(bool((mask == 1).all()) and not mask.requires_grad for mask in cast(LightCL, method).weight_masks)
    method.after_task(make_task(0, **SHAPE))
    assert declared(method) == {"replay": 0, "method_state": 4 * PARAMETERS + 4 * 512}


def test_what_is_held_between_tasks_at_width_64_is_one_bool_per_channel_of_four_maps() -> None:
    method, _ = make_method("lightcl", ResNet18(10))
    assert declared(method) == {"replay": 0, "method_state": 0}
    method.after_task(make_task(0, **SHAPE))
    assert declared(method) == {"replay": 0, "method_state": 4 * 512}


def learnt(weight_masks: str, evaluation_graph: bool) -> Method:
    config = {"weight_masks": weight_masks, "evaluation_graph": evaluation_graph, "lr": 0.1}
    method, runner = make_method("lightcl", two_layers(), config)
    for index in range(2):
        run_task(method, runner, index)
    return method


def test_holding_masks_and_evaluating_with_a_graph_changes_no_weight_and_no_logit() -> None:
    plain, released = learnt("none", False), learnt("float32", True)
    states = plain.network.state_dict(), released.network.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    images = make_batch().images
    assert torch.equal(plain.predict(images), released.predict(images))


def test_evaluation_records_a_graph_of_the_tail_only_when_asked() -> None:
    images = make_batch().images
    assert learnt("none", False).predict(images).grad_fn is None
    logits = learnt("none", True).predict(images)
    saved = {name for name, parameter in two_layers().named_parameters() if name.startswith(("layer4", "fc"))}
    parameters, todo = set(), [logits.grad_fn]
    while todo:
        node = cast(Any, todo.pop())
        parameters |= {id(node.variable)} if hasattr(node, "variable") else set()
        todo += [following for following, _ in node.next_functions if following is not None]
    assert len(parameters) == len(saved)


def test_task_0_learns_from_the_first_boundary_when_the_trunk_is_frozen_from_the_start() -> None:
    config: dict[str, object] = {"trunk": "frozen", "first_boundary": "layer3.1", "trunk_bn": "train"}
    method, _ = make_method("lightcl", ResNet18(2, width=1), config)
    trunks = [method.trunk]
    for index in range(2):
        method.before_task(make_task(index, size=2, side=16))
        trunks.append(method.trunk)
    assert trunks == [Trunk("layer3.1", "train"), Trunk("layer3.1", "train"), Trunk("layer4", "train")]

    method, _ = make_method("lightcl", ResNet18(2, width=1), {**config, "trunk": "first_task"})
    assert method.trunk is None


@pytest.mark.parametrize("config", [{"boundary": "layer5"}, {"first_boundary": "layer5"}])
def test_either_boundary_is_looked_at_before_anything_is_learnt(config: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="layer5"):
        make_method("lightcl", ResNet18(2, width=1), config)


def stored_and_read(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint file gives back: plain containers and tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return cast(dict[str, Any], torch.load(file, weights_only=True))


RELEASED: dict[str, object] = {"memory_size": 3, "trunk": "frozen", "first_boundary": "layer4"}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("lightcl", {"memory_source": "reservoir"}),
        ("lightcl", LightCL.presets["released"]),
        ("lightcl-sparse", {}),
        ("lightcl-sparse", {"weight_masks": "bool", "ranking": "per_convolution"}),
    ],
)
def test_a_method_taken_up_in_the_middle_of_a_task_goes_on_bit_for_bit(name: str, config: dict[str, object]) -> None:
    config = {**RELEASED, **config, "lr": 0.1}
    method, runner = make_method(name, two_layers(), config)
    run_task(method, runner, 0)
    task = make_task(1, steps=3)
    method.before_task(task)
    runner.learn(task.batch(0, 0))

    # Other start weights: nothing of what was chosen by them may be chosen again.
    resumed, execution_resumed = make_method(name, two_layers(seed=1), config)
    resumed.network.load_state_dict(stored_and_read(copy.deepcopy(method.network.state_dict())))
    resumed.load_state_dict(stored_and_read(method.state_dict()))
    resumed.trunk = method.trunk
    resumed.context.rng.bit_generator.state = method.context.rng.bit_generator.state

    for one, its_execution in ((method, runner), (resumed, execution_resumed)):
        for step in (1, 2):
            its_execution.learn(task.batch(0, step))
        one.after_task(task)
        one.before_task(make_task(2))
    for a, b in zip(method.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for role, tensors in method.memory_roles().items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, resumed.memory_roles()[role], strict=True))
