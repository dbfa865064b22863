"""What an observer notes of tensors, on tensors whose sizes are put down by hand."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from clmem.harness.memory.watching.observer import Observer, PhaseMarker


class Counter:
    """A recorder that only counts its marks."""

    def __init__(self) -> None:
        self.marks = 0

    def mark(self) -> int:
        self.marks += 1
        return self.marks - 1


def floats(count: int, device: str = "cpu") -> Tensor:
    """Return a tensor of 4 * count bytes."""
    return torch.zeros(count, device=device)


def declared(**state: list[Tensor]) -> dict[str, int]:
    """Return the bytes that a look before a phase declares, by role, without those that have none."""
    observer = Observer(Counter())
    observer.attach_state(lambda: state)
    with observer.phase("step", 0):
        pass
    ((_, found),) = observer.records.declared
    return {role: nbytes for role, nbytes in found.items() if nbytes}


def test_every_kept_role_is_declared_with_its_bytes() -> None:
    roles = ("parameters", "module_buffers", "optimizer", "method_state", "replay")
    expected = {role: 4 * (number + 1) for number, role in enumerate(roles)}
    assert declared(**{role: [floats(number + 1)] for number, role in enumerate(roles)}) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("parameters", "module_buffers"),
        ("module_buffers", "optimizer"),
        ("optimizer", "method_state"),
        ("method_state", "replay"),
    ],
)
def test_a_storage_under_two_roles_counts_under_the_first(first: str, second: str) -> None:
    stored = floats(10)
    assert declared(**{first: [stored], second: [stored[:3]]}) == {first: 40}
    assert declared(**{second: [stored], first: [stored.view(5, 2), stored]}) == {first: 40}


def test_what_lies_elsewhere_is_summed_at_its_highest() -> None:
    observer = Observer(Counter(), device="cpu")
    slots = [floats(5, "meta"), floats(7, "meta")]
    observer.attach_state(lambda: {"replay": [*slots, floats(2)], "method_state": [floats(3, "meta")]})
    for _ in range(2):
        with observer.phase("step", 0):
            pass
        slots.pop()
    assert observer.records.elsewhere == {"replay": 48, "method_state": 12}
    assert [found["replay"] for _, found in observer.records.declared] == [8, 8]
    assert {seen.nbytes for seen in observer.records.observations} == {8}


def test_activations_elsewhere_are_followed_until_they_are_freed() -> None:
    observer = Observer(Counter(), device="cpu")
    kept = [floats(10, "meta"), floats(5, "meta")]
    assert [record.nbytes for record in observer.saves(*kept, floats(3))] == [12]
    assert observer.records.elsewhere == {"activations": 60}
    kept.pop(0)
    observer.saves(*(more := [floats(8, "meta")]))
    assert observer.records.elsewhere == {"activations": 60}, "20 + 32 B are less"
    observer.saves(*(most := [floats(4, "meta")]))
    assert observer.records.elsewhere == {"activations": 68}
    del more, most


def test_a_backward_begins_when_autograd_first_reads_what_it_saved() -> None:
    observer = Observer(Counter())
    weight = torch.ones(3, requires_grad=True)
    with observer.watching():
        for _ in range(2):
            (weight * weight).square().sum().backward()
    assert len(observer.records.backwards) == 2
    ends = [record.end for record in observer.records.saved]
    assert None not in ends
    assert all(record.start < observer.records.backwards[0] for record in observer.records.saved[:2])


def test_gradients_are_seen_as_they_arrive_once_each() -> None:
    observer = Observer(Counter())
    weights = [torch.ones(size, requires_grad=True) for size in (3, 5)]
    frozen = torch.ones(7)
    observer.attach_state(lambda: {"parameters": [*weights, frozen]})
    observer.scan()
    observer.scan()
    before = len(observer.records.observations)
    (weights[0].sum() + weights[1].sum()).backward()
    arrived = observer.records.observations[before:]
    assert sorted((seen.role, seen.nbytes) for seen in arrived) == [("gradients", 12), ("gradients", 20)]


def test_a_gradient_is_seen_before_an_older_hook_drops_it() -> None:
    observer = Observer(Counter())
    weight = torch.ones(3, requires_grad=True)

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(drop)
    observer.attach_state(lambda: {"parameters": [weight]})
    observer.scan()
    weight.sum().backward()
    assert [(seen.role, seen.nbytes) for seen in observer.records.observations] == [
        ("parameters", 12),
        ("gradients", 12),
    ]
    assert weight.grad is None


def test_every_tensor_is_told_with_its_role() -> None:
    told: list[tuple[int, str]] = []
    observer = Observer(Counter(), annotate=lambda tensor, role: told.append((tensor.numel(), role)))
    observer.inputs(floats(2), floats(3))
    assert told == [(2, "input"), (3, "input")]


def test_garbage_waits_for_the_end_of_a_phase_even_of_one_that_fails() -> None:
    marker = PhaseMarker(Counter())
    with pytest.raises(RuntimeError), marker.phase("step", 3):  # noqa: PT012
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()
    (span,) = marker.records.phases
    assert (span.task, span.name, span.start, span.end) == (3, "step", 0, 1)
    marker.finish()
    assert marker.records.end == 2
    gc.unfreeze()
