"""What a terminal of 80 columns shows, and the footprint object that `--json` prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from clmem.harness.results.record import LONGEST_PATH, PHASES, ROLES, RunResult
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.targets import allocator_of
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.text import clean
from clmem.reports.data.grouping import Section
from clmem.reports.data.predictions import error_of, workspaces_are_like
from clmem.reports.data.provenance import broken_checks
from clmem.reports.data.units import count, mib, share, signed
from clmem.reports.markdown.sentences import board_sentence, held_sentence
from clmem.reports.markdown.tables import accuracy_text, later_differs, shown_roles

COLUMNS = 80
MINIMUM_NAME = 12
UNLIMITED = "held to the budget: the process pass alone; roles and tensor peak are of passes without it"
PROCESS_FIELDS = {"baseline_bytes", "peak_bytes", "device_peak_bytes", "unified"}


def measure_table(result: RunResult, *, uses_buffer: bool = True) -> str:
    """Return one memory run as text of at most 80 columns: roles, phases, peaks, sum check, broken promises.

    uses_buffer: whether the method has a replay buffer, whose sizes are shown then.
    """
    spec = result.spec
    buffer = buffer_text(spec) if uses_buffer else ""
    config = "".join(f", {key}={value}" for key, value in spec.config.items())
    allowed = f", budget {spec.budget} (emulated)" if spec.budget else ""
    parts = [
        wrap(
            f"{spec.method} ({execution_text(result)}){config} on {spec.stream_title}, "
            f"{spec.network} (width {spec.width}), {spec.target}"
        ),
        wrap(f"batch {spec.batch_size}{buffer}{allowed}"),
    ]
    if spec.budget and result.footprint is not None and allocator_of(spec.target) == "cpu":
        parts.append(wrap(UNLIMITED))
    if result.status != "ok":
        parts.append(wrap(f"NOT OK ({result.status}): {result.reason or 'no reason recorded'}"))
    parts += [wrap(f"BROKEN: {check}") for check in result.checks]
    footprint = result.footprint
    if footprint is not None:
        where = f"task {footprint.peak_task}, {footprint.peak_phase}, {footprint.peak_op}"
        parts += [wrap(f"peak reached in: {where}"), "", _roles(result), "", _phases(result), ""]
        total = sum(footprint.at_peak.values())
        parts.append(wrap(f"sum of roles - allocator peak = {count(total - footprint.peak_bytes)} B"))
        held = held_sentence(footprint)
        if held:
            parts.append(wrap(held))
    if result.observer_delta_bytes is not None:
        parts.append(wrap(f"observer delta = {count(result.observer_delta_bytes)} B"))
    parts += _peaks(result)
    parts += [wrap(f"note: {note}") for note in result.notes]
    return "\n".join(parts)


def buffer_text(spec: RunSpec) -> str:
    """Return the sizes of the replay buffer and of what a step replays, to stand behind another condition."""
    return f", buffer {spec.buffer_size}, replay {spec.replay_size}"


def execution_text(result: RunResult) -> str:
    """Return how steps were carried out: plain, lean or techniques, and whether that computes something else."""
    return result.spec.execution + ("" if result.execution.get("exact", True) else ", inexact")


def _roles(result: RunResult) -> str:
    footprint = result.footprint
    assert footprint is not None
    total = sum(footprint.at_peak.values())
    rows = []
    for role in shown_roles([footprint]):
        size = footprint.at_peak.get(role, 0)
        rows.append([role, count(size), mib(size), share(size, total), mib(footprint.role_peaks.get(role, 0))])
        if role == "workspace":
            libraries = footprint.library_workspace_at_peak.items()
            rows += [[f"  of it {name}", count(held), mib(held), share(held, total), ""] for name, held in libraries]
    rows.append(["total", count(total), mib(total), share(total, total), ""])
    return text_table(["role at the peak", "bytes", "MiB", "share", "own peak MiB"], rows)


def _phases(result: RunResult) -> str:
    footprint = result.footprint
    assert footprint is not None
    known = [(phase, footprint.phases[phase]) for phase in PHASES if phase in footprint.phases]
    return text_table(["phase", "peak bytes", "peak MiB"], [[phase, count(peak), mib(peak)] for phase, peak in known])


def _peaks(result: RunResult) -> list[str]:
    lines = []
    if result.allocator is not None:
        peak = result.allocator.peak_bytes
        lines.append(wrap(f"tensor peak, nothing instrumented: {mib(peak)} MiB ({count(peak)} B)"))
        more = [
            f"{name} {mib(value)} MiB"
            for name in ("requested", "active", "reserved")
            if (value := getattr(result.allocator, f"{name}_bytes")) is not None
        ]
        if more:
            lines.append(wrap(f"of the caching allocator: {', '.join(more)}"))
    if result.footprint is not None and result.footprint.library_workspace_at_peak:
        names = " and ".join(result.footprint.library_workspace_at_peak)
        without = result.footprint.without_libraries_bytes
        lines.append(wrap(f"peak without the workspace of {names}: {mib(without)} MiB"))
    if result.footprint is not None and result.footprint.reserved_bytes is not None:
        lines.append(wrap(f"the caching allocator would reserve: {mib(result.footprint.reserved_bytes)} MiB"))
        lines.append(
            wrap(f"{workspaces_are_like(result)}; the peak without: {mib(result.footprint.without_cudnn_bytes)} MiB")
        )
    if result.footprint is not None and result.footprint.on_host:
        held = ", ".join(f"{role} {count(size)} B" for role, size in sorted(result.footprint.on_host.items()))
        lines.append(wrap(f"beside it in the host's memory: {held}"))
    if result.process is not None:
        process = result.process
        above = process.peak_bytes - process.baseline_bytes
        text = f"{mib(process.peak_bytes)} MiB, {mib(above)} above a baseline of {mib(process.baseline_bytes)}"
        imports = ", the imports' own peak included" if process.peak_includes_imports else ""
        lines.append(wrap(f"process peak ({process.malloc} malloc{imports}): {text}"))
        if process.device_peak_bytes is not None:
            lines.append(
                wrap(f"the process on the device, context included (NVML): {mib(process.device_peak_bytes)} MiB")
            )
        if process.unified is not None:
            lines.append(wrap(board_sentence(process.unified)))
    return lines


def measure_json(result: RunResult) -> dict[str, Any]:
    """Return the footprint object of one memory run, ready for JSON; sizes in bytes, null where not measured."""
    spec, footprint = result.spec, result.footprint
    process = result.process
    return {
        "schema": result.schema_version,
        "method": spec.method,
        "stream": spec.stream,
        **({} if spec.num_classes is None else {"num_classes": spec.num_classes}),
        **({} if spec.image_size is None else {"image_size": spec.image_size}),
        "network": spec.network,
        "width": spec.width,
        "target": spec.target,
        "batch_size": spec.batch_size,
        "buffer_size": spec.buffer_size,
        "replay_size": spec.replay_size,
        "budget": {"name": spec.budget, "kept": "emulated"} if spec.budget else None,
        "status": result.status,
        "reason": result.reason,
        "execution_label": spec.execution,
        "execution": result.execution,
        "peak_bytes": footprint.peak_bytes if footprint else None,
        "peak_task": footprint.peak_task if footprint else None,
        "peak_phase": footprint.peak_phase if footprint else None,
        "peak_op": footprint.peak_op if footprint else None,
        "at_peak": {role: footprint.at_peak.get(role, 0) for role in ROLES} if footprint else None,
        "role_peaks": {role: footprint.role_peaks.get(role, 0) for role in ROLES} if footprint else None,
        "library_workspace_at_peak": footprint.library_workspace_at_peak if footprint else None,
        "without_libraries_bytes": footprint.without_libraries_bytes if footprint else None,
        "phases": footprint.phases if footprint else None,
        "on_host": footprint.on_host if footprint else None,
        "marks": footprint.marks if footprint else None,
        "reserved_bytes": footprint.reserved_bytes if footprint else None,
        "without_cudnn_bytes": footprint.without_cudnn_bytes if footprint else None,
        "allocator": result.allocator.model_dump(exclude={"by_phase"}, exclude_none=True) if result.allocator else None,
        "process": process.model_dump(include=PROCESS_FIELDS, exclude_none=True) if process else None,
        "observer_delta_bytes": result.observer_delta_bytes,
        "notes": result.notes,
        "fingerprint": result.fingerprint,
        "environment": result.environment,
    }


def prediction_json(measured: Sequence[RunResult], predicted: Sequence[int | None]) -> str:
    """Return the same as JSON: sizes in bytes, null where nothing can be predicted."""
    rows = [
        {"run_id": run.run_id, "predicted_bytes": guess, "measured_bytes": run.allocator and run.allocator.peak_bytes}
        for run, guess in zip(measured, predicted, strict=True)
    ]
    return json.dumps(rows, indent=1)


def prediction_table(measured: Sequence[RunResult], predicted: Sequence[int | None]) -> str:
    """Return predicted beside measured tensor peaks, with the error, as text of at most 80 columns."""
    rows, errors = [], []
    for run, guess in zip(measured, predicted, strict=True):
        assert run.allocator is not None
        peak, error = run.allocator.peak_bytes, error_of(run, guess)
        errors += [] if error is None else [abs(error)]
        how = "" if run.spec.execution == PLAIN else f" ({run.spec.execution})"
        shown = "" if error is None else signed(100 * error, 3)
        rows.append([f"{run.spec.method}{how}", run.spec.stream_title, count(guess), count(peak), shown])
    table = text_table(["method", "stream", "predicted B", "measured B", "error %"], rows)
    known = f"{len(errors)} of {len(rows)} runs predicted"
    on_cuda = (run for run in measured if allocator_of(run.spec.target) == "cuda")
    assumed = [f"\n{wrap(said)}" for said in dict.fromkeys(map(workspaces_are_like, on_cuda))]
    largest = f"{known}; largest error {100 * max(errors):.3f} %" if errors else known
    return f"{table}\n{wrap(largest)}" + "".join(assumed)


def summary(sections: Sequence[Section]) -> str:
    """Return the headline and the roles at the peak of every section as text of at most 80 columns."""
    parts = []
    for section in sections:
        parts += [wrap(section.setting.title), *(wrap(f"BROKEN: {line}") for line in broken_checks(section))]
        parts += ["", _headline(section)]
        parts += [f"\n{block}" for block in _role_blocks(section)]
        parts.append("")
    return "\n".join(parts).rstrip("\n")


def _headline(section: Section) -> str:
    """Return the headline's table, without the spread over seeds where it has no room, and say so then."""
    whole = _headline_table(section, spread=True)
    if max(map(len, whole.split("\n"))) <= COLUMNS and "…" not in whole:
        return whole
    means = _headline_table(section, spread=False)
    seeds = max((len(cell.accuracy) for cell in section.cells), default=0)
    return f"{means}\n{wrap('means over seeds; the report has their spread')}" if seeds > 1 else means


