"""`clmem fit`: the largest batch, or image, that a method learns with inside a budget."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.console import Console

from clmem.bench.options import (
    AsJson,
    BudgetName,
    BufferSize,
    DataRoot,
    Execution,
    Network,
    Others,
    Settings,
    Target,
    Weights,
    Width,
    is_sound,
    make_sources,
    memory_spec,
)
from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.results.record import RunResult
from clmem.harness.specs.targets import allocator_of


def fit(
    method: Annotated[str, typer.Argument(help="Method; see `clmem list methods`.")],
    budget: BudgetName = None,
    vary: Annotated[Literal["batch", "side"], typer.Option(help="What is made as large as it can be.")] = "batch",
    stream: Annotated[str, typer.Option(help="Stream; see `clmem list streams`.")] = "synthetic-cifar10",
    network: Network = "resnet18",
    width: Width = 64,
    weights: Weights = None,
    target: Target = "jetson",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch, where the side of images varies.")] = 32,
    buffer_size: BufferSize = 15,
    replay_size: Annotated[
        int | None, typer.Option(help="Samples replayed per step (default: all that the buffer holds).")
    ] = None,
    execution: Execution = "plain",
    settings: Settings = None,
    confirm: Annotated[
        bool | None,
        typer.Option(
            help="Also measure the answer on the target, limited to the budget (default: where the target is a GPU "
            "that is there)."
        ),
    ] = None,
    others: Others = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Find by prediction the largest batch that fits into a board, or into so many bytes."""
    spec = memory_spec(
        method=method,
        stream=stream,
        network=network,
        width=width,
        weights=weights,
        target=target,
        budget=budget,
        batch_size=batch_size,
        buffer_size=buffer_size,
        replay_size=max(0, buffer_size or 0) if replay_size is None else replay_size,
        execution=execution,
        settings=settings,
    )
    sources = make_sources(data_root, weights, others)
    if confirm or (confirm is None and allocator_of(spec.target) == "cuda"):
        from clmem.harness.runs.devices import check_device

        try:
            check_device(spec.target)
            confirm = True
        except UsageError:
            if confirm:
                raise
    from clmem.harness.answers.fit import fit as find
    from clmem.harness.answers.fit import sized
    from clmem.harness.runs.runner import run_specs
    from clmem.reports.terminal.fits import fit_json, fit_table

    console = Console(stderr=True)
    with console.status("predicting") as status:
        found = find(spec, vary, sources, lambda point: status.update(f"predicted {vary} {point.size}"))
        confirmed: list[RunResult] = []
        if confirm and found.largest is not None:
            status.update(f"measuring {vary} {found.largest.size}")
            run_specs([sized(spec, vary, found.largest.size)], confirmed.append, jobs=1, sources=sources)
    measured = confirmed[0] if confirmed else None
    print(json.dumps(fit_json(found, measured), indent=1) if as_json else fit_table(found, measured))
    if found.largest is None:
        raise ClmemError(f"{method} does not fit into {budget} at all; try `--execution lean`, or a narrower network")
    raise typer.Exit(0 if measured is None or is_sound(measured) else 1)
