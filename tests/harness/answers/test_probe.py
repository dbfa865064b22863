"""The probe of plasticity and stability against the same numbers put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clmem.bench.app import app
from clmem.harness.answers import probe as probe_module
from clmem.harness.answers.probe import Layer, Probe, probe
from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.learning.training import Progress, Schedule, train
from clmem.harness.specs.run import RunSpec

BOUNDARIES = ("layer2", "fc")


def spec(method: str, **config: Any) -> RunSpec:
    return RunSpec(
        method=method, config={"head": "task_il", "lr": 0.05, **config}, width=2, batch_size=16, steps_per_task=2,
        measure="accuracy",
    )  # fmt: skip


def new_task_accuracy(one: RunSpec) -> float:
    learnt = train(build(one, Unwatched()), Schedule(), Unwatched(), Progress()).task_il
    assert learnt is not None
    return sum(float(learnt[task][task] or 0) for task in range(1, 5)) / 4


def stability_by_hand() -> dict[str, float]:
    """Learn task by task, looking at old test images before and after each."""
    run = build(spec("sgd"), Unwatched())
    network, stream = run.method.network, run.stream
    found: dict[str, list[float]] = {boundary: [] for boundary in BOUNDARIES}
    for task in range(5):
        old = [next(iter(stream.test_batches(seen)))[0] for seen in range(task)]

        def maps(boundary: str, old: list[torch.Tensor] = old) -> torch.Tensor:
            with torch.no_grad():
                return network.eval().run(torch.cat(old), stop=boundary).double()

        before = {boundary: maps(boundary) for boundary in BOUNDARIES if task}
        for batch in stream.train_batches(task):
            run.runner.learn(batch)
        for boundary, was in before.items():
            change = ((maps(boundary) - was) ** 2).sum().sqrt() / (was**2).sum().sqrt()
            found[boundary].append(1 - float(change))
    return {boundary: sum(values) / 4 for boundary, values in found.items()}


def test_plasticity_and_stability_are_what_their_formulas_say() -> None:
    told: list[str] = []
    stability = stability_by_hand()
    frozen = {boundary: spec("tail-sgd", boundary=boundary) for boundary in BOUNDARIES}
    found = probe(spec("sgd"), frozen, report=lambda what, progress: told.append(what))
    assert found.accuracy == new_task_accuracy(spec("sgd"))
    assert found.tasks == 4
    for layer in found.layers:
        assert layer.accuracy == new_task_accuracy(frozen[layer.boundary])
        assert layer.plasticity == layer.accuracy / found.accuracy
        assert layer.stability == pytest.approx(stability[layer.boundary], abs=1e-5)
    assert list(dict.fromkeys(told)) == ["nothing frozen", "frozen before layer2", "frozen before fc"]


class Look:
    """What one run of a probe saw, put down by hand."""

    def __init__(self, accuracies: list[float], stability: dict[str, list[float]] | None = None) -> None:
        self.accuracies, self.stability = accuracies, stability or {}


def probed(monkeypatch: pytest.MonkeyPatch, whole: Look, frozen: Look) -> Probe:
    looks = [whole, frozen]
    monkeypatch.setattr(probe_module, "_learn", lambda *given: looks.pop(0))
    return probe(spec("sgd"), {"fc": spec("tail-sgd", boundary="fc")})


def test_a_probe_takes_means_over_new_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, Look([0.75, 0.85], {"fc": [0.5, -0.25]}), Look([0.1, 0.3]))
    assert (found.accuracy, found.tasks) == (pytest.approx(0.8), 2)
    (layer,) = found.layers
    assert (layer.boundary, layer.stability) == ("fc", 0.125)
    assert layer.accuracy == pytest.approx(0.2)
    assert layer.plasticity == pytest.approx(0.25)


def test_a_probe_of_nothing_learnt_has_no_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, Look([0.0, 0.0], {"fc": [0.5, float("nan")]}), Look([0.1, 0.1]))
    assert found == Probe(0.0, 2, [Layer("fc", 0.1, None, None)])


@pytest.mark.parametrize(
    ("boundary", "message"), [("layer9", "no boundary 'layer9'"), ("stem", "nothing lies before boundary 'stem'")]
)
def test_a_boundary_before_which_nothing_can_be_frozen_is_named_before_anything_is_learnt(
    boundary: str, message: str
) -> None:
    told: list[str] = []
    with pytest.raises(UsageError, match=message):
        probe(
            spec("sgd"),
            {name: spec("tail-sgd", boundary=name) for name in ("fc", boundary)},
            report=lambda what, progress: told.append(what),
        )
    assert told == []


def test_the_command_prints_a_row_per_boundary_within_80_columns() -> None:
    options = ["--width", "1", "--steps-per-task", "1", "--batch-size", "8", "--boundary", "layer3"]
    done = CliRunner().invoke(app, ["probe", *options])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines() if line[:1] in "(l" and line.strip()] == [
        "(nothing)",
        "layer3",
    ]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_without_boundaries_each_layer_of_the_network_is_probed() -> None:
    options = ["--network", "mlp", "--width", "1", "--steps-per-task", "1", "--batch-size", "8"]
    done = CliRunner().invoke(app, ["probe", *options])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines() if line[:1] in "(h" and line.strip()] == [
        "(nothing)",
        "hidden2",
        "head",
    ]


def test_the_command_refuses_streams_without_labels() -> None:
    with pytest.raises(UsageError, match="has no labels"):
        CliRunner().invoke(
            app, ["probe", "--stream", "synthetic-cifar10"], catch_exceptions=False, standalone_mode=False
        )
