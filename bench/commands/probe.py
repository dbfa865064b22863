"""`clmem probe`: how much each part of a network can learn, and how much it changes while a new task is learnt."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from clmem.bench.options import AsJson, DataRoot, Network, Weights, Width, make_sources, make_spec
from clmem.harness.errors import UsageError
from clmem.harness.specs.run import RunSpec, weights_label

BOUNDARIES = ("layer1", "layer2", "layer3", "layer4", "fc")


def probe(
    boundary: Annotated[
        list[str] | None, typer.Option(help="Freeze everything before it (repeatable; default: each layer, and fc).")
    ] = None,
    stream: Annotated[str, typer.Option(help="Stream; see `clmem list streams`.")] = "split-fashion-mini",
    network: Network = "resnet18",
    width: Width = 16,
    weights: Weights = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per training batch.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over each task.")] = 1,
    steps: Annotated[
        int | None, typer.Option("--steps-per-task", min=1, help="At most so many batches per task and epoch.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="SGD's learning rate (default: sgd's on the stream).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the batches.")] = 0,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much the layers of a network can learn and how much they change: what LightCL freezes by."""
    if stream.startswith("synthetic-"):
        raise UsageError(f"{stream!r} has no labels to be right about; give a stream of real images")

    def spec(method: str, **config: Any) -> RunSpec:
        return make_spec(
            method=method, config={"head": "task_il", **config}, stream=stream, network=network, width=width,
            weights=None if weights is None else weights_label(str(weights)), batch_size=batch_size, epochs=epochs,
            steps_per_task=steps, seed=seed, measure="accuracy",
        )  # fmt: skip

    from clmem.harness.answers.probe import probe as find
    from clmem.harness.learning.registry import method_config
    from clmem.reports.terminal.probes import probe_json, probe_table

    rate = method_config(spec("sgd")).model_dump()["lr"] if lr is None else lr
    whole = spec("sgd", lr=rate)
    frozen = {
        name: spec("tail-sgd", lr=rate, boundary=name, trunk="first_task")
        for name in dict.fromkeys(boundary or BOUNDARIES)
    }
    with Console(stderr=True).status("probing") as status:
        found = find(
            whole,
            frozen,
            make_sources(data_root, weights),
            lambda what, now: status.update(f"{what}: task {now.task}, step {now.steps}"),
        )
    print(json.dumps(probe_json(found, whole), indent=1) if as_json else probe_table(found, whole))
