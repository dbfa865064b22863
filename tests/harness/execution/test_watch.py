"""What a loss watches is what the module returned, however the network is run; or that is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.specs.techniques import techniques
from clmem.methods.base import Batch, Method, Outputs, Step, Term, Trunk
from tests.harness.execution.test_exactness import double_batch, tiny_resnet
from tests.methods.toys import make_context


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class OnlyMaps(Method):
    """Two terms whose losses look at a map and at no logits."""

    name = "only-maps"
    watched = "layer4.0"

    def terms(self, batch: Batch) -> Iterable[Step]:
        def loss(outputs: Outputs) -> torch.Tensor:
            return outputs.maps[self.watched].square().mean()

        yield [Term(images, loss, (), watch=(self.watched,)) for images in (batch.images, batch.images[:3] * 2)]


def learnt(technique: str, watched: str = "layer4.0", boundary: str | None = None) -> dict[str, torch.Tensor]:
    network = tiny_resnet()
    prepared = PreparedNetwork(Unwatched(), techniques(technique, {}))
    method = OnlyMaps(make_context(network, runner=prepared), OnlyMaps.Config(lr=0.1))
    method.watched, method.trunk = watched, boundary and Trunk(boundary)  # type: ignore[assignment]
    prepared.attach(method)
    runner = StepRunner(prepared)
    for step in range(2):
        runner.learn(double_batch(0, step))
    return network.state_dict()


@pytest.mark.parametrize(
    "technique",
    [
        "grouped_bn",
        "checkpoint=block",
        "inplace_relu",
        "inplace_sum",
        "relu_masks",
        "backward=termwise",
    ],
)
def test_losses_on_maps_alone_lead_to_the_same_weights(technique: str) -> None:
    plain, lean = learnt("plain"), learnt(technique)
    assert all(torch.allclose(plain[name], lean[name], rtol=0, atol=1e-9) for name in plain)


@pytest.mark.parametrize(
    ("technique", "watched", "boundary", "reason"),
    [
        ("inplace_relu", "layer4.0.bn1", None, "inplace_relu and inplace_sum overwrite"),
        ("checkpoint=convolution", "layer4.0", None, "did not run as one"),
        ("trunk_chunk=2", "layer2.0", "layer3", "ran more than once"),
        ("grouped_bn", "layer2.0", "layer3", "ran more than once"),
        ("plain", "layer4.2", None, "is not part of the network: did you mean 'layer4.1'"),
    ],
)
def test_what_cannot_be_watched_is_refused(technique: str, watched: str, boundary: str | None, reason: str) -> None:
    with pytest.raises(ClmemError, match=reason):
        learnt(technique, watched, boundary)
