"""`clmem probe`: how much each part of a network can learn, and how much it changes while a new task is learnt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clmem.bench.groups import ProbeOptions
from clmem.bench.options import AsJson
from clmem.harness.errors import UsageError

if TYPE_CHECKING:
    from clmem.harness.specs.run import RunSpec


def probe(
    options: ProbeOptions,
    boundary: Annotated[
        list[str] | None,
        typer.Option(
            help="Let everything before it learn in the first task and freeze it afterwards (repeatable; default: each "
            "layer but the first)."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="SGD's learning rate (default: sgd's on the stream).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each layer of a network can learn, and how much it changes.

    Both measures are clmem's own, and no method uses them. LightCL's paper chooses what to freeze by two numbers that
    it does not define; here LightCL freezes what lies before its setting `boundary`.
    """
    if options.stream.startswith("synthetic-"):
        raise UsageError(f"{options.stream!r} has no labels to be right about; give a stream of real images")

    def spec(method: str, **config: Any) -> RunSpec:
        return options.spec(
            method,
            {"head": "task_il", **config},
            epochs=options.epochs,
            steps_per_task=options.steps_per_task,
            seed=options.seed,
            measure="accuracy",
        )

    spec("sgd")  # what is wrong in it is said before torch is imported
    from rich.console import Console

    from clmem.bench.progress import Steps
    from clmem.harness.answers.probe import probe as find
    from clmem.harness.learning.registry import method_config
    from clmem.harness.networks.registry import architecture
    from clmem.reports.terminal.probes import probe_json, probe_table

    rate = method_config(spec("sgd")).model_dump()["lr"] if lr is None else lr
    whole = spec("sgd", lr=rate)
    boundaries = boundary or architecture(options.network).stages.layers[1:]
    frozen = {name: spec("tail-sgd", lr=rate, boundary=name, trunk="first_task") for name in dict.fromkeys(boundaries)}
    with Steps(Console(stderr=True)) as steps:
        found = find(
            whole,
            frozen,
            options.sources(),
            lambda what, now: steps.show(f"probing: {what}", f"task {now.task}, step {now.steps}"),
        )
    print(json.dumps(probe_json(found, whole), indent=1) if as_json else probe_table(found, whole))
