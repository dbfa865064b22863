"""What lean execution is for: peaks at full width, batch 32, 15 replayed, under the limits that were set for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clmem.harness.answers.prediction import predicted_peak_bytes
from clmem.harness.specs.suite import load_suite
from clmem.harness.specs.techniques import LEAN

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
MIB = 2**20
SUITE = Path(__file__).parents[3] / "bench" / "suites" / "lean.toml"
GOALS = {
    ("lightcl-sparse", "synthetic-cifar10"): 10,
    ("lightcl-sparse", "synthetic-tinyimagenet"): 22,
    ("lightcl", "synthetic-cifar10"): 80,
    ("lightcl", "synthetic-tinyimagenet"): 125,
    ("derpp", "synthetic-cifar10"): 145,
    ("derpp", "synthetic-tinyimagenet"): 330,
    ("er", "synthetic-cifar10"): 175,
    ("er", "synthetic-tinyimagenet"): 570,
}
"""MiB, at most."""


def peak(method: str, stream: str) -> float:
    """Return a lean peak in MiB, predicted; the suite that measures it is the one that the spec is taken from."""
    specs = load_suite(SUITE).specs()
    (spec,) = [one for one in specs if (one.method, one.stream, one.execution) == (method, stream, LEAN)]
    found = predicted_peak_bytes(spec)
    assert found is not None
    return found / MIB


@pytest.mark.parametrize(("method", "stream"), GOALS)
def test_a_lean_peak_reaches_its_goal(method: str, stream: str) -> None:
    assert peak(method, stream) <= GOALS[method, stream]


@pytest.mark.parametrize("stream", ["synthetic-cifar10", "synthetic-tinyimagenet"])
def test_sgd_lean_lies_below_er_and_derpp(stream: str) -> None:
    assert peak("sgd", stream) < min(peak("derpp", stream), peak("er", stream))
