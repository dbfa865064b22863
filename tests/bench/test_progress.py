"""What a suite prints while it runs: text of others is shown as it is, and what was there already is said."""

from __future__ import annotations

import io

from rich.console import Console

from clmem.bench.progress import Bars
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
        in text.splitlines()[0]
    )


def test_notes_follow_the_line_of_their_run() -> None:
    assert printed(run(notes=["no [bold]checkpoint[/bold] could be saved"])).splitlines()[:2] == [
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
