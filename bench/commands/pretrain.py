"""`clmem pretrain`: weights for `--weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from clmem.bench.options import (
    BatchSize,
    DataRoot,
    Network,
    Settings,
    Weights,
    Width,
    make_sources,
    make_spec,
    path_argument,
    path_option,
    read_setting,
)
from clmem.harness.errors import UsageError
from clmem.harness.specs.run import weights_label


def pretrain(
    out: Annotated[Path, path_argument(help="The file to write, for example trunk.safetensors.")],
    stream: Annotated[
        str | None, typer.Option(help="Stream whose classes are learnt all at once (default: split-fashion-mini).")
    ] = None,
    images: Annotated[
        Path | None,
        path_option(help="A folder of images instead, FOLDER/class/image, with train/ and val/ or without."),
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=8, max=2048, help="Side to which the folder's images are scaled.")
    ] = 32,
    network: Network = "resnet18",
    width: Width = 64,
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 10,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the batches.")] = 0,
    settings: Settings = None,
    data_root: DataRoot = None,
) -> None:
    """Train a network and save its weights, for --weights. The same command goes on after an interruption."""
    if stream is not None and images is not None:
        raise UsageError(f"--stream {stream} and --images {images} are two sets of data to train on; give one of them")
    spec = make_spec(
        method="joint",
        stream=stream or "split-fashion-mini",
        network=network,
        width=width,
        weights=None if weights is None else weights_label(str(weights)),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        config=dict(read_setting(text) for text in settings or []),
        measure="accuracy",
    )
    from clmem.harness.learning.pretrain import pretrain as train_and_save
    from clmem.harness.runs.checks import check_batch_norms, check_spec

    sources = make_sources(data_root, weights)
    if images is None:
        check_spec(spec, sources)
    else:
        check_batch_norms(spec, (3, image_size, image_size))
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("steps", total=None)
        done = train_and_save(
            spec,
            out,
            sources=sources,
            folder=images,
            image_size=image_size,
            report=lambda now, total: bar.update(line, description=now.phase, completed=now.steps, total=total),
        )
    went_on = f", going on after step {done.resumed_at[-1]}" if done.resumed_at else ""
    tested = "" if done.accuracy is None else f"; {100 * done.accuracy:.1f} % of the test samples right"
    print(f"{done.path}: {done.steps} steps{went_on}{tested}")
