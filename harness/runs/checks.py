"""Refuses a run that cannot work before any process is started."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache

import torch
from torch import Tensor, nn

from clmem.harness.errors import ClmemError, UsageError, blame
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.registry import check_execution, method_class
from clmem.harness.learning.training import Progress, short_schedule, train
from clmem.harness.memory.predicting.predicted import ShapeRecorder
from clmem.harness.networks.registry import architecture, build_network
from clmem.harness.out_of_memory import is_limited, means_out_of_memory
from clmem.harness.output import printing_to_stderr
from clmem.harness.runs.devices import check_device
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources
from clmem.harness.specs.targets import allocator_of, device_of
from clmem.harness.specs.techniques import PLAIN, techniques
from clmem.harness.streams import prepare
from clmem.harness.techniques.parts.batch_norm import batch_norms
from clmem.harness.text import clean

NARROW = 2
"""Channels of the network with which steps are taken: enough to say what is normalised together."""

ENOUGH = 1000
"""Samples of a batch in such a step."""

IRRELEVANT: Mapping[str, object] = {
    "seed": 0, "measure": "memory", "epochs": 1, "steps_per_task": None, "budget": None
}  # fmt: skip
"""What runs of a suite differ in that decides nothing about how they are put together: those are checked once."""


class OneValueError(UsageError):
    """A batch norm would learn from a single value: some batch or image is too small."""


def check_spec(spec: RunSpec, sources: Sources = NOWHERE, *, here: bool = True) -> None:
    """Raise UsageError, one sentence, for anything in a spec that cannot be carried out; fetch its data if need be.

    The run is put together once, on tensors without values where that can be: a method refuses impossible settings
    where it would use them. here: False for a run that is predicted, whose device need not be there.
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
    check_execution(spec)
    prepare(spec.stream, sources.data_root)
    try:
        with printing_to_stderr():
            image_shape = _put_together(spec.model_copy(update=IRRELEVANT), sources)
    except (ClmemError, KeyboardInterrupt):
        raise
    except ValueError as error:
        raise UsageError(f"method {spec.method!r} cannot be set up like this: {clean(str(error))}") from error
    except BaseException as error:  # such as SystemExit
        if means_out_of_memory(error, limited=is_limited()):  # which need not be the method's fault
            raise ClmemError(
                f"this process is out of memory while method {spec.method!r} is set up "
                f"({clean(str(error)) or type(error).__name__}); give it less to do, or more memory"
            ) from error
        raise UsageError(f"method {spec.method!r} cannot be set up like this: {blame(error)}") from error
    check_batch_norms(spec, image_shape)


@lru_cache
def _put_together(spec: RunSpec, sources: Sources) -> tuple[int, int, int]:
    """Build a run without values, or on the CPU if it fails without; return the (channels, height, width) it learns."""
    kept = None
    if techniques(spec.execution, method_class(spec.method).lean).storage == "compact":
        # which channels fall is read from the weights, so those are drawn once
        kept = _kept_channels(spec.model_copy(update={"execution": PLAIN}), sources)
    try:
        with _without_values():
            return build(spec, Unwatched(), sources, device="meta", kept=kept).stream.image_shape
    except (UsageError, OSError, MemoryError):  # with values it would fail no other way
        raise
    except Exception:
        return build(spec, Unwatched(), sources, device="cpu").stream.image_shape


@contextmanager
def _without_values() -> Iterator[None]:
    """Let tensors have shapes alone; what is read from one is guessed."""
    recorder = ShapeRecorder()
    gc.freeze()  # removing channels collects garbage, and would look through all that was imported
    recorder.start()
    try:
        with torch.device("meta"):
            yield
    finally:
        recorder.stop()
        gc.unfreeze()


@lru_cache
def _kept_channels(plain: RunSpec, sources: Sources) -> Mapping[str, Tensor]:
    return build(plain, Unwatched(), sources, device="cpu").method.kept_channels()


def check_batch_norms(spec: RunSpec, image_shape: tuple[int, int, int]) -> None:
    """Raise OneValueError if a batch norm would learn from a single value, whose deviation from itself tells nothing.

    That takes a map of one pixel and one sample, of a batch, of a replay or of a slice: steps are taken where the
    network's maps are so small. image_shape: (channels, height, width) of what the run learns; images are square.
    """
    if not _shrinks_to_a_pixel(spec.network, image_shape):
        return
    size = techniques(spec.execution, method_class(spec.method).lean).micro_batch
    changed = {
        # other techniques leave alone which samples are normalised together
        **{"execution": f"micro_batch={size}" if size else PLAIN, "weights": None, "target": "cpu"},
        "width": architecture(spec.network).narrowest(NARROW),
        **{"stream": f"synthetic-{image_shape[1]}px", "evaluate_on": "test"},
        **{"num_classes": None, "image_size": None},
        "batch_size": _smaller(spec.batch_size, size),
        "replay_size": min(spec.replay_size, 2 * spec.batch_size),  # filling a buffer takes a step for each batch
    }
    with printing_to_stderr():
        found = _normalises_one_value(spec.model_copy(update={**IRRELEVANT, **changed}))
    if found:
        slices = f", slices of {size}" if size else ""
        raise OneValueError(
            f"images of {image_shape[1]} x {image_shape[2]} come down to one pixel in {spec.network}, and its batch "
            f"norms cannot learn from one sample of them (batch size {spec.batch_size}, replay size "
            f"{spec.replay_size}{slices}); give at least 2 of each, or larger images"
        )


def _smaller(batch_size: int, slice_size: int | None) -> int:
    """Return a batch size of at most about a thousand whose last slice is as large."""
    if batch_size <= ENOUGH or not slice_size or slice_size > ENOUGH:
        return min(batch_size, ENOUGH)
    return ENOUGH // slice_size * slice_size + batch_size % slice_size


@cache
def _shrinks_to_a_pixel(network: str, image_shape: tuple[int, int, int]) -> bool:
    sizes: list[int] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(inputs[0][0, 0].numel())

    with torch.device("meta"):
        width = architecture(network).narrowest(1)
        built = build_network(network, num_classes=2, width=width, seed=0, image_shape=image_shape).eval()
        for norm in batch_norms(built):
            norm.register_forward_pre_hook(look)
        built(torch.empty(1, *image_shape))
    return min(sizes, default=0) == 1


@lru_cache
def _normalises_one_value(spec: RunSpec) -> bool:
    """Say whether the steps of a short schedule fail for this reason; if for another, the run itself will say so."""
    try:
        with _without_values():
            _take_steps(build(spec, Unwatched(), device="meta"))
        return False
    except (Exception, SystemExit) as error:
        if _is_of_one_value(error):
            return True
    try:
        _take_steps(build(spec, Unwatched(), device="cpu"))
    except (Exception, SystemExit) as error:
        return _is_of_one_value(error)
    return False


def _take_steps(run: Run) -> None:
    train(run, short_schedule(run.method), Unwatched(), Progress())


def _is_of_one_value(error: BaseException) -> bool:
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)
