"""What a suite prints while it runs: text of others is shown as it is, and what was there already is said."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from clmem.bench.progress import Bars, Steps, TimeLeft, duration
from clmem.harness.results.record import RunResult
from clmem.harness.runs.runner import Present
from clmem.harness.specs.run import RunSpec


def printed(result: RunResult | None = None, present: Present | None = None) -> str:
    out = io.StringIO()
    with Bars(Console(file=out, width=200), total=1) as bars:
        if present is not None:
            bars.begins(present)
        if result is not None:
            bars.progress(result.spec, "truth", {"task": 0, "phase": "[/red]", "steps": 1})
            bars.run_done(result, 1, 1)
    return out.getvalue().rstrip("\n")  # where no terminal is, the display ends with an empty line


def run(**changes: object) -> RunResult:
    spec = RunSpec(method="sgd")
    return RunResult.model_validate({"run_id": spec.run_id, "spec": spec, **changes})


def test_brackets_in_a_reason_are_no_markup() -> None:
    text = printed(run(status="crashed", reason="RuntimeError: [/red] [enforce fail at x.cpp:1] :skull: \x1b[31m"))
    assert (
        "sgd on split-fashion-mini: crashed: RuntimeError: [/red] [enforce fail at x.cpp:1] :skull:"
        in text.splitlines()[1]
    )


def test_notes_follow_the_line_of_their_run() -> None:
    assert printed(run(notes=["no [bold]checkpoint[/bold] could be saved"])).splitlines() == [
        "        begins: sgd on split-fashion-mini: memory",
        "  1/1 sgd on split-fashion-mini, seed 0: done",
        "        note: no [bold]checkpoint[/bold] could be saved",
    ]


def test_what_was_there_already_is_said() -> None:
    present = Present(84, kept=12, changed=("latent-replay", "er"), measuring_changed=1, undated=3)
    assert printed(present=present).splitlines() == [
        "12 of 84 results were there already",
        "latent-replay, er changed since then: measuring again",
        "1 result was measured by other code of clmem: measuring again",
        "3 of those kept do not say which code measured them",
    ]


def test_what_is_measured_again_for_another_reason_is_said() -> None:
    assert printed(present=Present(84, kept=80, failed=1, elsewhere=3)).splitlines() == [
        "80 of 84 results were there already",
        "1 run failed before: trying again",
        "3 results were measured with another torch, processor or allocator setting: measuring again (--keep-old "
        "keeps what is there)",
    ]
    assert printed(present=Present(2, kept=2, ended_badly=1)).splitlines()[1:] == [
        "1 run of those had crashed or took too long: --retry tries again"
    ]
    assert printed(present=Present(84, unwanted=84)).splitlines() == [
        "84 of 84 results were there already: measuring again"
    ]


def test_nothing_is_said_of_an_empty_directory() -> None:
    assert printed(present=Present(84)) == ""


def test_without_a_terminal_each_run_has_one_line_when_it_begins() -> None:
    out = io.StringIO()
    specs = [RunSpec(method="sgd"), RunSpec(method="er", execution="lean", measure="accuracy", seed=3)]
    with Bars(Console(file=out, width=200), total=2, announce=False) as bars:
        for spec in specs * 2:
            for what in ("truth", "process"):
                bars.progress(spec, what, {"task": 0, "phase": "step", "steps": 1})  # type: ignore[arg-type]
                bars.progress(spec, what, None)  # type: ignore[arg-type]
        bars.run_done(run(), 1, 2)
    assert [line.strip() for line in out.getvalue().strip().splitlines()] == [
        "begins: sgd on split-fashion-mini: memory",
        "begins: er (lean) on split-fashion-mini: accuracy, seed 3",
        "1/2 sgd on split-fashion-mini, seed 0: done",
    ]


def test_a_terminal_shows_bars_and_the_time_left_and_no_lines_of_begin() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, width=100, force_terminal=True), total=4) as bars:
        bars.progress(RunSpec(method="sgd"), "truth", {"task": 0, "phase": "step", "steps": 1})
        bars.run_done(run(), 1, 4)
        bars._progress.refresh()
    assert "begins:" not in out.getvalue()
    assert "sgd truth: task 0 step" in out.getvalue()


def test_the_time_left_counts_down_from_the_last_run() -> None:
    clock = [0.0]
    progress = Progress(TimeLeft(), get_time=lambda: clock[0])
    number = progress.add_task("", total=4)
    left = []
    for now, done in ((0, 0), (100, 1), (160, 1), (200, 2), (350, 2), (500, 2), (600, 4)):
        clock[0] = now
        if done and done != progress.tasks[0].completed:
            progress.update(number, completed=done, at=progress.tasks[0].elapsed)
        left.append(str(TimeLeft().render(progress.tasks[0])))
    assert left == ["", "about 5 min left", "about 4 min left", "about 3 min left", "about 50 s left", "", ""]


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2.0 h")])
def test_a_duration_is_said_as_a_person_says_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_a_step_is_said_once() -> None:
    out = io.StringIO()
    with Steps(Console(file=out, width=200)) as steps:
        for step, detail in (("a [b]", "1"), ("a [b]", "2"), ("c", "1")):
            steps.show(step, detail)
    assert out.getvalue().splitlines() == ["a [b]", "c"]
