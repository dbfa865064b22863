"""`clmem fit`: the largest batch, or image, that a method learns with inside a budget."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clmem.bench.groups import FitOptions
from clmem.bench.options import METHOD, AsJson, is_sound
from clmem.harness.errors import ClmemError, UsageError

if TYPE_CHECKING:
    from clmem.harness.results.record import RunResult


def fit(
    method: Annotated[str, METHOD],
    options: FitOptions,
    vary: Annotated[Literal["batch", "side"], typer.Option(help="What is made as large as it can be.")] = "batch",
    confirm: Annotated[
        bool | None,
        typer.Option(
            help="Also measure the answer on the target, limited to the budget (default: if the target is a GPU that "
            "is there)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find by prediction the largest batch that fits into a board, or into a number of bytes."""
    spec, sources = options.memory_spec(method), options.sources()
    from clmem.harness.specs.targets import allocator_of

    if confirm or (confirm is None and allocator_of(spec.target) == "cuda"):
        from clmem.harness.runs.devices import check_device

        try:
            check_device(spec.target)
            confirm = True
        except UsageError:
            if confirm:
                raise
    from rich.console import Console

    from clmem.harness.answers.fit import fit as find
    from clmem.harness.answers.fit import sized
    from clmem.harness.learning.registry import method_class
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
    if as_json:
        print(json.dumps(fit_json(found, measured), indent=1))
    else:
        print(fit_table(found, measured, uses_buffer=method_class(spec.method).uses_buffer))
    if found.largest is None:
        raise ClmemError(
            f"{method} does not fit into {options.budget} at all; try `--execution lean`, or a narrower network"
        )
    raise typer.Exit(0 if measured is None or is_sound(measured) else 1)
