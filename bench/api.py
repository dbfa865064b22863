"""`clmem.measure` and `clmem.predict`: the two commands of these names, for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from clmem.bench.groups import LimitedOptions, MemoryOptions
from clmem.bench.options import named_path

if TYPE_CHECKING:
    from clmem.harness.results.record import RunResult
    from clmem.harness.specs.run import Scalar


def measure(
    method: str,
    *,
    stream: str = "synthetic-cifar10",
    network: str = "resnet18",
    width: int = 64,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    buffer_size: int = 15,
    replay_size: int | None = None,
    execution: str = "plain",
    settings: Mapping[str, Scalar] | None = None,
    target: str = "cpu",
    budget: str | None = None,
    weights: str | PathLike[str] | None = None,
    data_root: str | PathLike[str] | None = None,
    jobs: int | None = None,
) -> RunResult:
    """Measure one method's memory in fresh processes, as `clmem measure` does with options of the same names.

    method: a name of `clmem list methods`, perhaps with a preset, as in `lightcl@released`. settings: what `clmem show`
    lists, by name. num_classes, image_size: of a synthetic stream, instead of what its name says. replay_size: samples
    replayed per step; None is the smaller of batch and buffer. budget: a board or bytes such as `2GiB`. jobs: processes
    at the same time.

    A run that fails returns a result too: `status` is `ok`, `oom`, `timeout`, `crashed` or `diverged`, `reason` says
    why, and `footprint` may be None. Raises UsageError for a request that cannot work, ClmemError for any other error;
    both say in one sentence what is wrong.
    """
    options = LimitedOptions(
        stream=stream,
        network=network,
        width=width,
        num_classes=num_classes,
        image_size=image_size,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=replay_size,
        execution=execution,
        target=target,
        budget=budget,
        weights=_path(weights),
        data_root=_path(data_root),
    )
    spec, sources = options.memory_spec(method, settings), options.sources()
    from clmem.harness.runs.checks import check_spec
    from clmem.harness.runs.runner import run_specs

    check_spec(spec, sources)
    results: list[RunResult] = []
    run_specs([spec], results.append, jobs=jobs, sources=sources)
    return results[0]


def predict(
    method: str,
    *,
    stream: str = "synthetic-cifar10",
    network: str = "resnet18",
    width: int = 64,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    buffer_size: int = 15,
    replay_size: int | None = None,
    execution: str = "plain",
    settings: Mapping[str, Scalar] | None = None,
    target: str = "cpu",
    weights: str | PathLike[str] | None = None,
    data_root: str | PathLike[str] | None = None,
) -> RunResult:
    """Predict what `measure` would find, in this process and without running a kernel.

    The result has a `footprint` with the peak and its roles; what only a process shows, such as `process`, is None.
    Raises UsageError for a request that cannot work or cannot be predicted, ClmemError for any other error.
    """
    options = MemoryOptions(
        stream=stream,
        network=network,
        width=width,
        num_classes=num_classes,
        image_size=image_size,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=replay_size,
        execution=execution,
        target=target,
        weights=_path(weights),
        data_root=_path(data_root),
    )
    spec, sources = options.memory_spec(method, settings), options.sources()
    from clmem.harness.answers.prediction import predict as predicted
    from clmem.harness.runs.checks import check_spec

    check_spec(spec, sources, here=False)
    return predicted(spec, sources)


def _path(given: str | PathLike[str] | None) -> Path | None:
    return None if given is None else named_path(str(given))
