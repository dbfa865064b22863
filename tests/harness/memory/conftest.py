"""Runs the scenarios of this folder once per session, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import clmem

SCENARIOS = Path(__file__).with_name("scenarios.py")


@dataclass(frozen=True)
class Recording:
    """One scenario: the peaks of both passes, and what the attribution pass found (or its LedgerError's sentence).

    peaks: [task, phase, bytes]. undeclared: {phase, role, bytes, op}. held: [op, bytes] of workspace in backward.
    """

    name: str
    truth_peaks: list[list[Any]]
    peaks: list[list[Any]]
    facts: dict[str, Any]
    sites: list[str]
    error: str | None
    footprint: dict[str, Any]
    undeclared: list[dict[str, Any]]
    held: list[list[Any]]

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes by role at the peak, without the roles that have none."""
        return {role: nbytes for role, nbytes in self.footprint["at_peak"].items() if nbytes}

    @property
    def role_peaks(self) -> dict[str, int]:
        """The highest value of each role."""
        return dict(self.footprint["role_peaks"])


def start(*arguments: str, **environment: str) -> Callable[[], Any]:
    """Run the scenarios' program; return a function that waits for what it prints."""
    root = str(Path(str(clmem.__file__)).parents[1])
    process = subprocess.Popen(
        [sys.executable, str(SCENARIOS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One thread: peaks do not depend on it (there is a test), and spinning threads are slow on a busy machine.
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
    )

    def wait() -> Any:
        printed, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints
        return json.loads(printed)

    return wait


def read(answers: Mapping[str, Any]) -> dict[str, Recording]:
    recordings = {}
    for name, passes in answers.items():
        for level in ("truth", "attribution"):
            assert "crash" not in passes[level], f"{name}, {level} pass:\n{passes[level]['crash']}"
        truth, seen = passes["truth"], passes["attribution"]
        recordings[name] = Recording(
            name=name,
            truth_peaks=truth["peaks"],
            peaks=seen["peaks"],
            facts=seen["facts"],
            sites=seen.get("sites", []),
            error=seen.get("error"),
            footprint=seen.get("footprint", {}),
            undeclared=seen.get("undeclared", []),
            held=seen.get("held", []),
        )
    return recordings


@pytest.fixture(scope="session")
def recordings() -> dict[str, Recording]:
    """Every scenario by name."""
    return read(start()())


@pytest.fixture(scope="session")
def standard() -> tuple[Recording, int]:
    """The standard network's step: its recording, and the growth of resident memory in a process of its own."""
    from clmem.harness.memory.system.process import PINNED_MALLOC

    resident, recorded = start("resident", **PINNED_MALLOC), start("resnet_standard")
    return read(recorded())["resnet_standard"], int(resident()["growth_bytes"])
