"""Task streams: the same batches for every method, each a pure function of (data set, seed, task, epoch, step, size).

`catalog` names them, `cache` prepares the data once (`idx`, `cifar`, `tinyimagenet` read the official archives, which
`archives` finds and checks), `folder` reads image files of others, which `pictures` decodes. `samples` and `synthetic`
hand out raw images, `augment` turns those into tensors, `stream` puts it together.
Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clmem.harness.streams.catalog import STREAMS

if TYPE_CHECKING:
    from clmem.harness.streams.stream import TaskStream

__all__ = ["STREAMS", "open_stream", "prepare"]


def prepare(name: str, data_root: str | Path | None = None) -> None:
    """Find or download the stream's data and convert it once; call it in the parent of a measuring process.

    Data that were converted before are read through and checked, once per process. Does nothing for embedded and
    synthetic streams. Raises UsageError for an unknown name and for missing, corrupt or edited data.
    """
    from clmem.harness.streams.cache import prepare as prepare_cache

    prepare_cache(name, data_root)


def open_stream(
    name: str,
    *,
    seed: int,
    batch_size: int,
    epochs: int,
    steps_per_task: int | None = None,
    device: str = "cpu",
    data_root: str | Path | None = None,
    joint: bool = False,
    validate: bool = False,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> TaskStream:
    """Open a stream by name.

    steps_per_task: upper bound on the steps per task and epoch; None runs them all.
    joint: one training task that holds every class (its bound is `steps_per_task` times the number of tasks).
    validate: hold a tenth of every class's training samples out, and evaluate on them instead of the test split.
    num_classes, image_size: of a synthetic stream, classes in all and pixels of a side, if not what its name says.
    Prepares the data first when nobody has: a measuring process should find that done, for the conversion costs
    memory that counts in the process peak. Raises UsageError for an unknown name, bad data, or a batch larger than
    the smallest task.
    """
    from clmem.harness.streams.cache import load
    from clmem.harness.streams.catalog import lookup
    from clmem.harness.streams.stream import TaskStream

    info = lookup(name, num_classes, image_size)
    return TaskStream(
        info,
        load(info, data_root),
        seed=seed,
        batch_size=batch_size,
        epochs=epochs,
        steps_per_task=steps_per_task,
        device=device,
        joint=joint,
        validate=validate,
    )
