"""Puts a run together: stream, network, execution, method and optimizer, each from the spec alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.execution import Execution, Monitor
from harness.networks import build_network
from harness.registry import method_class, method_config
from harness.spec import RunSpec
from harness.streams import open_stream
from harness.streams.stream import TaskStream
from methods.base import Method, Setting


@dataclass(frozen=True)
class Run:
    """Everything one pass is made of."""

    stream: TaskStream
    method: Method
    execution: Execution


def build(spec: RunSpec, monitor: Monitor, data_root: str | None = None) -> Run:
    """Open the stream and make network, method and optimizer. Raises UsageError for what the spec asks in vain."""
    cls, config = method_class(spec.method), method_config(spec)
    stream = open_stream(
        spec.stream,
        seed=spec.seed,
        batch_size=spec.batch_size,
        epochs=spec.epochs,
        steps_per_task=spec.steps_per_task,
        data_root=data_root,
        joint=cls.joint,
    )
    network = build_network(spec.network, num_classes=stream.num_classes, width=spec.width, seed=spec.seed)
    execution = Execution(monitor)
    setting = Setting(
        network=network,
        executor=execution,
        num_classes=stream.num_classes,
        num_tasks=stream.num_tasks,
        image_shape=stream.image_shape,
        batch_size=spec.batch_size,
        buffer_size=spec.buffer_size,
        replay_size=spec.replay_size,
        device="cpu",
        # A generator of the method's own: what it draws never moves the stream or the initial weights.
        rng=np.random.default_rng([spec.seed, *b"method"]),
        augment=stream.augment,
        new_network=lambda number: build_network(
            spec.network, num_classes=stream.num_classes, width=spec.width, seed=_network_seed(spec.seed, number)
        ),
    )
    method = cls(setting, config)
    execution.attach(method)
    return Run(stream, method, execution)


def _network_seed(seed: int, number: int) -> int:
    """Return the seed of a run's further network, which no run's first network has."""
    return int(np.random.SeedSequence([seed, number, *b"network"]).generate_state(1, np.uint64)[0]) >> 1
