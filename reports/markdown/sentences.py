"""One sentence of what a table says, made from its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from clmem.harness.results.record import Footprint, RunResult, Unified
from clmem.harness.text import some
from clmem.reports.data.grouping import Cell, Section
from clmem.reports.data.provenance import environment_differences, environment_values
from clmem.reports.data.units import listed, mib, plural, share
from clmem.reports.markdown.markup import code, plain

REFERENCE = "sgd"
"""The method the others are compared with, where it is present: plain training, nothing against forgetting."""
SHOWN_KEYS = 50
"""Keys of environments that are named where they differ; more are only counted."""
HEADS = {"task_il": "over the task's classes", "class_il": "over all classes"}
"""What a method's setting `head` means for its loss."""
EQUAL_BASELINES = 1.05
"""How far apart the baselines of equal processes lie at most: pages are counted as they are touched."""


def headline_sentence(section: Section) -> str:
    """Say how far the largest tensor peak lies above the reference, what it is made of, and who learns best."""
    peaks = [(cell, footprint) for cell, _, footprint in section.measured if cell.tensor_peak_bytes is not None]
    if not peaks:
        return "No method has a measured tensor peak here." + _best(section)
    largest, footprint = peaks[0]
    at_peak = footprint.at_peak
    role = max(at_peak, key=lambda name: at_peak[name])
    made_of = f"{share(at_peak[role], sum(at_peak.values()))} of it is {_spoken(role)}"
    text = f"At its peak {plain(largest.label)} holds {mib(largest.tensor_peak_bytes)} MiB"
    measured = [cell for cell, _ in peaks]
    reference, smallest = _reference(measured), measured[-1]
    if reference is not largest:
        ratio = (largest.tensor_peak_bytes or 0) / (reference.tensor_peak_bytes or 1)
        text += f", {ratio:.1f}x {plain(reference.label)} ({mib(reference.tensor_peak_bytes)} MiB)"
    text += f"; {made_of}."
    if (smallest.tensor_peak_bytes or 0) < (reference.tensor_peak_bytes or 0):
        text += f" {plain(smallest.label)} holds the least, {mib(smallest.tensor_peak_bytes)} MiB."
    return text + _later(measured) + _best(section)


def heads_sentence(section: Section) -> str:
    """Say which methods learn in the task's slice of the logits and which over all classes, where both do."""
    by_head: dict[str, list[str]] = {}
    for cell in section.cells:
        heads = {str(run.method_config["head"]) for run in cell.accuracy if "head" in run.method_config}
        if len(heads) == 1:
            by_head.setdefault(heads.pop(), []).append(plain(cell.label))
    if len(by_head) < 2:
        return ""
    parts = [f"{how} ({listed(by_head[head])})" for head, how in HEADS.items() if head in by_head]
    return (
        f"The methods learn with two losses: {', or '.join(parts)}. A difference in task-IL accuracy between the two "
        "groups is not one of methods alone."
    )


def role_sentence(section: Section) -> str:
    """Say which role is the largest at the peak, in how many methods."""
    largest = Counter(max(footprint.at_peak, key=lambda name: footprint.at_peak[name]) for footprint in _plain(section))
    return _counted(largest, "The largest role at the peak is", _spoken)


def phase_sentence(section: Section) -> str:
    """Say in which phase the peak falls, in how many methods."""
    phases = Counter(footprint.peak_phase for footprint in _plain(section))
    return _counted(phases, "The peak is in", code)


def _plain(section: Section) -> list[Footprint]:
    """Return the footprints of methods carried out plainly, or of all where none is."""
    plain = [footprint for cell, _, footprint in section.measured if cell.is_plain]
    return plain or [footprint for _, _, footprint in section.measured]


def board_sentence(board: Unified) -> str:
    """Say what a Jetson board's shared memory lost while one process ran, and who else saw it."""
    text = (
        f"of the board's {mib(board.total_bytes)} MiB in use: {mib(board.before_bytes)} before and "
        f"{mib(board.peak_bytes)} at most ({mib(board.peak_bytes - board.before_bytes)} more)"
    )
    if board.nvmap_peak_bytes is not None:
        text += f"; the GPU's allocator (NvMap) held {mib(board.nvmap_peak_bytes)} at most"
    if board.tegrastats_peak_bytes is not None:
        text += f"; tegrastats saw {mib(board.tegrastats_peak_bytes)}"
    return text + f"; swap grew by {mib(board.swap_growth_bytes)}"


def workspace_sentence(section: Section) -> str:
    """Say whose workspace at the peak is the largest, and what its largest operation is."""
    cell, _, footprint = max(section.measured, key=lambda found: sum(found[2].workspace_at_peak.values()))
    whole = sum(footprint.workspace_at_peak.values())
    if not whole:
        return "No method holds workspace at its peak."
    operations = footprint.workspace_at_peak
    first = min(operations, key=lambda name: (-operations[name], name))
    return (
        f"{plain(cell.label)} holds the most workspace at its peak, {mib(whole)} MiB, "
        f"{share(operations[first], whole)} of it in {code(first)}."
    )


