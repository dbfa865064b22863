"""SparCL: its steps, what its masks and its removal of data do to them, and what they take in memory."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clmem.harness.errors import UsageError
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_config
from clmem.harness.networks.mlp import Perceptron
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Batch, Outputs
from clmem.methods.parts.sparcl import SparCL
from clmem.methods.parts.sparse_training import (
    masked_weights,
    open_count,
    update_at,
)
from tests.methods.toys import (
    NUM_CLASSES,
    TwoLayers,
    declared,
    make_batch,
    make_method,
    make_task,
    normalise,
    two_layers,
)

NAMES = ["sparcl-er", "sparcl-derpp"]
MASKED_ELEMENTS = 10_985_472
"""Weights of the sixteen 3x3 convolutions of layer1 ... layer4 at width 64."""


def sparcl(
    name: str, network: nn.Module, config: Mapping[str, object] | None = None, **changes: Any
) -> tuple[SparCL, StepRunner]:
    method, runner = make_method(name, cast(Any, network), config, **changes)
    return cast(SparCL, method), runner


def tiny_resnet(width: int = 2) -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet18(NUM_CLASSES, width=width)


def closed_are_zero(method: SparCL) -> bool:
    weights = masked_weights(method.network)
    return all(not weights[name].view(-1)[~mask.read()].any() for name, mask in method.masks.weights.items())


def with_gradient(weight: nn.Parameter, seed: int) -> Tensor:
    """Give the weight a gradient of noise; return a copy of it, flat."""
    weight.grad = torch.tensor(np.random.default_rng(seed).standard_normal(weight.shape).astype(np.float32))
    return weight.grad.flatten().clone()


def test_masked_are_the_sixteen_3x3_convolutions_of_the_layers() -> None:
    weights = masked_weights(ResNet18(10, width=64))
    assert len(weights) == 16
    assert list(weights)[:2] == ["layer1.0.conv1.weight", "layer1.0.conv2.weight"]
    assert sum(weight.numel() for weight in weights.values()) == MASKED_ELEMENTS


def test_a_network_without_masked_layers_is_refused() -> None:
    network = Perceptron(3 * 8 * 8, 4, NUM_CLASSES)
    with pytest.raises(ValueError, match="nothing to mask"):
        sparcl("sparcl-er", network)


@pytest.mark.parametrize("sparsity", [0.75, 0.9, 0.95])
def test_the_start_keeps_the_largest_weights_of_every_masked_layer(sparsity: float) -> None:
    dense, network = tiny_resnet(4), tiny_resnet(4)
    method, _ = sparcl("sparcl-er", network, {"sparsity": sparsity})
    for (name, old), new in zip(dense.named_parameters(), network.parameters(), strict=True):
        if name not in method.masks.weights:
            assert torch.equal(old, new), f"{name} is dense"
            continue
        open_ = method.masks.weights[name].read().view_as(old)
        assert int(open_.sum()) == open_count(old.numel(), sparsity) == round(old.numel() * (1 - sparsity))
        assert old[open_].abs().min() > old[~open_].abs().max()
        assert torch.equal(new, torch.where(open_, old, 0.0))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_zero_where_the_mask_is_after_every_step(name: str) -> None:
    network = tiny_resnet()
    method, runner = sparcl(name, network, {"sparsity": 0.75, "lr": 0.3}, image_shape=(3, 16, 16), replay_size=2)
    moved = set()
    for index in range(2):
        task = make_task(index, side=16, steps=13)
        method.before_task(task)
        for step in range(13):
            before = {key: mask.read() for key, mask in method.masks.weights.items()}
            runner.learn(task.batch(0, step))
            assert closed_are_zero(method)
            for key, mask in method.masks.weights.items():
                open_ = mask.read()
                assert not (method.masks.gradients[key].read() & ~open_).any(), "closed weights get no gradient"
                assert torch.equal(open_, before[key]) or update_at(step, 13) is not None
                if not torch.equal(open_, before[key]):
                    moved.add(key)
        method.after_task(task)
        for mask in method.masks.weights.values():
            assert int(mask.read().sum()) == open_count(len(mask.read()), 0.75)
    large = {key for key, weight in masked_weights(network).items() if weight.numel() > 36}
    assert moved == large, "of 36 elements one percent is none"


def test_masks_do_not_depend_on_the_order_in_which_layers_are_adjusted() -> None:
    found = []
    for reverse in (False, True):
        method, _ = sparcl("sparcl-er", tiny_resnet())
        for step in range(2):
            method.masks.begin_step(step, 10)
            for name, parameter in sorted(method.network.named_parameters(), reverse=reverse):
                with_gradient(parameter, seed=len(name) + parameter.numel())
                method.adjust_gradient(name, parameter)
        found.append([*method.masks.tensors()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dense_parameters_keep_their_gradient() -> None:
    method, _ = sparcl("sparcl-er", tiny_resnet())
    method.masks.begin_step(0, 10)
    for name in ("conv1.weight", "layer2.0.downsample.0.weight", "fc.weight", "layer1.0.bn1.weight"):
        parameter = method.network.get_parameter(name)
        gradient = with_gradient(parameter, 0)
        method.adjust_gradient(name, parameter)
        assert torch.equal(parameter.grad.flatten(), gradient)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_bit_and_float32_masks_train_the_same_weights(name: str) -> None:
    states, draws = [], []
    for masks in ("bit", "float32"):
        network = tiny_resnet()
        method, runner = sparcl(
            name, network, {"masks": masks, "sparsity": 0.75}, image_shape=(3, 16, 16), replay_size=3
        )
        for index in range(2):
            task = make_task(index, side=16, steps=12)
            method.before_task(task)
            for step in range(12):
                runner.learn(task.batch(0, step))
            method.after_task(task)
        masks_read = [mask.read() for kind in (method.masks.weights, method.masks.gradients) for mask in kind.values()]
        states.append([*network.state_dict().values(), *masks_read])
        draws.append(method.context.rng.bit_generator.state)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("masks", "mask_bytes"), [("bit", MASKED_ELEMENTS // 8), ("float32", 4 * MASKED_ELEMENTS)])
def test_state_is_two_masks_and_four_bytes_per_sample_of_the_task(name: str, masks: str, mask_bytes: int) -> None:
    method, _ = sparcl(name, ResNet18(10, width=64), {"masks": masks})
    assert declared(method)["method_state"] == 2 * mask_bytes
    method.before_task(replace(make_task(0), num_samples=10_000))
    assert declared(method)["method_state"] == 2 * mask_bytes + 4 * 10_000
    method.after_task(make_task(0))
    assert declared(method)["method_state"] == 2 * mask_bytes
    assert round(4 * MASKED_ELEMENTS / 2**20, 1) == 41.9


@pytest.mark.parametrize("name", NAMES)
def test_the_released_preset_holds_float32_masks_and_is_otherwise_the_same(name: str) -> None:
    ours, released = (method_config(RunSpec(method=method)).model_dump() for method in (name, f"{name}@released"))
    assert {key: (ours[key], released[key]) for key in ours if ours[key] != released[key]} == {
        "masks": ("bit", "float32")
    }


def test_a_margin_that_would_open_everything_is_refused() -> None:
    with pytest.raises(UsageError, match="use a margin below the sparsity"):
        method_config(RunSpec(method="sparcl-er", config={"sparsity": 0.1, "margin": 0.1}))


@pytest.mark.parametrize("key", ["sparsity", "removal_share"])
def test_a_share_of_one_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        method_config(RunSpec(method="sparcl-er", config={key: 1.0}))


def test_without_a_share_nothing_is_kept_of_the_samples() -> None:
    method, runner = sparcl("sparcl-er", two_layers(), {"removal_share": 0.0})
    before = declared(method)["method_state"]
    task = make_task(0, steps=12)
    method.before_task(task)
    for step in range(12):
        runner.learn(task.batch(0, step))
    assert declared(method)["method_state"] == before


@pytest.mark.parametrize("name", NAMES)
def test_removed_samples_are_neither_learnt_nor_offered_and_rows_stay_with_their_samples(name: str) -> None:
    method, _ = sparcl(name, two_layers(), buffer_size=16, replay_size=2)
    for index in range(2):
        method.before_task(make_task(index, steps=2))
        batch = make_batch(index, 1)  # positions 4 ... 7
        method.removal.removed[torch.tensor([4, 6])] = True
        terms = next(iter(method.terms(batch)))
        replayed = {0: [2], 1: [2 + 2] if name == "sparcl-er" else [2, 2, 2]}[index]
        assert [len(term.images) for term in terms] == replayed
        assert torch.equal(terms[0].images[:2], batch.images[[1, 3]])
        assert torch.equal(terms[0].targets[0], batch.labels[[1, 3]])

        wrong = batch.classes.start + 1 - (batch.labels[[1, 3]] - batch.classes.start)
        answers = F.one_hot(torch.stack([batch.labels[1], wrong[1]]), NUM_CLASSES).float()  # right, wrong
        replayed_answers = F.one_hot(torch.stack([wrong[0], batch.labels[3]]), NUM_CLASSES).float()
        logits = torch.cat([answers, replayed_answers])[: len(terms[0].images)]
        method.after_step(batch, [Outputs(logits)] * len(terms))
        assert method.removal.correct.tolist() == [False] * 5 + [True, False, False]
        stored = slice(2 * index, 2 * index + 2)
        assert method.buffer.seen == 2 * index + 2
        assert torch.equal(method.buffer.images[stored], torch.tensor(batch.raw[[1, 3]]))
        assert torch.equal(method.buffer.labels[stored], batch.labels[[1, 3]])
        if name == "sparcl-derpp":
            assert torch.equal(method.buffer.logits[stored], answers)
        method.after_task(make_task(index))


def test_batches_shrink_to_70_percent_in_the_course_of_a_task_and_are_whole_again_in_the_next() -> None:
    method, runner = sparcl("sparcl-er", two_layers(), replay_size=3)
    sizes: list[list[int]] = []
    for index in range(2):
        task = make_task(index, size=40, steps=1)
        task = replace(task, epochs=20, batch=lambda epoch, step: replace(make_batch(0, 0, 40), epoch=epoch))
        method.before_task(task)
        sizes.append([])
        for epoch in range(20):
            batch = task.batch(epoch, 0)
            sizes[-1].append(len(method.removal.rows(batch.positions)))
            runner.learn(batch)
        method.after_task(task)
    # looked at before each step, which itself removes: 3 of 40 at steps 2, 4, 6 and 8 of 20
    assert sizes == [[40] * 3 + [37] * 2 + [34] * 2 + [31] * 2 + [28] * 11] * 2


@pytest.mark.parametrize("name", NAMES)
def test_replay_begins_with_task_1_though_the_buffer_fills_from_task_0(name: str) -> None:
    method, runner = sparcl(name, two_layers(), replay_size=3)
    sizes = []
    for index in range(2):
        method.before_task(make_task(index))
        for step in range(2):
            batch = make_batch(index, step)
            sizes.append([len(term.images) for term in next(iter(method.terms(batch)))])
            runner.learn(batch)
    assert method.buffer.seen == 16
    assert sizes == [[4], [4], *([[7], [7]] if name == "sparcl-er" else [[4, 3, 3]] * 2)]


class ByHand:
    """SparCL's step on the two-layer network (`layer4.0.conv1` is masked), from its formulas and with full sorts.

    Which weights open is chance: that is taken from the method, once it is certain that what it closed is right.
    """

    def __init__(self, network: TwoLayers, method: SparCL) -> None:
        self.network, self.method = network, method
        self.weight = cast(nn.Conv2d, network.layer4[0].conv1).weight
        self.name = "layer4.0.conv1.weight"
        size = self.weight.detach().abs().flatten()
        self.open = torch.zeros(216, dtype=torch.bool)
        self.open[size.argsort(descending=True)[:54]] = True  # s = .75
        self.passing = self.open.clone()
        self.weight.data.mul_(self.open.view_as(self.weight))

    def step(self, loss_of: Callable[[TwoLayers], Tensor], lr: float, keep: int, renew: bool) -> float:
        """Do one step after the method did its own; keep: open weights that the update leaves."""
        loss = loss_of(self.network.train())
        gradients = torch.autograd.grad(loss, list(self.network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
                if parameter is self.weight:
                    gradient = self.masked(gradient, keep, renew)
                parameter -= lr * gradient
        return float(loss.detach())

    def masked(self, gradient: Tensor, keep: int, renew: bool) -> Tensor:
        w, g = self.weight.data.flatten(), gradient.flatten()
        importance = torch.where(self.open, w.abs() + 0.5 * g.abs(), -1.0)
        kept = torch.zeros(216, dtype=torch.bool)
        kept[importance.argsort(descending=True)[:keep]] = True
        self.weight.data.mul_(kept.view_as(self.weight))
        self.open = self.method.masks.weights[self.name].read()
        assert not (kept & ~self.open).any()
        self.passing &= kept
        if renew:
            size = torch.where(self.open, g.abs(), -1.0)
            self.passing = torch.zeros(216, dtype=torch.bool)
            self.passing[size.argsort(descending=True)[:43]] = True  # 20 % of 216
        return torch.where(self.passing.view_as(gradient), gradient, 0.0)


def slice_loss(logits: Tensor, batch: Batch) -> Tensor:
    start, stop = batch.classes.start, batch.classes.stop
    return F.cross_entropy(logits[:, start:stop], batch.labels - start)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masks", ["bit", "float32"])
def test_steps_are_those_written_out_by_hand(name: str, masks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = two_layers()
    hand = copy.deepcopy(network)
    config = {"lr": 0.1, "sparsity": 0.75, "masks": masks, "removal_share": 0.0}
    method, runner = sparcl(name, network, config)
    by_hand = ByHand(hand, method)
    stored: list[Tensor] = []
    first = make_batch(0, 0)
    replayed = normalise(torch.tensor(first.raw))

    def alone(net: TwoLayers) -> Tensor:
        stored.append(net(first.images))
        return slice_loss(stored[-1], first)

    def er(batch: Batch) -> Callable[[TwoLayers], Tensor]:
        def loss(net: TwoLayers) -> Tensor:  # four slots, four drawn: the draw is all of the first batch
            logits = net(torch.cat([batch.images, replayed]))
            return (slice_loss(logits[:4], batch) + F.cross_entropy(logits[4:], first.labels)) / 2

        return loss

    def derpp(batch: Batch) -> Callable[[TwoLayers], Tensor]:
        def loss(net: TwoLayers) -> Tensor:
            total = slice_loss(net(batch.images), batch)
            total = total + 0.1 * ((net(replayed) - stored[0].detach()) ** 2).mean()
            return total + 0.5 * F.cross_entropy(net(replayed), first.labels)

        return loss

    def check(batch: Batch, loss_of: Callable[[TwoLayers], Tensor], keep: int, renew: bool) -> None:
        loss = float(runner.learn(batch))
        assert loss == pytest.approx(by_hand.step(loss_of, 0.1, keep, renew), abs=1e-6)
        for (key, tensor), other in zip(network.state_dict().items(), hand.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, other, atol=1e-6, rtol=1e-6, msg=lambda text, key=key: f"{key}: {text}")

    method.before_task(make_task(0, steps=1))
    check(first, alone, 54, True)  # update 9 alone: .75 / .75
    monkeypatch.setattr(method.buffer, "add", lambda *arguments: None)  # so that the same four are replayed each time
    method.before_task(make_task(1, steps=20))
    for step, keep in enumerate((54, 56, 52, 54)):  # update 0, none, update 1, none: .75 / .74, .76 / .75
        batch = make_batch(1, step)
        check(batch, (er if name == "sparcl-er" else derpp)(batch), keep, renew=step % 2 == 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_stops_within_a_task_goes_on_as_if_it_had_not(name: str) -> None:
    def learn(method: SparCL, runner: StepRunner, index: int, steps: range) -> None:
        task = make_task(index, steps=20)
        if steps.start == 0:
            method.before_task(task)
        for step in steps:
            runner.learn(task.batch(0, step))

    def begin() -> tuple[SparCL, StepRunner]:
        return sparcl(name, two_layers(), {"sparsity": 0.75}, buffer_size=16, replay_size=3)

    straight, runner = begin()
    learn(straight, runner, 0, range(20))
    straight.after_task(make_task(0))
    learn(straight, runner, 1, range(7))
    file = io.BytesIO()
    torch.save([straight.state_dict(), straight.network.state_dict()], file)
    draws = straight.context.rng.bit_generator.state

    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    resumed, another = begin()
    resumed.load_state_dict(state)
    resumed.network.load_state_dict(weights)
    resumed.context.rng.bit_generator.state = draws
    learn(straight, runner, 1, range(7, 20))
    learn(resumed, another, 1, range(7, 20))
    same = zip(
        [*straight.network.state_dict().values(), *straight.masks.tensors(), *straight.removal.tensors()],
        [*resumed.network.state_dict().values(), *resumed.masks.tensors(), *resumed.removal.tensors()],
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in same)
    assert int(resumed.removal.removed.sum()) == 24
