"""Refuses a run that cannot work before any process is started."""

from __future__ import annotations

import torch

from harness.build import build
from harness.errors import UsageError, nearest
from harness.execution.monitor import Unwatched
from harness.registry import method_class
from harness.spec import NOWHERE, TARGETS, RunSpec, Sources
from harness.streams import prepare


def check_spec(spec: RunSpec, sources: Sources = NOWHERE) -> None:
    """Raise UsageError, one sentence, for anything in a spec that cannot be carried out; fetch its data if need be.

    The run is put together once, without memory where that can be: a method refuses impossible settings where it would
    use them.
    """
    if spec.target not in TARGETS:
        raise UsageError(f"there is no target {spec.target!r}: {nearest(spec.target, list(TARGETS))}")
    if method_class(spec.method).uses_buffer and (spec.buffer_size == 0 or spec.replay_size == 0):
        raise UsageError(
            f"method {spec.method!r} replays samples, so buffer size {spec.buffer_size} with {spec.replay_size} "
            "replayed per step cannot work; give both at least 1 (--buffer-size, --replay-size)"
        )
    prepare(spec.stream, sources.data_root)
    try:
        try:
            with torch.device("meta"):
                build(spec, Unwatched(), sources)
        except NotImplementedError:  # something must be read from the weights, such as which channels to remove
            build(spec, Unwatched(), sources)
    except ValueError as error:
        raise UsageError(f"method {spec.method!r} cannot be set up like this: {error}") from error
