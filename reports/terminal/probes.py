"""What `clmem probe` shows: how much layers can learn and how much they change, boundary by boundary."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clmem.reports.data.units import UNDEFINED, plural
from clmem.reports.terminal.runs import text_table, wrap

if TYPE_CHECKING:
    from clmem.harness.answers.probe import Probe
    from clmem.harness.specs.run import RunSpec

DEFINED = (
    "frozen before: everything learns in the first task; what lies before this boundary is frozen afterwards",
    "plasticity: accuracy on new tasks with everything before the boundary frozen, over that with nothing frozen",
    "stability: 1 less the relative change of old tasks' maps there while a new task is learnt and nothing is frozen",
    "Both are clmem's own definitions, and no method uses them.",
)


def probe_table(found: Probe, spec: RunSpec) -> str:
    """Return the probe as text of at most 80 columns. spec: the run with nothing frozen."""
    steps = "" if spec.steps_per_task is None else f" of at most {spec.steps_per_task} steps"
    weights = "" if spec.weights is None else f", from {spec.weights}"
    rows = [["(nothing)", f"{100 * found.accuracy:.1f}", "1.000", ""]]
    rows += [
        [layer.boundary, f"{100 * layer.accuracy:.1f}", _ratio(layer.plasticity), _ratio(layer.stability)]
        for layer in found.layers
    ]
    lines = [
        wrap(
            f"{spec.method} on {spec.stream_title}, {spec.network} (width {spec.width}{weights}), "
            f"{plural(spec.epochs, 'epoch')}{steps}, lr {spec.config['lr']}, seed {spec.seed}"
        ),
        wrap(
            f"accuracy: task-IL on a task when it was learnt, mean over {plural(found.tasks, 'new task')}, one run each"
        ),
        "",
        text_table(["frozen before", "new-task accuracy %", "plasticity", "stability"], rows),
        "",
        *map(wrap, DEFINED),
    ]
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def probe_json(found: Probe, spec: RunSpec) -> dict[str, Any]:
    """Return the same, ready for JSON: accuracies as fractions."""
    return {**asdict(found), "spec": spec.model_dump(mode="json", exclude_none=True)}
