"""EWC next to the same arithmetic written out by hand: the Fisher of each rule, the penalty in each of its shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import product
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_config
from clmem.harness.specs.run import RunSpec
from clmem.methods.base import Batch, Outputs, Task
from clmem.methods.ewc import EWC
from tests.methods.toys import NUM_CLASSES, TwoLayers, declared, make_batch, make_method, make_task, two_layers

LR, STRENGTH, GAMMA = 0.1, 30.0, 0.6
SHAPES = list(product(["inplace", "graph", "implicit"], ["per_parameter", "flattened"]))

Vectors = dict[str, Tensor]


def make_ewc(network: TwoLayers, **config: object) -> tuple[EWC, StepRunner]:
    settings = {"lr": LR, "strength": STRENGTH, "gamma": GAMMA, **config}
    method, runner = make_method("ewc", network, settings)
    return cast(EWC, method), runner


def negative_log_likelihood(logits: Tensor, labels: Tensor, batch: Batch, head: str) -> Tensor:
    scope = batch.classes if head == "task_il" else range(NUM_CLASSES)
    return F.nll_loss(logits[:, scope.start : scope.stop].log_softmax(1), labels - scope.start)


def squares(network: TwoLayers, loss_of: Callable[[TwoLayers], Tensor]) -> Vectors:
    """Return the squared gradient of a loss by parameter, in eval mode."""
    gradients = torch.autograd.grad(loss_of(network.eval()), list(network.parameters()))
    return {name: gradient**2 for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True)}


def fisher_by_hand(network: TwoLayers, task: Task, head: str = "class_il", weighted: bool = False) -> Vectors:
    """Return the mean over all samples of an epoch of the squared gradient of log p(true label)."""
    total: Vectors = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    count = 0
    for step in range(task.steps_per_epoch):
        batch = task.batch(0, step)
        for x, y in zip(batch.images.split(1), batch.labels.split(1), strict=True):
            loss_of = lambda net, x=x, y=y, batch=batch: negative_log_likelihood(net(x), y, batch, head)  # noqa: E731
            weight = float((-loss_of(network.eval()).detach()).exp()) if weighted else 1.0
            for name, square in squares(network, loss_of).items():
                total[name] += weight * square
            count += 1
    return {name: value / count for name, value in total.items()}


def unflattened(method: EWC, vectors: Mapping[str, Tensor]) -> Vectors:
    """Return F or the anchor by parameter, however it is held."""
    named = list(method.network.named_parameters())
    flat = torch.cat([vector.flatten() for vector in vectors.values()])
    parts = flat.split([value.numel() for _, value in named])
    return {name: part.view_as(value) for (name, value), part in zip(named, parts, strict=True)}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], atol=1e-6, rtol=1e-6, msg=lambda text, name=name: name + text
        )


def anchor_of(network: TwoLayers) -> Vectors:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize(("penalty", "vectors"), SHAPES)
@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_two_tasks_step_as_written_by_hand_in_every_shape_of_the_penalty(penalty: str, vectors: str, head: str) -> None:
    network, tasks = two_layers(), [make_task(index) for index in range(3)]
    expected = copy.deepcopy(network)
    method, runner = make_ewc(network, penalty=penalty, vectors=vectors, head=head)
    fisher: Vectors = {}
    anchor: Vectors = {}
    for task in tasks:
        method.before_task(task)
        for step in range(2):  # the first step of a task begins at the anchor: only the second is held back
            batch = task.batch(0, step)
            learnt = negative_log_likelihood(expected.train()(batch.images), batch.labels, batch, head)
            theta = dict(expected.named_parameters())
            held = [(fisher[name] * (theta[name] - anchor[name]) ** 2).sum() for name in fisher]
            loss = learnt + STRENGTH * sum(held, start=torch.zeros(()))
            if fisher and step == 1:
                pulls = [2 * LR * STRENGTH * fisher[name] * (theta[name] - anchor[name]).abs() for name in fisher]
                assert max(float(pull.detach().max()) for pull in pulls) > 1e-4, "too small a penalty to be seen"
            implicit = penalty == "implicit"
            gradients = torch.autograd.grad(learnt if implicit else loss, list(theta.values()))
            with torch.no_grad():
                for (name, value), gradient in zip(theta.items(), gradients, strict=True):
                    value -= LR * gradient
                    if implicit and fisher:  # argmin over v of |v - value|^2 / (2 lr) + lambda F (v - anchor)^2
                        weight = 2 * LR * STRENGTH * fisher[name]
                        assert name != "fc.weight" or weight.max() > 1e-2, "too small to tell it from an explicit step"
                        value.copy_((value + weight * anchor[name]) / (1 + weight))
            by_hand = loss if penalty == "graph" else learnt
            assert float(runner.learn(batch)) == pytest.approx(float(by_hand.detach()), abs=1e-6)
        method.after_task(task)
        new = fisher_by_hand(expected, task, head)
        fisher = {name: GAMMA * fisher[name] + new[name] for name in new} if fisher else new
        anchor = anchor_of(expected)
        assert_close(unflattened(method, method.fisher), fisher)
        assert_close(unflattened(method, method.anchor), anchor)
        assert_close(network.state_dict(), expected.state_dict())


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_the_weighted_fisher_multiplies_each_square_by_the_probability_of_its_label(head: str) -> None:
    network, task = two_layers(), make_task(1)
    method, _ = make_ewc(network, weighted=True, head=head)
    method.after_task(task)
    assert_close(method.fisher, fisher_by_hand(copy.deepcopy(network), task, head, weighted=True))


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_the_sampled_fisher_draws_labels_from_the_network_with_the_methods_own_chance(head: str) -> None:
    network, task = two_layers(), make_task(1)
    twin, rng, seen = copy.deepcopy(network), np.random.default_rng(0), []
    parts = []
    for step in range(2):
        batch = task.batch(0, step)
        noise = torch.tensor(rng.gumbel(size=(4, NUM_CLASSES)).astype(np.float32))
        scores = twin.eval()(batch.images) + noise
        scope = batch.classes if head == "task_il" else range(NUM_CLASSES)
        labels = scores[:, scope.start : scope.stop].argmax(1) + scope.start
        seen += labels.tolist()
        relabelled = Batch(batch.images, labels, batch.raw, batch.positions, batch.classes, 1, 0, step)
        one_batch = Task(1, task.classes, 1, 1, 4, lambda epoch, step, batch=relabelled: batch)
        parts.append(fisher_by_hand(twin, one_batch, head))
    assert seen != [*task.batch(0, 0).labels.tolist(), *task.batch(0, 1).labels.tolist()]
    method, _ = make_ewc(network, fisher="sampled", head=head)
    method.after_task(task)
    assert_close(method.fisher, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})


def test_labels_are_drawn_as_often_as_the_network_thinks_them_likely() -> None:
    method, _ = make_ewc(two_layers(), fisher="sampled")
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0]).expand(20_000, -1)
    noise = torch.tensor(method.context.rng.gumbel(size=logits.shape).astype(np.float32))
    likelihood = logits[0].softmax(0)
    entropy = float(-(likelihood * likelihood.log()).sum())
    found = float(method.negative_log_likelihood(Outputs(logits), noise, range(2)))
    assert found == pytest.approx(entropy, abs=0.03)  # the mean of -log p(y) over y drawn from p; uniform y: 2.1


def test_the_batched_fisher_squares_the_mean_gradient_of_each_batch_and_weights_batches_by_size() -> None:
    network = two_layers()
    sizes = (4, 2)
    task = Task(0, range(2), 1, 2, 6, lambda epoch, step: make_batch(0, step, sizes[step]))
    method, _ = make_ewc(network, fisher="batched")
    method.after_task(task)
    twin, expected = copy.deepcopy(network), dict[str, Tensor]()
    for step, size in enumerate(sizes):
        batch = task.batch(0, step)
        for name, square in squares(twin, lambda net, b=batch: F.cross_entropy(net(b.images), b.labels)).items():
            expected[name] = expected.get(name, torch.zeros_like(square)) + size / 6 * square
    assert_close(method.fisher, expected)


@pytest.mark.parametrize(("samples", "batches"), [(1, 1), (4, 1), (5, 2), (0, 2), (99, 2)])
def test_fisher_samples_takes_the_first_of_the_epoch_and_no_batch_more(samples: int, batches: int) -> None:
    network, asked, whole = two_layers(), list[tuple[int, int]](), make_task(0)

    def batch(epoch: int, step: int) -> Batch:
        asked.append((epoch, step))
        return whole.batch(epoch, step)

    method, _ = make_ewc(network, fisher_samples=samples)
    method.after_task(Task(0, range(2), 1, 2, 8, batch))
    assert asked == [(0, step) for step in range(batches)]

    taken = min(samples or 8, 8)
    firsts = [whole.batch(0, step) for step in range(2)]
    images, labels = torch.cat([b.images for b in firsts])[:taken], torch.cat([b.labels for b in firsts])[:taken]
    one = Batch(images, labels, firsts[0].raw, firsts[0].positions, range(2), 0, 0, 0)
    expected = fisher_by_hand(copy.deepcopy(network), Task(0, range(2), 1, 1, taken, lambda epoch, step: one))
    assert_close(method.fisher, expected)


@pytest.mark.parametrize("rule", ["empirical", "sampled", "batched"])
def test_consolidating_moves_neither_weights_nor_running_statistics(rule: str) -> None:
    network = two_layers()
    before = copy.deepcopy(network.state_dict())
    method, _ = make_ewc(network, fisher=rule)
    method.after_task(make_task(0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("vectors", ["per_parameter", "flattened"])
def test_the_state_is_two_copies_of_the_parameters_from_the_end_of_the_first_task_on(vectors: str) -> None:
    network = two_layers()
    method, runner = make_ewc(network, vectors=vectors)
    parameter_bytes = sum(value.numel() * 4 for value in network.parameters())
    runner.learn(make_batch())
    assert declared(method) == {"method_state": 0}
    method.after_task(make_task(0))
    held = [tensor.data_ptr() for tensor in method.memory_roles()["method_state"]]
    runner.learn(make_batch(1))
    method.after_task(make_task(1))
    assert declared(method) == {"method_state": 2 * parameter_bytes}
    assert [tensor.data_ptr() for tensor in method.memory_roles()["method_state"]] == held, "both are updated in place"


@pytest.mark.parametrize(("penalty", "vectors"), SHAPES)
def test_a_reloaded_state_goes_on_where_it_was(penalty: str, vectors: str) -> None:
    networks = [two_layers()]
    method, runner = make_ewc(networks[0], penalty=penalty, vectors=vectors)
    runner.learn(make_batch())
    assert method.state_dict() == {"fisher": {}, "anchor": {}}
    method.after_task(make_task(0))
    networks.append(copy.deepcopy(networks[0]))
    reloaded, other = make_ewc(networks[1], penalty=penalty, vectors=vectors)
    reloaded.load_state_dict(copy.deepcopy(method.state_dict()))
    for learner, consolidator in ((runner, method), (other, reloaded)):
        for step in range(2):
            learner.learn(make_batch(1, step))
        consolidator.after_task(make_task(1))
        learner.learn(make_batch(2))
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


@pytest.mark.parametrize("vectors", ["per_parameter", "flattened"])
def test_an_implicit_step_is_stable_for_a_strength_that_an_explicit_one_diverges_with(vectors: str) -> None:
    ends = {}
    for penalty in ("inplace", "implicit"):
        network = two_layers()
        method, runner = make_ewc(network, penalty=penalty, vectors=vectors, strength=1e5)
        method.after_task(make_task(0))
        stiff = {name: value > 1e-3 for name, value in unflattened(method, method.fisher).items()}
        assert any(bool(where.any()) for where in stiff.values())
        start = anchor_of(network)
        for step in range(8):
            runner.learn(make_batch(1, step % 2))
        ends[penalty] = max(
            float((value - start[name])[stiff[name]].abs().max().nan_to_num(torch.inf))
            for name, value in anchor_of(network).items()
            if stiff[name].any()
        )
    assert ends["implicit"] < 0.01
    assert ends["inplace"] > 1e3


def test_no_strength_is_plain_sgd() -> None:
    networks = two_layers(), two_layers()
    held, holding = make_ewc(networks[0], strength=0.0)
    _, plain = make_method("sgd", networks[1], {"lr": LR})
    holding.learn(make_batch(0))
    plain.learn(make_batch(0))
    held.after_task(make_task(0))
    for step in range(2):
        assert torch.equal(holding.learn(make_batch(1, step)), plain.learn(make_batch(1, step)))
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


def test_weighting_single_samples_is_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"weighted=true .* fisher='batched'"):
        make_ewc(two_layers(), weighted=True, fisher="batched")


@pytest.mark.parametrize(
    ("stream", "strength", "lr"),
    [
        ("split-cifar10", 10, 0.03),
        ("synthetic-cifar10", 10, 0.03),
        ("split-tinyimagenet", 25, 0.03),
        ("synthetic-tinyimagenet", 25, 0.03),
        ("split-fashion-mini", 1e4, 0.03),
        ("split-fashion-mnist", 1e4, 0.03),
    ],
)
def test_the_strength_is_tuned_by_stream(stream: str, strength: float, lr: float) -> None:
    config = method_config(RunSpec(method="ewc", stream=stream)).model_dump()
    assert (config["strength"], config["gamma"], config["lr"]) == (strength, 1.0, lr)
