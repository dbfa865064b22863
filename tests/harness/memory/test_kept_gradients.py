"""A tensor that is born as a gradient and then kept: a gradient until it is declared, method state from there on.

The network of `toys` has 4 * (4*3*9 + 2*4 + 6*4*9 + 2*6 + 6*6 + 6) bytes of parameters, and so of gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.step import StepRunner
from clmem.harness.memory.ledger.join import Ledger, join
from clmem.harness.memory.predicting.predicted import ShapeRecorder
from clmem.harness.memory.watching.observer import Observer
from clmem.methods.base import Batch, Outputs, Step, Term
from clmem.methods.sgd import SGD
from tests.methods.toys import make_batch, make_context, two_layers

GRADIENT = 4 * (4 * 3 * 9 + 2 * 4 + 6 * 4 * 9 + 2 * 6 + 6 * 6 + 6)


class Reference(SGD):
    """Takes a reference gradient in its first step, as A-GEM does, and declares it."""

    name = "keeps-reference"
    for_steps = 1

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.reference: list[Tensor] = []
        self.age = 0

    def terms(self, batch: Batch) -> Iterable[Step]:
        if self.age == 0:
            loss = partial(self.cross_entropy, classes=batch.classes)
            gradients = self.context.runner.gradients(Term(batch.images, loss, (batch.labels,)))
            self.reference = list(gradients.values())
            del gradients
        yield from super().terms(batch)

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        self.age += 1
        if self.age == self.for_steps:
            self.reference = []

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        return {"method_state": self.reference}


class OwnGradient(Reference):
    """Keeps the very tensors that its parameters have as gradients."""

    def terms(self, batch: Batch) -> Iterable[Step]:
        return SGD.terms(self, batch)

    def adjust_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        if self.age == 0:
            self.reference = [value.grad for value in parameters.values() if value.grad is not None]


def ledger_of(kind: type[Reference], for_steps: int, steps: int = 3) -> Ledger:
    """Let a method take steps on tensors without values."""
    recorder = ShapeRecorder()
    observer = Observer(recorder)
    recorder.start()
    try:
        with observer.watching():
            with torch.device("meta"):
                network = two_layers().to("meta")
            prepared = PreparedNetwork(observer)
            method = kind(make_context(network, runner=prepared), kind.Config())
            method.for_steps = for_steps
            prepared.attach(method)
            runner = StepRunner(prepared)
            for step in range(steps):
                with observer.phase("step", step):
                    batch = make_batch(0, step)
                    batch = replace(batch, images=batch.images.to("meta"), labels=batch.labels.to("meta"))
                    observer.inputs(batch.images, batch.labels)
                    runner.learn(batch)
                    del batch
            observer.finish()
    finally:
        log = recorder.stop()
    return join(log, observer.records)


def by_step(ledger: Ledger, role: str) -> list[int]:
    """The most that a role holds in each step."""
    return [entry.role_peaks[role] for entry in ledger.footprint.by_phase]


def test_a_reference_gradient_of_one_step_is_method_state() -> None:
    ledger = ledger_of(Reference, for_steps=1)
    assert by_step(ledger, "method_state") == [GRADIENT, 0, 0]
    assert by_step(ledger, "gradients") == [GRADIENT, GRADIENT, GRADIENT]
    assert ledger.undeclared == []
    first = ledger.footprint.by_phase[0]
    assert first.at_peak["method_state"] == GRADIENT, "it was declared before the step that it is kept for"


def test_a_reference_gradient_of_two_steps_is_method_state() -> None:
    ledger = ledger_of(Reference, for_steps=2)
    assert by_step(ledger, "method_state") == [GRADIENT, GRADIENT, 0]
    assert by_step(ledger, "gradients") == [GRADIENT, GRADIENT, GRADIENT]
    assert ledger.undeclared == []


def test_a_reference_gradient_is_a_gradient_while_it_arrives() -> None:
    timeline = ledger_of(Reference, for_steps=2).footprint.timeline.roles
    declared = next(at for at, nbytes in enumerate(timeline["method_state"]) if nbytes)
    assert max(timeline["gradients"][:declared]) == GRADIENT
    assert timeline["gradients"][declared] == 0
    assert timeline["method_state"][declared] == GRADIENT


def test_a_gradient_kept_where_it_lies_is_method_state() -> None:
    ledger = ledger_of(OwnGradient, for_steps=2)
    assert by_step(ledger, "gradients") == [GRADIENT, GRADIENT, GRADIENT]
    assert by_step(ledger, "method_state") == [GRADIENT, GRADIENT, 0]
    assert ledger.undeclared == []
