"""`clmem pretrain`: weights for `--weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmem.bench.groups import make_sources, make_spec
from clmem.bench.options import (
    BATCH_SIZE,
    DATA_ROOT,
    NETWORK,
    SETTINGS,
    WEIGHTS,
    WIDTH,
    path_argument,
    path_option,
    read_setting,
)
from clmem.harness.errors import UsageError


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
    network: Annotated[str, NETWORK] = "resnet18",
    width: Annotated[int, WIDTH] = 64,
    weights: Annotated[Path | None, WEIGHTS] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 10,
    batch_size: Annotated[int, BATCH_SIZE] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the batches.")] = 0,
    settings: Annotated[list[str] | None, SETTINGS] = None,
    data_root: Annotated[Path | None, DATA_ROOT] = None,
) -> None:
    """Train a network and save its weights, for --weights. The same command goes on after an interruption."""
    if stream is not None and images is not None:
        raise UsageError(f"--stream {stream} and --images {images} are two sets of data to train on; give one of them")
    from clmem.harness.specs.run import weights_label

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
    from rich.console import Console
    from rich.progress import Progress

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
