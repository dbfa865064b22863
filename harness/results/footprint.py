"""What is recorded of memory, part by part of a result. Torch is never imported here, so reports can read it.

Bytes are integers and end in `_bytes`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from clmem.harness.text import Said

ROLES = (
    "parameters",
    "module_buffers",
    "optimizer",
    "gradients",
    "method_state",
    "replay",
    "input",
    "activations",
    "workspace",
    "rounding",
)
"""Every role a byte can have, in the order in which roles are shown. `memory/ledger/claims.py` says which claim wins.
`rounding` is what an allocator gives beyond what was asked for; nothing can claim it."""

PHASES = ("before_task", "first_step", "step", "after_task", "evaluate")

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""Of bytes, steps or tasks: never negative, and no truth value that is taken for a number."""

Real = Annotated[float, Field(strict=True)]
Seconds = Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
"""A time or a length of time; what lies beyond is none, and could not be averaged."""

Value = TypeVar("Value")
# the first wrong item says enough: a file of a million wrong ones would take gigabytes of messages
Many = Annotated[list[Value], Field(fail_fast=True)]
ByName = dict[Said, Value]
"""Values by the name of an operation, a role or a phase."""


class Record(BaseModel):
    """A part of a result: it has the keys that are written here and no others, and its numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PhaseFootprint(Record):
    """The peak of one phase of one task, from the attribution pass.

    op: the operation whose allocation reached the peak. at_peak: bytes by role at that instant (sums to peak_bytes).
    role_peaks: each role's own highest value inside the phase (they need not coincide).
    """

    task: Count
    phase: Said
    peak_bytes: Count
    op: Said
    at_peak: ByName[Count]
    role_peaks: ByName[Count]


class Timeline(Record):
    """Live bytes by role along the run: one sample per interval, taken where the total was highest in it.

    time_s: since the start of the first phase. marks: (time_s, "task 0 step") at the start of each phase.
    """

    time_s: Many[Seconds]
    roles: ByName[Many[Count]]
    marks: Many[tuple[Seconds, Said]]


class Footprint(Record):
    """What the run held: bytes by role at its peak, and the peaks of each role and each phase."""

    peak_bytes: Count
    peak_task: Count
    peak_phase: Said
    peak_op: Said
    at_peak: ByName[Count]
    role_peaks: ByName[Count]
    phases: ByName[Count]
    by_phase: Many[PhaseFootprint]
    timeline: Timeline
    workspace_at_peak: ByName[Count] = Field(description="bytes of the workspace at the peak, by operation")
    library_workspace_at_peak: ByName[Count] = Field(
        default_factory=dict,
        description="bytes of the workspace at the peak that libraries took for themselves, by library: what a "
        "convolution takes and gives back before it returns, and what products of matrices keep; empty in older "
        "results",
    )
    without_libraries_bytes: Count | None = Field(
        None,
        description="the highest total without what libraries took, which another release or device chooses otherwise; "
        "None in older results",
    )
    held_into_backward: ByName[Count] = Field(
        default_factory=dict,
        description="bytes of unclaimed blocks of 64 KiB and more that a phase made before a backward and still held "
        "when it began, by operation: probably saved where autograd's hooks cannot look (ctx.x = x)",
    )
    on_host: ByName[Count] = Field(
        default_factory=dict,
        description="declared bytes that lie in the host's memory beside a device's, by role, at their highest; they "
        "are no part of peak_bytes",
    )
    marks: Literal["history", "time"] | None = Field(
        None,
        description="of a measurement on CUDA: what told where the observer's marks lie among releases, the numbers in "
        "the allocator's `history`, or `time` alone, to a microsecond",
    )
    reserved_bytes: Count | None = Field(
        None, description="of a prediction for CUDA: what the caching allocator would have reserved at most"
    )
    without_cudnn_bytes: Count | None = Field(
        None,
        description="of a prediction for CUDA without a limit: its peak without cuDNN's workspaces, which are those of "
        "another card",
    )


class Allocator(Record):
    """The truth pass: the allocator's own peak with nothing instrumented, overall and by (task, phase).

    CUDA's caching allocator counts four ways: blocks given out (peak_bytes, rounded up), requested_bytes of them,
    active_bytes with those that another stream may still use, and reserved_bytes, the segments it keeps. retries: how
    often it had to give back what it kept in order to serve a request.
    """

    kind: Literal["cpu", "cuda"]
    peak_bytes: Count
    by_phase: Many[tuple[Count, Said, Count]]
    requested_bytes: Count | None = None
    active_bytes: Count | None = None
    reserved_bytes: Count | None = None
    retries: Count | None = None


class Unified(Record):
    """The memory of a Jetson board, which processor and GPU share, while one un-profiled process ran beside the system.

    before_bytes, peak_bytes: what was neither free nor reclaimable, before and at most, sampled. nvmap: what the GPU's
    allocator held of it, None where the kernel does not say. swap_growth_bytes: must be 0, else the peak is too low.
    tegrastats_peak_bytes: RAM in use at most as tegrastats saw it ten times a second, None without it.
    """

    total_bytes: Count
    before_bytes: Count
    peak_bytes: Count
    nvmap_before_bytes: Count | None
    nvmap_peak_bytes: Count | None
    swap_growth_bytes: Count
    samples: Count
    tegrastats_peak_bytes: Count | None = None


class Process(Record):
    """Resident memory of one un-profiled process: before the network is built, and its high-water mark.

    malloc: `pinned` returns freed blocks to the system at once (short schedule); `default` is glibc's (full stream).
    peak_includes_imports: the kernel refused to reset its mark after the imports, whose own peak may be the higher.
    curve: (seconds since the process began, bytes) sampled from outside, each the highest of its stretch; between
    samples the peak can be missed, which is why peak_bytes is the kernel's own mark.
    device_peak_bytes: on CUDA, what the process held on the device at most, context and all that torch reserved, by
    NVML at the end of each phase; None where NVML cannot tell. unified: on a Jetson board, in its place.
    """

    baseline_bytes: Count
    peak_bytes: Count
    malloc: Literal["pinned", "default"]
    peak_includes_imports: bool = False
    curve: Many[tuple[Seconds, Count]] = Field(default_factory=list)
    device_peak_bytes: Count | None = None
    unified: Unified | None = None