def _headline_table(section: Section, *, spread: bool) -> str:
    columns = {
        "method": [cell.label for cell in section.cells],
        "tensor\nMiB": [mib(cell.tensor_peak_bytes) for cell in section.cells],
    }
    if later_differs(section):
        columns["later\ntasks\nMiB"] = [mib(cell.later_peak_bytes) for cell in section.cells]
    columns["process\nMiB"] = [mib(cell.process_peak_bytes("pinned")) for cell in section.cells]
    for header, metric in (("class-IL\nACC %", "class_il_accuracy"), ("task-IL\nACC %", "task_il_accuracy")):
        texts = [accuracy_text(cell, metric) for cell in section.cells]
        columns[header] = texts if spread else [text.split(" ")[0] for text in texts]
    columns["seeds"] = [count(len(cell.accuracy) or None) for cell in section.cells]
    columns["status"] = [next((run.status for run in cell.failed), "") for cell in section.cells]
    shown = {header: values for header, values in columns.items() if any(values)}
    return text_table(list(shown), list(zip(*shown.values(), strict=True)))


def _role_blocks(section: Section, per_block: int = 3) -> list[str]:
    """Return tables with roles as rows and a few methods as columns: nine roles do not fit side by side."""
    blocks, roles = [], shown_roles(footprint for _, _, footprint in section.measured)
    for start in range(0, len(section.measured), per_block):
        shown = section.measured[start : start + per_block]
        rows = [[role, *(mib(footprint.at_peak.get(role, 0)) for _, _, footprint in shown)] for role in roles]
        rows.append(["total", *(mib(sum(footprint.at_peak.values())) for _, _, footprint in shown)])
        blocks.append(text_table(["MiB at the peak", *(_short(cell.label, 18) for cell, _, _ in shown)], rows))
    return blocks


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of at most 80 columns: numbers right-aligned, the first column cut short where it must be."""
    tops = [header.split("\n") for header in headers]
    height = max(len(top) for top in tops)
    lines = [list(line) for line in zip(*([""] * (height - len(top)) + top for top in tops), strict=True)]
    widths = [max(len(line[column]) for line in [*lines, *rows]) for column in range(len(headers))]
    widths[0] = min(widths[0], max(MINIMUM_NAME, COLUMNS - sum(widths[1:]) - 2 * (len(widths) - 1)))
    text = []
    for line in [*lines, ["-" * width for width in widths], *rows]:
        numbers = [value.rjust(width) for value, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join([_short(line[0], widths[0]).ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(text)


def _short(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"


def wrap(text: str) -> str:
    """Return text in lines of at most 80 columns, without characters that a terminal would obey."""
    return textwrap.fill(clean(text, LONGEST_PATH), COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
