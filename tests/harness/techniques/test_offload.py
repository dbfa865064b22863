"""What moves between a device and the host: on a machine without a device, the host stands for both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clmem.harness.answers.prediction import predict
from clmem.harness.errors import UsageError
from clmem.harness.memory.watching.observer import Observer
from clmem.harness.runs.checks import check_spec
from clmem.harness.specs.run import RunSpec
from clmem.harness.techniques.parts.offload import Offload


class Marks:
    """Sets marks in no log."""

    def mark(self) -> int:
        return 0


def gradients(offload: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights' gradients and what was packed, of a network whose maps are large enough to move."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4))
    images, packed = torch.randn(16, 3, 20, 20), []
    network(images)
    hooks = Offload()
    original = hooks.pack_hook

    def pack(tensor: Tensor) -> object:
        found = original(tensor)
        packed.append(found)
        return found

    hooks.pack_hook = pack
    if offload:
        with hooks:
            loss = network(images).square().sum()
    else:
        loss = network(images).square().sum()
    loss.backward()
    return [p.grad for p in network.parameters() if p.grad is not None], packed


def test_gradients_are_the_same_bit_for_bit_and_weights_stay_where_they_are() -> None:
    (plain, _), (moved, packed) = gradients(False), gradients(True)
    assert all(torch.equal(one, other) for one, other in zip(plain, moved, strict=True))
    on_host = [item for item in packed if not isinstance(item, Tensor)]
    stayed = [item for item in packed if isinstance(item, Tensor)]
    assert on_host
    assert any(isinstance(item, nn.Parameter) for item in stayed)
    assert all(item.nbytes < 2**16 or isinstance(item, nn.Parameter) for item in stayed)


def test_activations_on_the_host_are_reported_there_at_their_highest() -> None:
    """The device is `meta` here, so everything that really exists lies elsewhere."""
    observer = Observer(Marks(), device="meta")
    first, second = torch.empty(1000), torch.empty(500)
    observer.saves(first)
    observer.saves(second)
    del first
    observer.saves(third := torch.empty(100))
    assert observer.records.elsewhere == {"activations": 6000}
    assert observer.records.saved == []
    del second, third


@pytest.mark.parametrize("execution", ["offload", "replay_place=host"])
def test_on_the_cpu_there_is_nowhere_to_move_to(execution: str) -> None:
    with pytest.raises(UsageError, match="target cpu is the host"):
        check_spec(RunSpec(method="er", width=4, execution=execution))


def test_slots_that_a_method_does_not_have_cannot_be_stored_otherwise() -> None:
    with pytest.raises(UsageError, match="about the slots of a replay buffer, and this method has none"):
        check_spec(RunSpec(method="sgd", width=4, execution="replay_dtype=float32"))


def test_what_moves_cannot_be_predicted() -> None:
    with pytest.raises(UsageError, match="measure it"):
        predict(RunSpec(method="er", stream="synthetic-cifar10", width=4, execution="offload", target="cuda"))


def test_slots_in_float32_take_four_times_the_bytes() -> None:
    held = []
    for execution in ("plain", "replay_dtype=float32"):
        spec = RunSpec(method="er", stream="synthetic-cifar10", width=4, execution=execution, buffer_size=16)
        footprint = predict(spec).footprint
        assert footprint is not None
        held.append(footprint.role_peaks["replay"])
    labels = 16 * 8
    assert held[1] - labels == 4 * (held[0] - labels) == 4 * 16 * 3 * 32 * 32
