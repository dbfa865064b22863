"""One run: which passes it takes, and how their outcomes become one result."""

from __future__ import annotations

from collections.abc import Mapping

from clmem.harness.results.metrics import scenario_metrics
from clmem.harness.results.record import Allocator, Process, RunResult
from clmem.harness.runs.job import Outcome, Pass
from clmem.harness.specs.run import Measured, RunSpec
from clmem.harness.specs.targets import allocator_of

PASSES: dict[Measured, tuple[Pass, ...]] = {
    "memory": ("truth", "attribution", "process"),
    "peak": ("truth",),
    "accuracy": ("accuracy",),
}


def passes(spec: RunSpec) -> tuple[Pass, ...]:
    """Return the passes of a run, each of which needs a fresh process."""
    return PASSES[spec.measure]


def assemble(spec: RunSpec, outcomes: Mapping[Pass, Outcome], wall_s: float) -> RunResult:
    """Make one result of all passes of a run. The first pass that failed gives the status and the reason."""
    failed = next((outcomes[name] for name in passes(spec) if outcomes[name].status != "ok"), None)
    # a pass that died at once knows nothing of its surroundings: take them from the first that does
    known = next((outcomes[name] for name in passes(spec) if outcomes[name].data_digest), outcomes[passes(spec)[0]])
    result = RunResult(
        run_id=spec.run_id,
        spec=spec,
        status=failed.status if failed else "ok",
        reason=failed.reason if failed else None,
        method_config=known.method_config,
        execution=known.execution,
        joint=known.joint,
        weights=known.weights,
        fingerprint=known.fingerprint,
        data_digest=known.data_digest,
        environment=known.environment,
        notes=list(dict.fromkeys(note for name in passes(spec) for note in outcomes[name].notes)),
        wall_s=round(wall_s, 3),
    )
    unwatched = outcomes[passes(spec)[-1]]
    if unwatched.baseline_bytes is not None and unwatched.process_peak_bytes is not None:
        result.process = Process(
            baseline_bytes=unwatched.baseline_bytes,
            peak_bytes=unwatched.process_peak_bytes,
            malloc="default" if spec.measure == "accuracy" else "pinned",
            peak_includes_imports=unwatched.peak_includes_imports,
            curve=unwatched.curve,
            device_peak_bytes=unwatched.device_peak_bytes,
            unified=unwatched.unified,
        )
        if unwatched.unified is not None and unwatched.unified.swap_growth_bytes:
            result.checks.append(
                f"{unwatched.unified.swap_growth_bytes:,} B went to swap while it ran, so the process peak lies above "
                "what memory shows; switch swap and zram off (swapoff -a) and run again"
            )
    result.phase_s = {name: round(seconds, 6) for name, seconds in unwatched.phase_s.items()}
    result.steps, result.resumed_at = unwatched.steps, unwatched.resumed_at
    if spec.measure == "accuracy":
        result.accuracy = unwatched.accuracy
        if unwatched.accuracy is not None:
            result.metrics = scenario_metrics(unwatched.accuracy)
    else:
        _fill_peak(result, outcomes["truth"])
        if spec.measure == "memory":
            _fill_footprint(result, outcomes["truth"], outcomes["attribution"], unwatched)
    return result


def _fill_peak(result: RunResult, truth: Outcome) -> None:
    if truth.peaks:
        result.allocator = Allocator(
            kind=allocator_of(result.spec.target),
            peak_bytes=max(peak for _, _, peak in truth.peaks),
            by_phase=truth.peaks,
            **{name: value for name, value in truth.counters.items() if name in Allocator.model_fields},
        )
    result.flops_per_step = truth.flops_per_step


def _fill_footprint(result: RunResult, truth: Outcome, attribution: Outcome, unwatched: Outcome) -> None:
    result.footprint = attribution.footprint
    if result.footprint is None or result.allocator is None or result.status != "ok":
        return
    result.observer_delta_bytes = result.footprint.peak_bytes - result.allocator.peak_bytes
    attributed = {(entry.task, entry.phase): entry.peak_bytes for entry in result.footprint.by_phase}
    for task, phase, peak in truth.peaks:
        observed = attributed.get((task, phase))
        if observed != peak:
            shown = "is missing" if observed is None else f"peaks at {observed:,} B"
            result.checks.append(
                f"{phase} of task {task} {shown} when observed and at {peak:,} B when not: "
                "observing changed what was measured"
            )
    # the process pass leaves the second step out, so of it only the data set can be compared
    if truth.fingerprint != attribution.fingerprint or len({truth.data_digest, unwatched.data_digest}) != 1:
        result.checks.append("the passes consumed different batches, so their peaks do not belong together")
