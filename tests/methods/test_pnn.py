"""PNN next to its steps written out by hand, and what never happens to an old column."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.build import build
from clmem.harness.learning.training import Progress, Schedule, train
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Batch, Outputs
from clmem.methods.parts.columns import Column
from clmem.methods.pnn import PNN
from tests.methods.toys import NUM_CLASSES, declared, make_batch, make_method, make_task, run_task, two_layers

WIDTH, LR = 2, 0.2
SHAPE = {"size": 4, "side": 16}
CHANNELS = [WIDTH * 2**i for i in range(4)]
"""Of the outputs of layers 1 to 4, from each of which a lateral leaves."""

Tensors = dict[str, Tensor]


def tiny_resnet(seed: int = 0, classes: int = NUM_CLASSES, width: int = WIDTH) -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet18(classes, width)


def pnn(tasks: int = 0, **config: object) -> tuple[PNN, StepRunner]:
    """Return the method on a tiny ResNet-18, after so many tasks."""
    rng = np.random.default_rng(0)
    method, runner = make_method("pnn", tiny_resnet(), {"lr": LR, **config}, new_network=tiny_resnet, rng=rng)
    for index in range(tasks):
        run_task(method, runner, index, **SHAPE)
    return cast(PNN, method), runner


def images_of(task: int = 0) -> Tensor:
    return make_batch(task, **SHAPE).images


def snapshot(module: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(tensors) == list(expected)
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])] == []


# The progressive forward by hand, on state dicts: column 0 is a ResNet-18, the others have `body.`, `adapter.`
# (its layers 2 to 4 and fc) and `laterals.`.


def bn_by_hand(p: Tensors, name: str, x: Tensor, train: bool) -> Tensor:
    if train:
        p[f"{name}.num_batches_tracked"] += 1
    statistics = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    return F.batch_norm(x, *statistics, p[f"{name}.weight"], p[f"{name}.bias"], training=train)


def layer_by_hand(p: Tensors, name: str, x: Tensor, train: bool) -> Tensor:
    """Two blocks, without the last ReLU."""
    for block in (f"{name}.0", f"{name}.1"):
        x = F.relu(x) if block.endswith("1") else x
        stride = 1 if f"{block}.downsample.0.weight" not in p else 2
        y = F.relu(bn_by_hand(p, f"{block}.bn1", F.conv2d(x, p[f"{block}.conv1.weight"], None, stride, 1), train))
        y = bn_by_hand(p, f"{block}.bn2", F.conv2d(y, p[f"{block}.conv2.weight"], None, 1, 1), train)
        if stride == 2:
            shortcut = F.conv2d(x, p[f"{block}.downsample.0.weight"], None, 2)
            x = bn_by_hand(p, f"{block}.downsample.1", shortcut, train)
        x = x + y
    return x


def by_hand(columns: list[Tensors], number: int, x: Tensor, train: bool) -> tuple[list[Tensor], Tensor]:
    """Return (outputs of layers 1 to 4, logits) of a column."""
    p = columns[number]
    own = "body." if number else ""
    with torch.no_grad():
        older = [by_hand(columns, k, x, train=False)[0] for k in range(number)]
    h = F.relu(bn_by_hand(p, f"{own}bn1", F.conv2d(x, p[f"{own}conv1.weight"], None, 1, 1), train))
    maps = [F.relu(layer_by_hand(p, f"{own}layer1", h, train))]
    for i in (2, 3, 4):
        total = layer_by_hand(p, f"{own}layer{i}", maps[-1], train)
        if older:
            scaled = p[f"laterals.{i - 2}.alpha"] * torch.cat([k[i - 2] for k in older], 1)
            v, b = p[f"laterals.{i - 2}.reduce.weight"], p[f"laterals.{i - 2}.reduce.bias"]
            total = total + layer_by_hand(p, f"adapter.layer{i}", F.relu(F.conv2d(scaled, v, b)), train)
        maps.append(F.relu(total))
    logits = F.linear(maps[-1].mean((2, 3)), p[f"{own}fc.weight"], p[f"{own}fc.bias"])
    if older:
        scaled = p["laterals.3.alpha"] * torch.cat([k[3].mean((2, 3)) for k in older], 1)
        v, b = p["laterals.3.reduce.weight"].flatten(1), p["laterals.3.reduce.bias"]
        logits = logits + F.linear(F.relu(F.linear(scaled, v, b)), p["adapter.fc.weight"], p["adapter.fc.bias"])
    return maps, logits


def step_by_hand(columns: list[Tensors], trained: list[str], batch: Batch, head: str) -> float:
    """Do theta <- theta - lr dL/dtheta on the newest column, and return L."""
    p = columns[-1]
    for name in trained:
        p[name].requires_grad_()
    logits = by_hand(columns, len(columns) - 1, batch.images, train=True)[1]
    start, stop = batch.classes.start, batch.classes.stop
    if head == "class_il":
        loss = F.cross_entropy(logits, batch.labels)
    else:
        loss = F.cross_entropy(logits[:, start:stop], batch.labels - start)
    for name, gradient in zip(trained, torch.autograd.grad(loss, [p[name] for name in trained]), strict=True):
        assert bool(gradient.any()), f"{name} learns nothing, so nothing is tested"
        p[name] = p[name].detach() - LR * gradient
    return float(loss.detach())


@pytest.fixture
def float64() -> Iterator[None]:
    """Batch norms of small maps blow rounding up, so what must be equal is compared in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def double_batch(task: int, step: int = 0) -> Batch:
    batch = make_batch(task, step, **SHAPE)
    return dataclasses.replace(batch, images=batch.images.double())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_a_step_of_each_column_is_the_step_by_hand_and_moves_that_column_alone(head: str) -> None:
    method, runner = pnn(head=head)
    for index in range(3):
        method.before_task(make_task(index, **SHAPE))
        expected = [snapshot(column) for column in method.columns]
        trained = [name for name, _ in method.network.named_parameters()]
        for step in range(2):
            batch = double_batch(index, step)
            loss = float(runner.learn(batch))
            assert loss == pytest.approx(step_by_hand(expected, trained, batch, head), abs=1e-9)
            for name, tensor in method.network.state_dict().items():
                torch.testing.assert_close(tensor, expected[-1][name], atol=1e-9, rtol=1e-9, msg=f"task {index} {name}")
        for column, tensors in zip(method.columns[:-1], expected, strict=False):
            assert_equal(column.state_dict(), tensors)


