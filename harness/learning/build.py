"""Puts a run together: stream, network, execution, method and optimizer, each from the spec alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Monitor
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_class, method_config
from clmem.harness.networks.registry import build_network
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources, weights_label
from clmem.harness.specs.targets import allocator_of, device_of
from clmem.harness.specs.techniques import techniques
from clmem.harness.streams import open_stream
from clmem.harness.streams.stream import TaskStream
from clmem.methods.base import Method, MethodContext, Network


@dataclass(frozen=True)
class Run:
    """Everything one pass is made of. weights: one line about what was loaded, None when they were drawn."""

    stream: TaskStream
    method: Method
    runner: StepRunner
    weights: str | None = None


def build(
    spec: RunSpec,
    monitor: Monitor,
    sources: Sources = NOWHERE,
    stream: TaskStream | None = None,
    device: str | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> Run:
    """Open the stream and make network, method and optimizer. Raises UsageError if the spec asks for something
    that does not exist.

    stream: used instead of the spec's. device: where network, batches and the method's state lie, if not on the spec's
    target. kept: the channels that are kept when others are removed, where the network's weights have no values to
    choose them by.
    """
    device = device or device_of(spec.target)
    cls, config = method_class(spec.method), method_config(spec)
    stream = stream or open_stream(
        spec.stream,
        seed=spec.seed,
        batch_size=spec.batch_size,
        epochs=spec.epochs,
        steps_per_task=spec.steps_per_task,
        device=device,
        data_root=sources.data_root,
        joint=cls.joint,
        validate=spec.evaluate_on == "validation",
        num_classes=spec.num_classes,
        image_size=spec.image_size,
    )
    new_network = partial(
        build_network,
        spec.network,
        num_classes=stream.num_classes,
        width=spec.width,
        image_shape=stream.image_shape,
    )
    network = new_network(seed=spec.seed)
    if device != "meta":  # there is nothing to move to it: whoever builds for it draws no weights
        network = network.to(device)
    weights = None if spec.weights is None else _load_weights(network, spec.weights, sources)
    chosen = techniques(spec.execution, cls.lean)
    if chosen.moves and allocator_of(spec.target) == "cpu":
        raise UsageError(f"{chosen.moves[0]} moves memory from a device to the host, and target cpu is the host")
    prepared = PreparedNetwork(monitor, chosen, kept)
    context = MethodContext(
        network=network,
        runner=prepared,
        num_classes=stream.num_classes,
        num_tasks=stream.num_tasks,
        image_shape=stream.image_shape,
        batch_size=spec.batch_size,
        buffer_size=spec.buffer_size,
        replay_size=spec.replay_size,
        device=device,
        # A generator of the method's own: what it draws never moves the stream or the initial weights.
        rng=np.random.default_rng([spec.seed, *b"method"]),
        augment=stream.augment,
        new_network=lambda number: new_network(seed=_network_seed(spec.seed, number)),
        pretrained=spec.weights is not None,
        replay_device="cpu" if chosen.replay_place == "host" else device,
        replay_dtype=getattr(torch, chosen.replay_dtype),
        shapes_only=device == "meta",
    )
    method = cls(context, config)
    prepared.attach(method)
    return Run(stream, method, StepRunner(prepared), weights)


def _network_seed(seed: int, number: int) -> int:
    """Return the seed of a run's further network, which no run's first network has."""
    return int(np.random.SeedSequence([seed, number, *b"network"]).generate_state(1, np.uint64)[0]) >> 1


def _load_weights(network: Network, label: str, sources: Sources) -> str:
    from clmem.harness.networks.weights import load_weights

    if sources.weights is None:
        raise UsageError(f"the run starts from the weights {label!r}, so their file is needed (--weights FILE)")
    found = weights_label(sources.weights)
    if found != label:
        raise UsageError(
            f"{sources.weights} is {found!r} but the run starts from {label!r}; give the file it began with"
        )
    # a head trained on the classes that a stream brings task by task would know the answers
    return load_weights(network, Path(sources.weights), head=False).describe()
