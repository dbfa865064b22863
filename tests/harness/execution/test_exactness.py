"""Lean techniques leave what is computed as it is, for every method, or are refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.execution.monitor import Unwatched
from harness.execution.step import Execution
from harness.networks import ResNet18
from harness.registry import method_class, method_names
from harness.techniques import Segments, Techniques
from methods.base import Batch, Method, Task
from tests.methods.toys import NUM_CLASSES, another, make_batch, make_setting

NAMES = method_names()
SIDE = 16
TECHNIQUES: dict[str, dict[str, Any]] = {
    "trunk_chunk": {"trunk_chunk": 3},
    "optimizer_in_backward": {"optimizer_in_backward": True},
    "checkpoint=block": {"checkpoint": "block"},
    "checkpoint=stage": {"checkpoint": "stage"},
    "checkpoint=nested": {"checkpoint": "nested"},
    "checkpoint=convolution": {"checkpoint": "convolution"},
    "checkpoint=deep": {"checkpoint": "deep"},
    "backward=termwise": {"backward": "termwise"},
    "grouped_bn": {"grouped_bn": True},
    "conv_slice": {"conv_slice": 3},
    "inplace_relu": {"inplace_relu": True},
    "all": {
        "trunk_chunk": 3,
        "optimizer_in_backward": True,
        "checkpoint": "deep",
        "grouped_bn": True,
        "conv_slice": 3,
        "inplace_relu": True,
    },
}
REFUSED = {("pnn", f"checkpoint={kind}") for kind in get_args(Segments) if kind != "none"} | {("pnn", "all")}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normalise(raw: Tensor, rng: np.random.Generator) -> Tensor:
    return raw.to(torch.float64) / 128 - 1


def double_batch(task: int, step: int) -> Batch:
    batch = make_batch(task, step, size=8, side=SIDE)
    return Batch(**{**vars(batch), "images": batch.images.double()})


def tiny_resnet() -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet18(NUM_CLASSES, width=4)


def learn(name: str, techniques: Techniques, steps: int, config: dict[str, Any] | None = None) -> Method:
    """Return the method after two tasks of `steps` steps each in float64."""
    cls, network = method_class(name), tiny_resnet()
    execution = Execution(Unwatched(), techniques)
    setting = make_setting(
        network,
        executor=execution,
        image_shape=(3, SIDE, SIDE),
        batch_size=8,
        buffer_size=8,
        replay_size=5,
        augment=normalise,
        new_network=partial(another, copy.deepcopy(network)),
    )
    values = {"memory_size": 5} if name.startswith("lightcl") else {}
    method = cls(setting, cls.Config.model_validate({**values, **(config or {})}))
    execution.attach(method)
    for index in range(2):
        classes = range(2 * index, 2 * index + 2)
        task = Task(index, classes, 1, steps, steps * 8, lambda epoch, step, index=index: double_batch(index, step))
        method.before_task(task)
        for step in range(steps):
            execution.learn(task.batch(0, step))
        method.after_task(task)
    assert all(parameter.grad is None for parameter in method.network.parameters())
    return method


@cache
def learnt_plainly(name: str) -> Method:
    return learn(name, Techniques(), steps=5)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_lead_to_the_same_weights_and_running_statistics(name: str, technique: str) -> None:
    techniques = Techniques(**TECHNIQUES[technique])
    if (name, technique) in REFUSED:
        with pytest.raises(ValueError, match="cannot be used with it"):
            learn(name, techniques, steps=1)
        return
    plain, lean = learnt_plainly(name), learn(name, techniques, steps=5)
    for (key, expected), found in zip(
        plain.network.state_dict().items(), lean.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    images = double_batch(0, 0).images
    torch.testing.assert_close(lean.predict(images, 0), plain.predict(images, 0), atol=1e-9, rtol=0)
