"""What the method tests share: a two-layer network, hand-made batches and tasks, a method ready to learn, and the same
step written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_class, with_stages
from clmem.harness.networks.resnet18 import convolutions_of
from clmem.harness.networks.staged import Stages
from clmem.harness.specs.techniques import PLAIN, techniques
from clmem.methods.base import Batch, Convolution, Method, MethodContext, Network, Task

CLASSES_PER_TASK, NUM_TASKS = 2, 3
NUM_CLASSES = CLASSES_PER_TASK * NUM_TASKS


class TwoLayers(Network):
    """[n, 3, H, W] -> stem (4 channels) | layer4.0 (6 channels, one watched ReLU) | fc."""

    @property
    def boundaries(self) -> list[str]:
        return ["stem", "layer4.0", "fc"]

    @property
    def tail_stage(self) -> str:
        return "layer4"

    @property
    def feature_relus(self) -> list[str]:
        return ["relu", "layer4.0.relu1"]

    def closing_relu(self, stage: str) -> str | None:
        return "layer4.0.relu1" if stage == "layer4.0" else None

    def relus_in_place(self) -> None:
        for name in self.feature_relus:
            cast(nn.ReLU, self.get_submodule(name)).inplace = True

    def convolutions(self) -> list[Convolution]:
        return convolutions_of(self)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        block = nn.Sequential()
        for name, module in (
            ("conv1", nn.Conv2d(4, 6, 3, bias=False)),
            ("bn1", nn.BatchNorm2d(6)),
            ("relu1", nn.ReLU()),
        ):
            block.add_module(name, module)
        self.layer4 = nn.Sequential(block)
        self.fc = nn.Linear(6, NUM_CLASSES)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        first = 0 if start is None else self.stage_index(start)
        last = 3 if stop is None else self.stage_index(stop)
        stages = (lambda x: self.relu(self.bn1(self.conv1(x))), self.layer4, lambda x: self.fc(x.mean((2, 3))))
        for stage in stages[first:last]:
            x = stage(x)
        return x

    forward = run

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.relu, self.layer4][: (0, 3, 4)[self.stage_index(boundary)]]


def two_layers(seed: int = 0) -> TwoLayers:
    """Return the network with reproducible weights and batch-norm statistics that are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TwoLayers()
        for norm in (network.bn1, cast(nn.BatchNorm2d, network.layer4[0].bn1)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            nn.init.uniform_(cast(Tensor, norm.running_mean), -0.2, 0.2)
    return network


def another(network: Network, number: int) -> Network:
    """Return a network of the same shape whose weights depend on the number alone."""
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        for module in fresh.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
    return fresh


def normalise(raw: Tensor, rng: np.random.Generator | None = None) -> Tensor:
    """Augment without chance: what a replayed image becomes, so that a test can predict it."""
    return raw.to(torch.float32) / 128 - 1


def make_batch(task: int = 0, step: int = 0, size: int = 4, side: int = 8, seed: int = 0) -> Batch:
    """Return a batch of noise; it depends on the arguments alone. Its images are its raw ones, brightened."""
    rng = np.random.default_rng([seed, task, step])
    raw = rng.integers(0, 256, (size, 3, side, side), dtype=np.uint8)
    classes = range(CLASSES_PER_TASK * task, CLASSES_PER_TASK * (task + 1))
    labels = torch.tensor(rng.integers(classes.start, classes.stop, size))
    positions = np.arange(step * size, (step + 1) * size)
    return Batch(normalise(torch.tensor(raw)) + 0.1, labels, raw, positions, classes, task, 0, step)


def make_task(index: int, size: int = 4, side: int = 8, steps: int = 2) -> Task:
    classes = range(CLASSES_PER_TASK * index, CLASSES_PER_TASK * (index + 1))
    return Task(index, classes, 1, steps, steps * size, lambda epoch, step: make_batch(index, step, size, side))


def make_context(network: Network, **changes: Any) -> MethodContext:
    values: dict[str, Any] = {
        "network": network,
        "runner": None,
        "num_classes": NUM_CLASSES,
        "num_tasks": NUM_TASKS,
        "image_shape": (3, 8, 8),
        "batch_size": 4,
        "buffer_size": 4,
        "replay_size": 4,
        "device": "cpu",
        "rng": np.random.default_rng(0),
        "augment": normalise,
        "new_network": partial(another, network),
    }
    return MethodContext(**{**values, **changes})


def make_method(
    name: str,
    network: Network,
    config: Mapping[str, object] | None = None,
    technique: str = PLAIN,
    **changes: Any,
) -> tuple[Method, StepRunner]:
    """Return the registered method on the network, and the execution that carries it out.

    A memory larger than the toys' batch of 4 would be refused, so LightCL takes 3 images unless told otherwise.
    """
    if name.startswith("lightcl"):
        config = {"memory_size": 3, **(config or {})}
    prepared = PreparedNetwork(Unwatched(), techniques(technique, {}))
    cls = method_class(name)
    stages = Stages(tuple(network.boundaries), network.tail_stage)
    settings = with_stages(cls.Config.model_validate(config or {}), cls, stages)
    method = cls(make_context(network, runner=prepared, **changes), settings)
    prepared.attach(method)
    return method, StepRunner(prepared)


def run_task(method: Method, runner: StepRunner, index: int, **shape: int) -> None:
    """Run one whole task."""
    task = make_task(index, **shape)
    method.before_task(task)
    for step in range(task.steps_per_epoch):
        runner.learn(task.batch(0, step))
    method.after_task(task)


def declared(method: Method) -> dict[str, int]:
    """Return the declared bytes by role."""
    return {role: sum(t.untyped_storage().nbytes() for t in tensors) for role, tensors in method.memory_roles().items()}


def step_by_hand(network: TwoLayers, lr: float, loss_of: Callable[[TwoLayers], Tensor]) -> float:
    """Do theta <- theta - lr dL/dtheta and return L."""
    loss = loss_of(network.train())
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= lr * gradient
    return float(loss.detach())


def assert_same(network: TwoLayers, expected: TwoLayers) -> None:
    """Compare weights and running statistics."""
    for (name, tensor), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def slice_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy over the logits of the batch's task."""
    start, stop = batch.classes.start, batch.classes.stop
    return F.cross_entropy(logits[:, start:stop], batch.labels - start)


def tail(net: TwoLayers, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (features, logits) with the trunk in eval mode and without gradients."""
    for module in (net.conv1, net.bn1):
        module.eval()
    with torch.no_grad():
        x = net.relu(net.bn1(net.conv1(images)))
    features = net.layer4(x)
    return features, net.fc(features.mean((2, 3)))
