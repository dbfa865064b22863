"""Lean techniques leave what is computed as it is, for every method, or are refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.learning.registry import method_class, method_names
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.specs.techniques import LEAN, PLAIN, techniques
from clmem.harness.techniques.parts.compact import remove_channels
from clmem.harness.techniques.steps import Segments
from clmem.methods.base import Batch, Method, Task
from clmem.reports.markdown.tables import markdown_table
from tests.methods.toys import NUM_CLASSES, another, make_batch, make_context

NAMES = method_names()
SIDE = 16
TECHNIQUES = (
    "trunk_chunk=3",
    "optimizer_in_backward=true",
    *(f"checkpoint={segments}" for segments in get_args(Segments) if segments != "none"),
    "backward=termwise",
    "grouped_bn=true",
    "conv_slice=3",
    "inplace_relu=true",
    "inplace_sum=true",
    "relu_masks=true",
    "bn_parts=3",
    "replay_dtype=float32",
    "storage=compact",
    "storage=sparse,optimizer_in_backward=true",
    "offload=true",
    LEAN,
    "micro_batch=4",
    "frozen_weights=bfloat16",
    "autocast=bfloat16",
)
# what the tests run of the table: every technique on two terms behind a trunk, every preset
QUICK = {("lightcl-sparse", name) for name in TECHNIQUES if techniques(name, {}).is_exact} | {
    (name, LEAN) for name in NAMES
}
QUICK |= {("sparcl-derpp", "storage=sparse,optimizer_in_backward=true"), ("derpp", "replay_dtype=float32")}
QUICK |= {("fdr", "replay_dtype=float32")}
TABLE = Path(__file__).parents[3] / "docs" / "exactness.md"
TOLERANCE = 1e-9
TOLERANCES = {torch.float64: (5, TOLERANCE), torch.float32: (1, 1e-5)}
"""By type, how many steps of each of two tasks are taken, and how far states may lie apart after them."""
NOISE = 1e-6
"""Ten times the rounding of float32."""


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normalise(raw: Tensor, rng: np.random.Generator) -> Tensor:
    return raw.to(torch.get_default_dtype()) / 128 - 1


def double_batch(task: int, step: int, draw: int = 0, noise: float = 0.0) -> Batch:
    batch = make_batch(task, step, size=8, side=SIDE, seed=draw)
    images = batch.images.to(torch.get_default_dtype())
    return Batch(**{**vars(batch), "images": images + noise * torch.randn(images.shape)})


def tiny_resnet() -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet18(NUM_CLASSES, width=4)


def learn(
    name: str,
    technique: str,
    steps: int,
    network: ResNet18 | None = None,
    tasks: int = 2,
    draw: int = 0,
    noise: float = 0.0,
    **config: object,
) -> Method:
    """Return the method after some tasks of `steps` steps each, in torch's default type.

    draw: which of the possible batches it learns. noise: what is added to its images, as a standard deviation.
    """
    method, runner = prepared(name, technique, network, **config)
    for index in range(tasks):
        classes = range(2 * index, 2 * index + 2)

        def batch(epoch: int, step: int, index: int = index) -> Batch:
            return double_batch(index, step, draw, noise)

        task = Task(index, classes, 1, steps, steps * 8, batch)
        method.before_task(task)
        for step in range(steps):
            runner.learn(task.batch(0, step))
        method.after_task(task)
    assert all(parameter.grad is None for parameter in method.network.parameters())
    return method


def prepared(name: str, technique: str, network: ResNet18 | None = None, **config: object) -> tuple[Method, StepRunner]:
    """Return the method and what carries it out. Raises ValueError where that is refused."""
    cls, network = method_class(name), network or tiny_resnet()
    chosen = techniques(technique, cls.lean)
    held = PreparedNetwork(Unwatched(), chosen)
    context = make_context(
        network,
        runner=held,
        image_shape=(3, SIDE, SIDE),
        batch_size=8,
        buffer_size=8,
        replay_size=5,
        replay_dtype=getattr(torch, chosen.replay_dtype),
        augment=normalise,
        new_network=partial(another, copy.deepcopy(network)),
    )
    known = {"memory_size": 5, "trunk": "frozen", **config}
    values = {key: value for key, value in known.items() if key in cls.Config.model_fields}
    method = cls(context, cls.Config.model_validate(values))
    held.attach(method)
    return method, StepRunner(held)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def learnt_plainly(name: str, steps: int, dtype: torch.dtype) -> tuple[Method, int]:
    """Return the method after its steps, and which batches it learnt: some on which rounding stays rounding.

    A ReLU whose input is next to zero is turned by the last bit of a sum, and moves weights by more than any rounding.
    Where there is one depends on the processor, so batches are drawn until noise of ten times the rounding of float32
    is not amplified. In float64 none is that near.
    """
    for draw in range(20):
        with default_dtype(dtype):
            method = learn(name, PLAIN, steps, draw=draw)
            if dtype == torch.float64:
                return method, draw
            noisy = [learn(name, PLAIN, steps, draw=draw, noise=NOISE) for _ in range(6)]
            if all(difference(name, PLAIN, other, method) < TOLERANCES[dtype][1] for other in noisy):
                return method, draw
    raise AssertionError(f"{name} amplifies noise on every draw, so float32 cannot be compared")


def outcome(name: str, technique: str) -> str:
    """Return `exact`, or `refused` with the reason, `inexact`, or the largest difference in either type."""
    try:
        prepared(name, technique)
    except ValueError as error:
        return f"refused: {error}"
    if not techniques(technique, {}).is_exact:
        with default_dtype(torch.float32):  # the type that autocast returns to
            numbers = learn(name, technique, steps=1).network.state_dict().values()
        return "inexact" if all(bool(number.isfinite().all()) for number in numbers) else "not finite"
    for dtype, (steps, tolerance) in TOLERANCES.items():
        with default_dtype(dtype):
            plain, draw = learnt_plainly(name, steps, dtype)
            largest = difference(name, technique, learn(name, technique, steps, draw=draw), plain)
        if largest > tolerance:
            return f"differs by {largest:.1e} in {str(dtype).removeprefix('torch.')}"
    return "exact"


def difference(name: str, technique: str, lean: Method, plain: Method) -> float:
    """Return by how much weights, running statistics or outputs differ at most."""
    images = double_batch(0, 0).images
    differences = [(lean.predict(images, 0) - plain.predict(images, 0)).abs().max()]
    network = plain.network
    if techniques(technique, lean.lean).storage == "compact":  # what is left of the plain one
        network = copy.deepcopy(network)
        remove_channels(network, prepared(name, PLAIN)[0].kept_channels(), (3, SIDE, SIDE))
    pairs = zip(network.state_dict().values(), lean.network.state_dict().values(), strict=True)
    differences += [(one.double() - other.double()).abs().max() for one, other in pairs]
    return float(torch.stack([difference.double() for difference in differences]).max())


@pytest.mark.parametrize(("name", "technique"), sorted(QUICK))
def test_ten_steps_lead_to_the_same_weights_and_running_statistics_or_are_refused(name: str, technique: str) -> None:
    table = {line.split("|")[1].strip(): line for line in TABLE.read_text(encoding="utf-8").splitlines() if "|" in line}
    columns = [cell.strip() for cell in table["method"].strip("|").split("|")]
    cells = [cell.strip() for cell in table[name].strip("|").split("|")]
    found = outcome(name, technique)
    assert found.split(":")[0] == cells[columns.index(technique)]
    assert found.split(":")[0] in ("exact", "refused")


@pytest.mark.slow
@pytest.mark.nightly
def test_every_cell_of_the_published_table_is_as_it_says() -> None:
    assert table_text() == TABLE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["tail-er", "lightcl-sparse"])
def test_a_trunk_that_freezes_after_the_first_task_changes_nothing(name: str) -> None:
    plain, lean = (learn(name, technique, 3, trunk="first_task") for technique in (PLAIN, "lean,storage=masked"))
    pairs = zip(plain.network.state_dict().values(), lean.network.state_dict().values(), strict=True)
    assert max(float((one.double() - other.double()).abs().max()) for one, other in pairs) <= TOLERANCE


@pytest.mark.parametrize("technique", ["optimizer_in_backward", "lean"])
def test_an_implicit_step_is_damped_once_for_each_gradient(technique: str) -> None:
    """The table has EWC's explicit step; here an adjustment done twice, or to a part, would divide once too often."""
    plain, lean = (learn("ewc", one, 3, penalty="implicit", strength=1e4) for one in (PLAIN, technique))
    assert difference("ewc", technique, lean, plain) <= TOLERANCE


