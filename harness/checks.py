"""Refuses a run that cannot work before any process is started."""

from __future__ import annotations

import torch

from harness.build import build
from harness.devices import check_device
from harness.errors import UsageError
from harness.execution.monitor import Unwatched
from harness.registry import method_class
from harness.spec import NOWHERE, RunSpec, Sources
from harness.streams import prepare
from harness.targets import allocator_of, device_of


def check_spec(spec: RunSpec, sources: Sources = NOWHERE, *, here: bool = True) -> None:
    """Raise UsageError, one sentence, for anything in a spec that cannot be carried out; fetch its data if need be.

    The run is put together once, without memory where that can be: a method refuses impossible settings where it would
    use them. here: False for a run that is predicted, whose device need not be there.
    """
    if here:
        check_device(spec.target)
    else:
        device_of(spec.target)
    if spec.budget is not None and spec.measure == "peak" and allocator_of(spec.target) == "cpu":
        raise UsageError(
            f"a budget of {spec.budget} limits a process, and a run that measures the peak alone has none to limit; "
            "measure memory"
        )
    if method_class(spec.method).uses_buffer and (spec.buffer_size == 0 or spec.replay_size == 0):
        raise UsageError(
            f"method {spec.method!r} replays samples, so buffer size {spec.buffer_size} with {spec.replay_size} "
            "replayed per step cannot work; give both at least 1 (--buffer-size, --replay-size)"
        )
    prepare(spec.stream, sources.data_root)
    try:
        try:
            with torch.device("meta"):
                build(spec, Unwatched(), sources, device="meta")
        except NotImplementedError:  # something must be read from the weights, such as which channels to remove
            build(spec, Unwatched(), sources, device="cpu")
    except ValueError as error:
        raise UsageError(f"method {spec.method!r} cannot be set up like this: {error}") from error
