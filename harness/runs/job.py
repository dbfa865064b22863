"""What the parent asks of a worker process and what the worker answers. Torch is not imported here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clmem.harness.results.record import Accuracy, Footprint, Status, Unified
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources
from clmem.harness.text import Said

Pass = Literal["truth", "attribution", "process", "accuracy"]


class Job(BaseModel):
    """What a worker is asked to do.

    stacks: find out which line allocates undeclared state (slow). checkpoint: the file from which an accuracy run goes
    on if it is there, and in which it leaves its state while it runs. snapshot: the file in which an attribution pass
    on CUDA leaves the allocator's own history.
    """

    model_config = ConfigDict(extra="forbid")

    spec: RunSpec
    what: Pass
    sources: Sources = NOWHERE
    stacks: bool = False
    checkpoint: str | None = None
    snapshot: str | None = None


class Outcome(BaseModel):
    """What a worker found.

    counters: CUDA's own peaks beside `peaks`. unfit: the device is not there or not free, so no run of this target can
    go. undeclared: whether a re-run with stacks can name the line. killed: whether the process got SIGKILL from
    elsewhere. notes: what did not work and moved no number.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    status: Status = "ok"
    reason: Said | None = None
    notes: list[Said] = Field(default_factory=list)
    usage_error: bool = False
    unfit: bool = False
    undeclared: bool = False
    killed: bool = False
    footprint: Footprint | None = None
    peaks: list[tuple[int, str, int]] = Field(default_factory=list)
    counters: dict[str, int] = Field(default_factory=dict)
    baseline_bytes: int | None = None
    process_peak_bytes: int | None = None
    peak_includes_imports: bool = False
    device_peak_bytes: int | None = None
    unified: Unified | None = None
    curve: list[tuple[float, int]] = Field(default_factory=list)
    accuracy: Accuracy | None = None
    fingerprint: str | None = None
    data_digest: str | None = None
    flops_per_step: int | None = None
    method_config: dict[str, Any] = Field(default_factory=dict)
    execution: dict[str, Any] = Field(default_factory=dict)
    joint: bool = False
    weights: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    phase_s: dict[str, float] = Field(default_factory=dict)
    steps: int = 0
    resumed_at: list[int] = Field(default_factory=list)