def held_sentence(footprint: Footprint) -> str | None:
    """Say what a backward found already held without a claim; None when there is nothing."""
    held = footprint.held_into_backward
    if not held:
        return None
    operations = some([code(name) for name in held])
    return (
        f"{mib(sum(held.values()))} MiB of its workspace ({operations}) was made before a backward and still held "
        "when it began: a tensor that the method holds over the backward, or one saved for it where autograd's hooks "
        "cannot look, such as `ctx.x = x`."
    )


def process_sentence(section: Section) -> str:
    """Say what a process holds before a network is built, which no method can save."""
    baselines = [run.process.baseline_bytes for run in section.runs if run.process is not None and run.status == "ok"]
    least, most = min(baselines), max(baselines)
    if least == most:
        return f"A process holds {mib(least)} MiB before the network is built."
    text = f"A process holds {mib(least)} to {mib(most)} MiB before the network is built."
    if most > EQUAL_BASELINES * least:
        text += (
            " **These baselines differ by more than chance**, because one of them includes what another process loaded "
            "later. Compare peaks. Compare what lies above a baseline only between runs with equal baselines."
        )
    return text


def time_sentence() -> str:
    """Say how far the seconds can be trusted, and where better ones are."""
    return (
        "Seconds of training and evaluation on the full stream, mean over seeds. Processes shared the cores, so these "
        "are rough. The benchmarks in `bench/time` measure ratios between methods."
    )


def fingerprint_sentence(runs: Sequence[RunResult]) -> str:
    """Say how many runs were compared, and that the loader found their batches equal (it refuses them otherwise)."""
    known = sum(run.fingerprint is not None for run in runs if run.status == "ok")
    finished = sum(run.status == "ok" for run in runs)
    if known < finished:
        return f"Only {known} of {plural(finished, 'finished run')} recorded which batches they learnt from."
    return f"{plural(finished, 'finished run')}: those that are comparable learnt from identical batches."


def environment_sentence(runs: Sequence[RunResult]) -> str:
    """Say on how many environments the runs ran, and what differs."""
    differing = environment_differences(runs)
    if not environment_values(runs):
        return "No run recorded its environment."
    if not differing:
        return f"{_sentence_case(plural(len(runs), 'run'))} with the same environment."
    verb = "differs" if len(differing) == 1 else "differ"
    keys = some([plain(key) for key in differing], shown=SHOWN_KEYS)
    return f"The environment is not the same in all {len(runs)} runs: {keys} {verb}."


def failed_sentence(runs: Sequence[RunResult]) -> str:
    """Say how many runs failed, and how."""
    failed = Counter(run.status for run in runs if run.status != "ok")
    kinds = ", ".join(f"{number} {status}" for status, number in sorted(failed.items()))
    return f"{sum(failed.values())} of {plural(len(runs), 'run')} did not finish ({kinds})."


def _reference(cells: Sequence[Cell]) -> Cell:
    return next((cell for cell in cells if cell.method == REFERENCE), cells[-1])


def _later(cells: Sequence[Cell]) -> str:
    """Say who holds least after the first task, where that differs from the peak."""
    fallen = [cell for cell in cells if cell.falls_later]
    if not fallen:
        return ""
    least = min(fallen, key=lambda cell: cell.later_peak_bytes or 0)
    before, after = mib(least.tensor_peak_bytes), mib(least.later_peak_bytes)
    return f" After the first task {plain(least.label)} falls from {before} to {after} MiB."


def _best(section: Section) -> str:
    """Say who reaches the highest accuracy, in class-IL where any method has it; joint runs do not compete."""
    for scenario, shown in (("class_il", "class-IL"), ("task_il", "task-IL")):
        known = [
            (statistic, cell)
            for cell in section.cells
            if not cell.joint and (statistic := cell.metric(f"{scenario}_accuracy")) is not None
        ]
        if len(known) > 1:
            statistic, cell = max(known, key=lambda pair: pair[0].mean)
            seeds = plural(statistic.n, "seed")
            peak = "" if cell.tensor_peak_bytes is None else f", at {mib(cell.tensor_peak_bytes)} MiB"
            return f" The highest {shown} accuracy is {statistic.percent()} % ({plain(cell.label)}, {seeds}{peak})."
    return ""


def _counted(counts: Counter[str], beginning: str, spoken: Callable[[str], str]) -> str:
    """Return e.g. "The peak is in `step` for 8 of 14 methods and in `evaluate` for 6."."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    (first, number), *others = ordered
    if not others:
        return f"{beginning} {spoken(first)} for {'the method' if total == 1 else f'all {total} methods'}."
    rest = [f"{spoken(name)} for {fewer}" for name, fewer in others]
    return f"{beginning} {listed([f'{spoken(first)} for {number} of {total} methods', *rest])}."


def _spoken(role: str) -> str:
    return plain(role.replace("_", " "))


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
