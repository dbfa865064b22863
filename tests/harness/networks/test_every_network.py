"""Every method of ours on every network: it learns, or one sentence says why it cannot."""

from __future__ import annotations

import pytest
import torch

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.results.source import own_methods
from clmem.harness.runs.checks import check_spec
from clmem.harness.specs.run import RunSpec

WIDTHS = {
    "resnet18": 2,
    "resnet18-imagenet": 2,
    "mobilenet-v2": 2,
    "mlp": 2,
    "torchvision:mobilenet_v3_small": 64,
}
FEW: dict[str, dict[str, int]] = {"lightcl": {"memory_size": 2}, "ewc": {"fisher_samples": 2}}
NO_RESNET = ("mobilenet-v2", "mlp", "torchvision:mobilenet_v3_small")
REFUSED = {
    "pnn": NO_RESNET,
    "lightcl-sparse": NO_RESNET,
    "sparcl-er": NO_RESNET,
    "sparcl-derpp": NO_RESNET,
    "lightcl": ("torchvision:mobilenet_v3_small",),
}


@pytest.mark.parametrize("network", WIDTHS)
@pytest.mark.parametrize("method", sorted(own_methods()))
def test_a_method_learns_or_says_why_it_cannot(method: str, network: str) -> None:
    spec = RunSpec(
        method=method, network=network, width=WIDTHS[network], stream="synthetic-32px", batch_size=4, buffer_size=4,
        replay_size=2, steps_per_task=1, config=FEW.get(method.partition("-")[0], {}),
    )  # fmt: skip
    if network in REFUSED.get(method, ()):
        with pytest.raises(UsageError) as refused:
            check_spec(spec)
        said = str(refused.value)
        assert "\n" not in said
        assert "Error" not in said
        assert f"method {method!r} cannot be set up like this: " in said
        return
    run = build(spec, Unwatched())
    for index in range(min(2, run.stream.num_train_tasks)):
        task = run.stream.train_task(index)
        run.method.before_task(task)
        run.runner.learn(task.batch(0, 0))
        run.method.after_task(task)
    for name, parameter in run.method.network.named_parameters():
        assert torch.isfinite(parameter).all(), name
