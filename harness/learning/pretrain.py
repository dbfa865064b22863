"""Trains a network on all classes of a stream, or of a folder of images, at once, and saves its weights."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.files import expand
from clmem.harness.learning.build import build
from clmem.harness.learning.checkpoint import Checkpoint
from clmem.harness.learning.training import Progress, Schedule, train
from clmem.harness.networks.registry import network_digests
from clmem.harness.networks.weights import save_weights
from clmem.harness.results.environment import environment
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources
from clmem.harness.streams import prepare
from clmem.harness.streams.stream import TaskStream


@dataclass(frozen=True)
class Pretrained:
    """What came out. accuracy: over the test samples of all classes, 0..1; None for noise."""

    path: Path
    accuracy: float | None
    steps: int
    resumed_at: list[int]


IMAGES = "images"
"""What a folder of images is called where a stream has its name."""


def pretrain(
    spec: RunSpec,
    out: Path,
    *,
    sources: Sources = NOWHERE,
    folder: Path | None = None,
    image_size: int = 32,
    every_s: float = 30.0,
    report: Callable[[Progress, int], None] = lambda progress, total: None,
) -> Pretrained:
    """Train as the spec says (its method is `joint`) and write safetensors to `out`; `report` gets (where, all steps).

    folder: images to train on instead of the spec's stream, each scaled to image_size; what is in it, and what was left
    out, is printed. every_s: seconds between two checkpoints beside `out`, from which the same call goes on after an
    interruption. Raises UsageError for what cannot be read, and before any work if `out` cannot be written.
    """
    out = _writable(out)
    if folder is None:
        stream = None
        prepare(spec.stream, sources.data_root)
    else:
        stream = _folder_stream(spec, folder, image_size)
        spec = spec.model_copy(update={"stream": IMAGES})  # settings that were tuned for a stream are not for these
    run = build(spec, Unwatched(), sources, stream)
    file = out.with_name(f".{out.name}.checkpoint")
    checkpoint = Checkpoint(
        file, {"run": spec.run_id, "data": run.stream.data_digest, **network_digests(spec.network)}, every_s
    )
    task, progress = run.stream.train_task(0), Progress()
    total = task.epochs * task.steps_per_epoch
    accuracy = train(run, Schedule(), Unwatched(), progress, lambda now: report(now, total), checkpoint)
    right = _mean(accuracy.class_il) if run.stream.has_data else None
    about = {
        "clmem": str(environment()["clmem"]),
        "trained_on": run.stream.name,
        "data_digest": run.stream.data_digest,
        "network": f"{spec.network} of width {spec.width}",
        "steps": f"{progress.steps} of batch {spec.batch_size}, lr {run.method.config.lr}, seed {spec.seed}",
        "test_accuracy": "" if right is None else f"{right:.4f}",
    }
    save_weights(run.method.network, out, about)
    file.unlink(missing_ok=True)
    return Pretrained(out, right, progress.steps, checkpoint.resumed_at)


def _writable(out: Path) -> Path:
    """Return the path of the weights, `~` replaced. Raises UsageError if they could not be written there in the end."""
    out = expand(out)
    try:
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is no file, so the weights cannot take its place; give the path of a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write weights to {out}: {error.strerror}; give another path") from error
    return out


def _folder_stream(spec: RunSpec, folder: Path, image_size: int) -> TaskStream:
    from clmem.harness.streams.folder import open_folder

    info, data = open_folder(folder, image_size)
    print(f"clmem: {info.description}", file=sys.stderr)
    return TaskStream(info, data, seed=spec.seed, batch_size=spec.batch_size, epochs=spec.epochs, joint=True)


def _mean(matrix: list[list[float | None]] | None) -> float | None:
    values = [value for value in (matrix[-1] if matrix else []) if value is not None]
    return sum(values) / len(values) if values else None
