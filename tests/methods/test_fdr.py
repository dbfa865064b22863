"""FDR next to its two steps written out by hand, and the buffer that its tasks share."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clmem.harness.execution.step import StepRunner
from clmem.methods.base import Outputs, Task
from clmem.methods.fdr import FDR
from clmem.methods.parts.task_buffer import TaskBuffer
from tests.methods.toys import (
    NUM_CLASSES,
    TwoLayers,
    declared,
    make_batch,
    make_context,
    make_method,
    make_task,
    normalise,
    two_layers,
)

LR, ALPHA = 0.1, 0.7


def make_fdr(network: TwoLayers, slots: int = 4, replay: int = 4, **config: object) -> tuple[FDR, StepRunner]:
    settings = {"lr": LR, "alpha": ALPHA, **config}
    method, runner = make_method("fdr", network, settings, buffer_size=slots, replay_size=replay)
    return cast(FDR, method), runner


def step_by_hand(network: TwoLayers, loss: Tensor) -> float:
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= LR * gradient
    return float(loss.detach())


def assert_same(network: TwoLayers, expected: TwoLayers) -> None:
    for (name, tensor), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("head", ["class_il", "task_il"])
def test_fdr_takes_two_optimizer_steps_the_second_towards_the_probabilities_it_had_in_eval_mode(head: str) -> None:
    network, old, new = two_layers(), make_task(0), make_task(1)
    expected = copy.deepcopy(network)
    method, runner = make_fdr(network, head=head)

    def learn(images: Tensor, labels: Tensor, classes: range) -> float:
        scope = classes if head == "task_il" else range(NUM_CLASSES)
        logits = expected.train()(images)[:, scope.start : scope.stop]
        return step_by_hand(expected, F.cross_entropy(logits, labels - scope.start))

    first = old.batch(0, 0)
    assert float(runner.learn(first)) == pytest.approx(learn(first.images, first.labels, old.classes), abs=1e-6)
    assert_same(network, expected)  # nothing is stored yet: one step

    method.after_task(old)
    z = expected.eval()(first.images).detach()  # four slots: the first batch, as it was augmented then
    replayed = normalise(torch.tensor(first.raw))  # its raw images, augmented again
    for step in range(2):
        batch = new.batch(0, step)
        learn(batch.images, batch.labels, new.classes)
        distances = (expected.train()(replayed).softmax(1) - z.softmax(1)).pow(2).sum(1).sqrt()
        assert float(distances.detach().mean()) > 1e-3
        by_hand = step_by_hand(expected, ALPHA * distances.mean())
        assert float(runner.learn(batch)) == pytest.approx(by_hand, abs=1e-6)
        assert_same(network, expected)


def test_the_first_steps_tensors_are_gone_before_anything_is_drawn_for_the_second() -> None:
    method, runner = make_fdr(two_layers())
    runner.learn(make_batch(0))
    method.after_task(make_task(0))
    state = method.context.rng.bit_generator.state
    steps = iter(method.terms(make_batch(1)))
    first = next(steps)
    assert [term.images.shape[0] for term in first] == [4]
    assert method.context.rng.bit_generator.state == state, "a draw before the first step would live through it"
    assert not any(isinstance(value, Tensor) for value in steps.gi_frame.f_locals.values())  # type: ignore[attr-defined]
    second = next(steps)
    assert not any(isinstance(value, Tensor) for value in steps.gi_frame.f_locals.values())  # type: ignore[attr-defined]
    assert [term.images.shape[0] for term in second] == [4]
    assert list(steps) == []


@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["soft", "saturated"])
def test_the_distance_has_no_gradient_where_nothing_changed_rather_than_nan(scale: float) -> None:
    method, _ = make_fdr(two_layers())
    z = scale * torch.randn(5, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    logits = z.clone().requires_grad_()
    distance = method.distance(Outputs(logits), z)
    (gradient,) = torch.autograd.grad(distance, logits)
    assert float(distance.detach()) == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_distance_is_the_mean_norm_and_its_gradient_is_finite_for_the_smallest_changes() -> None:
    method, _ = make_fdr(two_layers(), alpha=0.5)
    z = torch.tensor([[0.0, 0, 0, 0, 0, 0], [3.0, 0, 0, 0, 0, 0]])
    for change in (1.0, 1e-3, 1e-7, 1e-20, 1e-38):
        logits = (z + change * torch.eye(2, NUM_CLASSES)).requires_grad_()
        distance = method.distance(Outputs(logits), z)
        norms = [float((a.softmax(0) - b.softmax(0)).norm()) for a, b in zip(logits.detach(), z, strict=True)]
        assert float(distance.detach()) == pytest.approx(0.5 * sum(norms) / 2)
        assert bool(torch.autograd.grad(distance, logits)[0].isfinite().all())


@settings(max_examples=60, deadline=None)
@given(slots=st.integers(1, 30), num_tasks=st.integers(1, 9), batch_size=st.integers(1, 7))
def test_after_task_t_each_task_holds_a_t_plus_first_of_the_slots_and_no_sample_moves(
    slots: int, num_tasks: int, batch_size: int
) -> None:
    method, _ = make_fdr(two_layers(), slots=slots)
    steps = -(-slots // batch_size)
    held: dict[int, set[tuple[int, float]]] = {}
    addresses: list[int] = []
    for index in range(num_tasks):

        def batch(epoch: int, step: int, index: int = index) -> object:
            return make_batch(index % 3, step, batch_size, seed=index)

        method.after_task(Task(index, range(2), 1, steps, steps * batch_size, batch))  # type: ignore[arg-type]
        quota = slots // (index + 1)
        buffer = method.buffer
        assert len(buffer) == quota * (index + 1) <= slots
        addresses = addresses or [tensor.data_ptr() for tensor in buffer.tensors()]
        assert [tensor.data_ptr() for tensor in buffer.tensors()] == addresses
        now = {
            task: {(slot, float(buffer.logits[slot].sum())) for slot in buffer.filled if buffer.tasks[slot] == task}
            for task in range(index + 1)
        }
        assert all(len(samples) == quota for samples in now.values())
        assert all(now[task] <= samples for task, samples in held.items()), "an old sample changed or moved"
        assert int((buffer.tasks == -1).sum()) == slots - len(buffer)
        held = now


def test_the_samples_of_a_new_task_are_the_first_of_its_epoch_raw_with_their_logits() -> None:
    network = two_layers()
    method, _ = make_fdr(network, slots=6)
    method.after_task(make_task(0))
    batches = [make_batch(0, step) for step in range(2)]
    raw = torch.cat([torch.tensor(batch.raw) for batch in batches])[:6]
    logits = network.eval()(torch.cat([batch.images for batch in batches]))[:6]
    assert torch.equal(method.buffer.images, raw)
    torch.testing.assert_close(method.buffer.logits, logits.detach(), atol=1e-6, rtol=1e-6)
    assert method.buffer.tasks.tolist() == [0] * 6


def test_a_task_with_fewer_samples_than_its_share_gives_all_it_has() -> None:
    method, _ = make_fdr(two_layers(), slots=50)
    method.after_task(make_task(0))
    method.after_task(make_task(1))
    assert [int((method.buffer.tasks == task).sum()) for task in range(2)] == [8, 8]


def test_consolidating_moves_neither_weights_nor_running_statistics() -> None:
    network = two_layers()
    before = copy.deepcopy(network.state_dict())
    method, _ = make_fdr(network)
    method.after_task(make_task(0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("slots", [1, 7, 200])
def test_the_buffer_holds_its_bytes_in_full_from_the_end_of_the_first_task_on(slots: int) -> None:
    method, runner = make_method("fdr", two_layers(), buffer_size=slots, image_shape=(3, 32, 32))
    runner.learn(make_batch(side=32))
    assert declared(method) == {"replay": 0}
    for index in range(3):
        method.after_task(make_task(index, side=32))
        assert declared(method) == {"replay": slots * (3 * 32 * 32 + 8 + 4 * NUM_CLASSES)}


def test_a_reloaded_buffer_goes_on_where_it_was() -> None:
    networks = [two_layers()]
    method, runner = make_fdr(networks[0], slots=9, replay=3)
    assert method.state_dict() == {"buffer": {"slots": []}}
    for index in range(2):
        runner.learn(make_batch(index))
        method.after_task(make_task(index))
    networks.append(copy.deepcopy(networks[0]))
    reloaded, other = make_fdr(networks[1], slots=9, replay=3)
    reloaded.load_state_dict(copy.deepcopy(method.state_dict()))
    reloaded.context.rng.bit_generator.state = method.context.rng.bit_generator.state
    for learner, consolidator in ((runner, method), (other, reloaded)):
        learner.learn(make_batch(2))
        consolidator.after_task(make_task(2))
        learner.learn(make_batch(2, 1))
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(method.buffer.tensors(), reloaded.buffer.tensors(), strict=True))


def numbered_buffer(slots: int) -> TaskBuffer:
    """Return a full buffer of two tasks in which image and logits of a slot say its number."""
    buffer = TaskBuffer(make_context(nn.Identity(), image_shape=(1, 2, 2), num_classes=2), slots)
    for task, numbers in enumerate(np.array_split(np.arange(slots), 2)):
        raw = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (len(numbers), 1, 2, 2)).copy()
        buffer.add(raw, torch.tensor(numbers).float()[:, None].expand(-1, 2), task)
    return buffer


@pytest.mark.parametrize(("asked", "given_"), [(0, 0), (3, 3), (6, 6), (9, 6)])
def test_a_draw_is_without_replacement_from_filled_slots_and_keeps_samples_whole(asked: int, given_: int) -> None:
    buffer = numbered_buffer(10)
    buffer.keep(3)
    for _ in range(20):
        images, logits = buffer.draw(asked)
        numbers = logits[:, 0].tolist()
        assert len(numbers) == len(set(numbers)) == given_
        assert set(numbers) <= {0, 1, 2, 5, 6, 7}
        assert torch.equal(images[:, 0, 0, 0], logits[:, 0] / 128 - 1)


def test_more_samples_than_free_slots_are_refused() -> None:
    buffer = numbered_buffer(10)
    buffer.keep(4)
    with pytest.raises(ValueError, match=r"3 samples of task 2 do not fit into 2 free slots of 10"):
        buffer.add(np.zeros((3, 1, 2, 2), np.uint8), torch.zeros(3, 2), 2)