def table_text() -> str:
    """Return the page that says which technique is exact for which method."""
    found = {(name, technique): outcome(name, technique) for name in NAMES for technique in TECHNIQUES}
    rows = [[name, *(found[name, technique].split(":")[0] for technique in TECHNIQUES)] for name in NAMES]
    reasons: dict[str, list[str]] = {}
    for (name, technique), text in found.items():
        if text.startswith("refused"):
            reasons.setdefault(f"`{technique}`: {text.partition(': ')[2]}", []).append(name)
    double, single = (f"{tolerance:g}" for _, tolerance in TOLERANCES.values())
    return f"""# Which lean techniques are exact, for which method

A lean technique takes a step in less memory. This table says whether it computes the same result as plain execution
([glossary](glossary.md)).

- `exact`: no weight, running statistic or output differs by more than {double} in float64 and {single} in float32.
  In float32 sums round in another order, and differences grow with the steps.
- `refused`: the combination ends with one sentence before anything is learnt. The list below the table has the
  sentences.
- `inexact`: it computes something else. Results say so, and no method's lean execution uses it.

`python -m tests.harness.execution.test_exactness` writes this page:

- Each method learns two tasks twice: in plain execution and with one technique. The two are compared.
- A task has five steps in float64 and one step in float32.
- The network is ResNet-18 of width 4 on images of 16 x 16. Trunks are frozen from the start. The learning rate is the
  method's own.
- The batches in float32 are drawn until noise in the images is not amplified. Otherwise a ReLU whose input is next to
  zero could turn, and move weights by more than any rounding.
- `offload` copies within the host here. It has not run on a device.
- `replay_place=host` is not in the table, because it moves nothing on the CPU and is refused there.

{markdown_table(["method", *TECHNIQUES], rows, left=len(TECHNIQUES) + 1)}

Refused:

""" + "".join(f"- {reason} ({', '.join(names)})\n" for reason, names in reasons.items())


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    TABLE.write_text(table_text(), encoding="utf-8")
