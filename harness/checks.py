"""Refuses a run that cannot work before any process is started."""

from __future__ import annotations

import torch

from harness.errors import UsageError, nearest
from harness.networks import build_network
from harness.registry import method_class, method_config
from harness.spec import TARGETS, RunSpec
from harness.streams import open_stream, prepare


def check_spec(spec: RunSpec, data_root: str | None = None) -> None:
    """Raise UsageError, one sentence, for anything in a spec that cannot be carried out; fetch its data if need be."""
    cls, config = method_class(spec.method), method_config(spec)
    if spec.target not in TARGETS:
        raise UsageError(f"there is no target {spec.target!r}: {nearest(spec.target, list(TARGETS))}")
    if cls.uses_buffer and (spec.buffer_size == 0 or spec.replay_size == 0):
        raise UsageError(
            f"method {spec.method!r} replays samples, so buffer size {spec.buffer_size} with {spec.replay_size} "
            "replayed per step cannot work; give both at least 1 (--buffer-size, --replay-size)"
        )
    prepare(spec.stream, data_root)
    stream = open_stream(
        spec.stream,
        seed=spec.seed,
        batch_size=spec.batch_size,
        epochs=spec.epochs,
        steps_per_task=spec.steps_per_task,
        data_root=data_root,
        joint=cls.joint,
    )
    with torch.device("meta"):
        network = build_network(spec.network, num_classes=stream.num_classes, width=spec.width, seed=spec.seed)
    boundary = getattr(config, "boundary", None)
    if boundary is not None and network.stage_index(boundary) == 0:
        raise UsageError(f"boundary {boundary!r} leaves no trunk: {nearest(boundary, network.boundaries[1:])}")