@pytest.mark.usefixtures("float64")
def test_a_prediction_is_that_of_the_tasks_column_by_hand() -> None:
    method, runner = pnn()
    for index in range(3):
        method.before_task(make_task(index, **SHAPE))
        runner.learn(double_batch(index))
    columns = [snapshot(column) for column in method.columns]
    for task in range(3):
        images = double_batch(task).images
        logits = by_hand(columns, task, images, train=False)[1]
        torch.testing.assert_close(method.predict(images, task), logits, atol=1e-9, rtol=1e-9)


def test_nothing_is_forgotten() -> None:
    method, runner = pnn()
    predictions: list[Tensor] = []
    for index in range(3):
        run_task(method, runner, index, **SHAPE)
        predictions.append(method.predict(images_of(index), index))
        for task, logits in enumerate(predictions):
            assert torch.equal(method.predict(images_of(task), task), logits), f"task {task} after task {index}"


def test_old_columns_stay_in_eval_mode_while_the_new_one_trains_and_never_get_a_gradient() -> None:
    method, runner = pnn(tasks=2)
    method.before_task(make_task(2, **SHAPE))
    runner.learn(make_batch(2, **SHAPE))
    assert all(module.training for module in method.network.modules())
    assert not any(module.training for old in method.columns[:-1] for module in old.modules())
    batch = make_batch(2, **SHAPE)
    method.cross_entropy(Outputs(method.network.run(batch.images)), batch.labels, batch.classes).backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())
    assert all(parameter.grad is None for old in method.columns[:-1] for parameter in old.parameters())


def numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_task_adds_one_body_one_adapter_and_a_projection_of_the_columns_it_reads() -> None:
    method, runner = pnn()
    plain = tiny_resnet()
    stem_and_layer1 = sum(numel(module) for module in (plain.conv1, plain.bn1, plain.layer1))
    for index in range(3):
        run_task(method, runner, index, **SHAPE)
        assert len(method.columns) == index + 1
        projections = sum(index * c * c + c + 1 for c in CHANNELS)  # V, b, alpha
        adapter = numel(plain) - stem_and_layer1
        assert numel(method.network) == numel(plain) + (adapter + projections if index else 0)


def test_five_columns_of_the_standard_network_hold_395_mib() -> None:
    with torch.device("meta"):
        method, _ = make_method(
            "pnn", ResNet18(10), num_classes=10, num_tasks=5, new_network=lambda number: ResNet18(10), device="meta"
        )
        for index in range(5):
            method.before_task(make_task(index))
    counts = [numel(column) for column in cast(PNN, method).columns]
    assert counts[0] == 11_173_962
    assert [b - a for a, b in pairwise(counts[1:])] == [64**2 * (1 + 4 + 16 + 64)] * 3
    assert round(4 * sum(counts) / 2**20) == 395


def test_parameters_and_buffers_of_all_columns_but_the_newest_are_declared() -> None:
    method, runner = pnn()
    plain = tiny_resnet()
    norms = [module.num_features for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    adapter_norms = norms[5:]  # less the stem's and the four of layer1
    assert len(norms) == 20
    buffers = [sum(8 * channels + 8 for channels in found) for found in (norms, norms + adapter_norms)]
    for index in range(3):
        method.before_task(make_task(index, **SHAPE))
        expected = sum(4 * numel(c) + buffers[min(k, 1)] for k, c in enumerate(method.columns[:-1]))
        assert declared(method) == {"method_state": expected}
        runner.learn(make_batch(index, **SHAPE))
        assert declared(method) == {"method_state": expected}
        method.after_task(make_task(index, **SHAPE))
        assert declared(method) == {"method_state": expected}
    assert expected > 0


def saved_bytes(method: PNN, batch: Batch) -> int:
    """Return what a forward of the newest column saves for its backward, without parameters and buffers."""
    kept = {t.untyped_storage().data_ptr() for c in method.columns for t in (*c.parameters(), *c.buffers())}
    found: dict[int, Tensor] = {}  # held, so that no storage takes the address of another

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in kept:
            found[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method.network.train()
        logits = method.network.run(batch.images)
    del logits
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def test_an_old_column_costs_its_outputs_of_layers_1_to_3_once_and_the_pooled_ones_of_layer_4() -> None:
    method, _ = pnn(tasks=1)
    saved = []
    for index in (1, 2, 3):
        task = dataclasses.replace(make_task(0, **SHAPE), index=index)
        method.before_task(task)
        saved.append(saved_bytes(method, task.batch(0, 0)))
    pixels = [16 * 16, 8 * 8, 4 * 4, 1]
    maps = sum(4 * c * p for c, p in zip(CHANNELS, pixels, strict=True))  # of 4 images
    scaled_v = sum(c * c for c in CHANNELS)
    assert saved[1] - saved[0] == saved[2] - saved[1] == 4 * (maps + scaled_v)


def test_a_stopped_run_goes_on_in_another_process() -> None:
    straight, runner = pnn(tasks=2)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    rng = straight.context.rng.bit_generator.state
    file.seek(0)
    resumed, other_execution = pnn()
    resumed.context.rng.bit_generator.state = rng
    resumed.load_state_dict(torch.load(file, weights_only=True))

    assert len(resumed.columns) == 2
    assert resumed.network is resumed.columns[-1]
    assert resumed.columns[0] is resumed.context.network
    for task in range(2):
        assert torch.equal(resumed.predict(images_of(task), task), straight.predict(images_of(task), task))
    for _ in range(2):  # one more step of the task, then the next task
        for each in (runner, other_execution):
            each.learn(make_batch(1, 5, **SHAPE))
        for ours, theirs in zip(resumed.columns, straight.columns, strict=True):
            assert_equal(ours.state_dict(), theirs.state_dict())
        for method in (straight, resumed):
            method.before_task(make_task(2, **SHAPE))
    assert len(resumed.columns) == 3


def test_adding_and_restoring_columns_never_moves_the_global_generators() -> None:
    before = torch.get_rng_state(), np.random.get_state()
    method, _ = pnn(tasks=2)
    pnn()[0].load_state_dict(method.state_dict())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(
        np.array_equal(a, b) for a, b in zip(cast(Any, np.random.get_state()), cast(Any, before[1]), strict=True)
    )


def test_columns_begin_differently_and_their_alphas_small() -> None:
    method, _ = pnn()
    for index in range(3):
        method.before_task(make_task(index, **SHAPE))
    first, second = (cast(Column, column) for column in method.columns[1:])
    stems = [method.columns[0].get_parameter("conv1.weight"), first.body.conv1.weight, second.body.conv1.weight]
    stems = [cast(Tensor, stem) for stem in stems]
    assert not any(torch.equal(a, b) for a, b in zip(stems, [*stems[1:], stems[0]], strict=True))
    assert not torch.equal(first.body.get_parameter("fc.weight"), first.adapter.get_parameter("fc.weight"))
    alphas = [float(value.detach()) for name, value in second.named_parameters() if name.endswith("alpha")]
    assert len(set(alphas)) == 4
    assert all(0 < alpha < 0.1 for alpha in alphas)


def test_a_task_that_begins_again_goes_on_with_its_column() -> None:
    method, runner = pnn(tasks=2)
    column = method.network
    run_task(method, runner, 1, **SHAPE)
    assert method.network is column
    assert len(method.columns) == 2


def test_a_task_without_a_column_is_predicted_by_the_newest() -> None:
    method, _ = pnn(tasks=2)
    assert torch.equal(method.predict(images_of(), 2), method.predict(images_of(), 1))


def test_predicting_without_the_task_is_refused() -> None:
    method, _ = pnn(tasks=1)
    with pytest.raises(ValueError, match="give predict\\(\\) the task_id"):
        method.predict(images_of())


def test_a_column_cannot_be_split() -> None:
    method, _ = pnn(tasks=2)
    with pytest.raises(ValueError, match="cannot be split at 'layer4'"):
        method.network.run(images_of(), start="layer4")
    assert method.network.boundaries == ["column"]


def test_a_network_of_two_layers_has_a_lateral_into_its_head_alone() -> None:
    method, runner = make_method("pnn", two_layers(), {"lr": LR}, new_network=two_layers)
    for index in range(2):
        run_task(method, runner, index)
    column, images = cast(Column, method.network), make_batch().images
    p = snapshot(column)
    laterals = [name for name, _ in column.named_parameters() if not name.startswith("body")]
    v = [f"laterals.0.{name}" for name in ("alpha", "reduce.weight", "reduce.bias")]
    assert laterals == ["adapter.fc.weight", "adapter.fc.bias", *v]
    old = column.older[0].eval().run(images, stop="fc").mean((2, 3))
    lateral = F.relu(F.linear(p[v[0]] * old, p[v[1]].flatten(1), p[v[2]]))
    expected = column.body.eval().run(images) + F.linear(lateral, p["adapter.fc.weight"], p["adapter.fc.bias"])
    torch.testing.assert_close(method.predict(images, 1), expected.detach(), atol=1e-6, rtol=1e-6)


def test_a_run_has_task_il_accuracies_and_no_class_il() -> None:
    run = build(RunSpec(method="pnn", stream="synthetic-cifar10", width=1, batch_size=4), Unwatched())
    accuracy = train(run, Schedule((1, 1), evaluation_batches=1), Unwatched(), Progress())
    assert accuracy.class_il is None
    assert accuracy.untrained_class_il is None
    assert accuracy.task_il is not None
    assert len(accuracy.task_il) == 2


def test_gradients_are_those_of_the_newest_column_before_it_has_learnt() -> None:
    method, runner = make_method("pnn", two_layers())
    method.before_task(make_task(0))
    runner.learn(make_batch(0))
    method.before_task(make_task(1))
    batch = make_batch(1)
    gradients = runner.prepared.gradients(next(iter(method.terms(batch)))[0])
    assert set(gradients) == {name for name, _ in method.network.named_parameters()}
    assert all(p.grad is None for column in cast(PNN, method).columns for p in column.parameters())
