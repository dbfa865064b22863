"""What came out: one JSON per run, written atomically. Torch is never imported here, so reports can read it.

Bytes are integers and end in `_bytes`, seconds end in `_s`. A schema change bumps SCHEMA.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UsageError
from harness.files import write_json
from harness.spec import RunSpec

SCHEMA = 1

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
"""Every role a byte can have, in the order in which claims win: the first that claims a block gets it. `rounding` is
what an allocator gives beyond what was asked for; nothing can claim it."""

PHASES = ("before_task", "first_step", "step", "after_task", "evaluate")

Status = Literal["ok", "oom", "timeout", "crashed", "diverged"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PhaseFootprint(_Record):
    """The peak of one phase of one task, from the attribution pass.

    op: the operation whose allocation reached the peak. at_peak: bytes by role at that instant (sums to peak_bytes).
    role_peaks: each role's own highest value inside the phase (they need not coincide).
    """

    task: int
    phase: str
    peak_bytes: int
    op: str
    at_peak: dict[str, int]
    role_peaks: dict[str, int]


class Timeline(_Record):
    """Live bytes by role along the run: one sample per interval, taken where the total was highest in it.

    time_s: since the start of the first phase. marks: (time_s, "task 0 step") at the start of each phase.
    """

    time_s: list[float]
    roles: dict[str, list[int]]
    marks: list[tuple[float, str]]


class Footprint(_Record):
    """What the run held: bytes by role at its peak, and the peaks of each role and each phase."""

    peak_bytes: int
    peak_task: int
    peak_phase: str
    peak_op: str
    at_peak: dict[str, int]
    role_peaks: dict[str, int]
    phases: dict[str, int]
    by_phase: list[PhaseFootprint]
    timeline: Timeline
    workspace_at_peak: dict[str, int] = Field(description="bytes of the workspace at the peak, by operation")
    held_into_backward: dict[str, int] = Field(
        default_factory=dict,
        description="bytes of unclaimed blocks of 64 KiB and more that a phase made before a backward and still held "
        "when it began, by operation: probably saved where autograd's hooks cannot look (ctx.x = x)",
    )
    on_host: dict[str, int] = Field(
        default_factory=dict,
        description="declared bytes that lie in the host's memory beside a device's, by role, at their highest; they "
        "are no part of peak_bytes",
    )
    reserved_bytes: int | None = Field(
        None, description="of a prediction for CUDA: what the caching allocator would have reserved at most"
    )
    without_cudnn_bytes: int | None = Field(
        None,
        description="of a prediction for CUDA without a limit: its peak without cuDNN's workspaces, which are those of "
        "another card",
    )


class Allocator(_Record):
    """The truth pass: the allocator's own peak with nothing instrumented, overall and by (task, phase).

    CUDA's caching allocator counts four ways: blocks given out (peak_bytes, rounded up), requested_bytes of them,
    active_bytes with those that another stream may still use, and reserved_bytes, the segments it keeps. retries: how
    often it had to give back what it kept in order to serve a request.
    """

    kind: Literal["cpu", "cuda"]
    peak_bytes: int
    by_phase: list[tuple[int, str, int]]
    requested_bytes: int | None = None
    active_bytes: int | None = None
    reserved_bytes: int | None = None
    retries: int | None = None


class Unified(_Record):
    """The memory of a Jetson board, which processor and GPU share, while one un-profiled process ran beside the system.

    before_bytes, peak_bytes: what was neither free nor reclaimable, before and at most, sampled. nvmap: what the GPU's
    allocator held of it, None where the kernel does not say. swap_growth_bytes: must be 0, else the peak is too low.
    tegrastats_peak_bytes: RAM in use at most as tegrastats saw it ten times a second, None without it.
    """

    total_bytes: int
    before_bytes: int
    peak_bytes: int
    nvmap_before_bytes: int | None
    nvmap_peak_bytes: int | None
    swap_growth_bytes: int
    samples: int
    tegrastats_peak_bytes: int | None = None


class Process(_Record):
    """Resident memory of one un-profiled process: before the network is built, and its high-water mark.

    malloc: `pinned` returns freed blocks to the system at once (short schedule); `default` is glibc's (full stream).
    peak_includes_imports: the kernel refused to reset its mark after the imports, whose own peak may be the higher.
    curve: (seconds since the process began, bytes) sampled from outside, each the highest of its stretch; between
    samples the peak can be missed, which is why peak_bytes is the kernel's own mark.
    device_peak_bytes: on CUDA, what the process held on the device at most, context and all that torch reserved, by
    NVML at the end of each phase; None where NVML cannot tell. unified: on a Jetson board, in its place.
    """

    baseline_bytes: int
    peak_bytes: int
    malloc: Literal["pinned", "default"]
    peak_includes_imports: bool = False
    curve: list[tuple[float, int]] = Field(default_factory=list)
    device_peak_bytes: int | None = None
    unified: Unified | None = None


class Accuracy(_Record):
    """Accuracy matrices R[t][i]: on task i after task t, None where not evaluated. A joint run has one row.

    class_il is None for a method that is only defined in task-IL. untrained: the same network before training.
    """

    class_il: list[list[float | None]] | None
    task_il: list[list[float | None]] | None
    untrained_class_il: list[float | None] | None
    untrained_task_il: list[float | None] | None


class RunResult(_Record):
    """One run, whatever became of it. `reason` says in one sentence why the status is not ok.

    checks: broken promises that do not void the numbers but must be shown (empty when all is well).
    fingerprint: digest of every training batch consumed, in order. data_digest: of the data set itself.
    execution: how the steps were carried out. joint: whether all tasks were learnt at once.
    weights: what of the pretrained weights was loaded and what left out, None without any.
    metrics: names carry their variant (`class_il_accuracy` ...).
    phase_s: seconds spent in each phase. wall_s: of the last process, after an interruption.
    resumed_at: the steps after which an interrupted run went on in a new process.
    flops_per_step: of one steady training step, counted by torch.utils.flop_counter.
    code: digests of the source that ran, `method` (with its bases) and `measuring`; empty in results of older versions.
    notes: what did not work and moved no number, such as a state that could not be saved.
    """

    schema_version: int = Field(SCHEMA, alias="schema")
    run_id: str
    spec: RunSpec
    method_config: dict[str, Any] = Field(default_factory=dict)
    execution: dict[str, Any] = Field(default_factory=dict)
    joint: bool = False
    weights: str | None = None
    status: Status = "ok"
    reason: str | None = None
    checks: list[str] = Field(default_factory=list)
    footprint: Footprint | None = None
    allocator: Allocator | None = None
    observer_delta_bytes: int | None = None
    process: Process | None = None
    accuracy: Accuracy | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    flops_per_step: int | None = None
    phase_s: dict[str, float] = Field(default_factory=dict)
    wall_s: float = 0.0
    steps: int = 0
    resumed_at: list[int] = Field(default_factory=list)
    fingerprint: str | None = None
    data_digest: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    code: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def save_result(directory: Path, result: RunResult) -> Path:
    """Write one result file into `directory`, atomically; return its path."""
    path = directory / f"{result.run_id}.json"
    return write_json(path, result.model_dump(mode="json", by_alias=True))


def load_result(path: Path) -> RunResult:
    """Read one result file. Raises UsageError naming the file when it is not one."""
    try:
        return RunResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"{path} is not a clmem result file of schema {SCHEMA} ({first}); move it away and run again"
        ) from error


def load_results(directory: Path) -> Iterator[RunResult]:
    """Yield every result in a results directory, by file name (files whose names hold `--` are results)."""
    for path in sorted(directory.glob("*--*.json")):
        yield load_result(path)
