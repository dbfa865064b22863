"""Groups of options: what several commands take is one frozen dataclass, and `grouped` shows its fields to typer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from clmem.bench.options import (
    BATCH_SIZE,
    BUDGET,
    BUFFER_SIZE,
    DATA_ROOT,
    EXECUTION,
    IMAGE_SIZE,
    NETWORK,
    NUM_CLASSES,
    OTHERS,
    REPLAY_SIZE,
    SETTINGS,
    STREAM,
    TARGET,
    WEIGHTS,
    WIDTH,
    read_setting,
)
from clmem.harness.errors import UsageError

if TYPE_CHECKING:
    from clmem.harness.specs.run import RunSpec, Scalar, Sources

Command = TypeVar("Command", bound=Callable[..., None])


def grouped(command: Command) -> Command:
    """Return the command with every parameter that is a dataclass replaced by that dataclass's fields, as options."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            shown += _options(groups[parameter.name])
        else:
            shown.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))

    def call(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _options(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    ]


def make_spec(**values: Any) -> RunSpec:
    """Return the spec. Raises UsageError with one sentence for what is wrong in it, before torch is imported."""
    from pydantic import ValidationError

    from clmem.harness.learning.registry import check_method
    from clmem.harness.specs.run import RunSpec, spec_errors
    from clmem.harness.specs.targets import device_of
    from clmem.harness.streams.catalog import lookup

    try:
        spec = RunSpec(**values)
    except ValidationError as error:
        raise UsageError(spec_errors(error, list(RunSpec.model_fields))) from error
    check_method(spec.method)
    lookup(spec.stream, spec.num_classes, spec.image_size)
    device_of(spec.target)
    return spec


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """What is learnt and by which network: what every command that runs one method takes."""

    stream: Annotated[str, STREAM] = "synthetic-cifar10"
    network: Annotated[str, NETWORK] = "resnet18"
    width: Annotated[int, WIDTH] = 64
    weights: Annotated[Path | None, WEIGHTS] = None
    num_classes: Annotated[int | None, NUM_CLASSES] = None
    image_size: Annotated[int | None, IMAGE_SIZE] = None
    data_root: Annotated[Path | None, DATA_ROOT] = None
    batch_size: Annotated[int, BATCH_SIZE] = 32

    def spec(self, method: str, config: Mapping[str, Scalar], **values: Any) -> RunSpec:
        """Return the spec of a run of a method. values: its other fields. Raises UsageError."""
        from clmem.harness.specs.run import weights_label

        return make_spec(
            method=method,
            config=dict(config),
            stream=self.stream,
            network=self.network,
            width=self.width,
            weights=None if self.weights is None else weights_label(str(self.weights)),
            num_classes=self.num_classes,
            image_size=self.image_size,
            batch_size=self.batch_size,
            **values,
        )

    def sources(self) -> Sources:
        """Return where the data sets and the weights lie on this machine."""
        return make_sources(self.data_root, self.weights)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(LearningOptions):
    """A memory run of one method: what `predict` takes, and with a limit `measure` and `fit`."""

    buffer_size: Annotated[int, BUFFER_SIZE] = 15
    replay_size: Annotated[
        int | None,
        typer.Option(
            help="Samples that a method with a replay buffer replays per step (default: the smaller of batch and "
            "buffer)."
        ),
    ] = None
    target: Annotated[str, TARGET] = "cpu"
    execution: Annotated[str, EXECUTION] = "plain"
    settings: Annotated[list[str] | None, SETTINGS] = None

    def memory_spec(self, method: str, config: Mapping[str, Scalar] | None = None, **values: Any) -> RunSpec:
        """Return the spec of the method's memory run. values: its other fields. Raises UsageError.

        config: the method's settings, on top of those that are read from the command line.
        """
        return self.spec(
            method,
            {**dict(read_setting(text) for text in self.settings or []), **(config or {})},
            buffer_size=self.buffer_size,
            replay_size=self.usual_replay_size() if self.replay_size is None else self.replay_size,
            target=self.target,
            execution=self.execution,
            measure="memory",
            **values,
        )

    def usual_replay_size(self) -> int:
        """Return how many samples a step replays if that is not asked for."""
        sizes = [size for size in (self.batch_size, self.buffer_size) if isinstance(size, int)]  # a script may err
        return max(0, min(sizes, default=0))


@dataclass(frozen=True, kw_only=True)
class LimitedOptions(MemoryOptions):
    """A memory run under a limit, on a device that others may use too."""

    budget: Annotated[str | None, BUDGET] = None
    others: Annotated[int | None, OTHERS] = None

    def memory_spec(self, method: str, config: Mapping[str, Scalar] | None = None, **values: Any) -> RunSpec:
        """Return the spec, with its budget."""
        return super().memory_spec(method, config, budget=self.budget, **values)

    def sources(self) -> Sources:
        """Return where files lie, and what a GPU may already hold."""
        return make_sources(self.data_root, self.weights, self.others)


@dataclass(frozen=True, kw_only=True)
class FitOptions(LimitedOptions):
    """What `fit` takes: the batch grows, and everything that the buffer holds is replayed."""

    target: Annotated[
        str,
        typer.Option(
            help="Where it should run; see `clmem list targets`. On jetson and cuda the peak also has rounding and the "
            "scratch memory of cuDNN and cuBLAS; `predict` counts the CPU by default."
        ),
    ] = "jetson"
    budget: Annotated[
        str | None,
        typer.Option(
            help="What it must fit into: a board (see `clmem list budgets`), or bytes such as 2GiB (required)."
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch, if `--vary side` is given.")] = 32
    replay_size: Annotated[
        int | None,
        typer.Option(
            help="Samples that a method with a replay buffer replays per step (default: all that the buffer holds)."
        ),
    ] = None

    def usual_replay_size(self) -> int:
        """Return the size of the buffer."""
        return max(0, self.buffer_size)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(LearningOptions):
    """What `probe` takes: real images and a narrow network, because it trains."""

    stream: Annotated[str, STREAM] = "split-fashion-mini"
    width: Annotated[int, WIDTH] = 16
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per training batch.")] = 32
    epochs: Annotated[int, typer.Option(min=1, help="Passes over each task.")] = 1
    steps_per_task: Annotated[int | None, typer.Option(min=1, help="At most this many batches per task and epoch.")] = (
        None
    )
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the batches.")] = 0


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """What `run` changes in a suite; None leaves what the suite says."""

    streams: Annotated[
        list[str] | None, typer.Option("--stream", help="Stream instead of the suite's (repeatable).")
    ] = None
    network: Annotated[str | None, NETWORK] = None
    width: Annotated[int | None, WIDTH] = None
    weights: Annotated[Path | None, WEIGHTS] = None
    num_classes: Annotated[int | None, NUM_CLASSES] = None
    image_size: Annotated[int | None, IMAGE_SIZE] = None
    target: Annotated[str | None, TARGET] = None
    batch_size: Annotated[int | None, BATCH_SIZE] = None
    buffer_size: Annotated[int | None, BUFFER_SIZE] = None
    replay_size: Annotated[int | None, REPLAY_SIZE] = None
    budget: Annotated[str | None, BUDGET] = None
    executions: Annotated[
        list[str] | None, typer.Option("--execution", help="Plain, lean or techniques, as in `measure` (repeatable).")
    ] = None

    def changed(self) -> dict[str, Any]:
        """Return what is changed, by the suite's keys."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["weights"] = None if self.weights is None else str(self.weights)
        return {name: value for name, value in values.items() if value is not None}


def make_sources(data_root: Path | None, weights: Path | str | None, others: int | None = None) -> Sources:
    """Return where data sets and weights lie on this machine, and what its GPU may already hold."""
    from clmem.harness.specs.run import Sources

    found = {"data_root": data_root, "weights": weights}
    return Sources(
        **{name: str(path) for name, path in found.items() if path is not None},
        **({} if others is None else {"others_bytes": others}),
    )
