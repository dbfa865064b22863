"""Lean runs beside plain ones of the same seed: what differs is shown, and judged over all of them."""

from __future__ import annotations

from collections.abc import Callable

from clmem.harness.results.record import RunResult
from clmem.reports.data.grouping import sections
from clmem.reports.markdown.lean_accuracy import lean_accuracy_sentence, lean_accuracy_table
from clmem.reports.report import report_text

MakeRun = Callable[..., RunResult]


def runs(accuracy_run: MakeRun, gain: float) -> list[RunResult]:
    """Two methods, three seeds: plainly 50, 70 and 90 %, lean by `gain` and a little more or less."""
    made = []
    for name, sign in (("sgd", 1), ("er", -1)):
        for seed in (0, 1, 2):
            plain = 0.5 + 0.2 * seed
            lean = plain + gain + sign * (seed - 1) / 100
            made += [
                accuracy_run(name, seed, [[plain]], [[0.9]]),
                accuracy_run(name, seed, [[lean]], [[0.9]], execution="lean"),
            ]
    return made


def test_what_lies_within_the_errors_of_the_pairs_is_no_difference(accuracy_run: MakeRun) -> None:
    (section,) = sections(runs(accuracy_run, 0.0))
    assert "class-IL +0.0 ± 0.4 points over 6 pairs, within two standard errors" in lean_accuracy_sentence(section)
    row = next(line for line in lean_accuracy_table(section).splitlines() if line.startswith("| sgd"))
    assert [cell.strip() for cell in row.strip("|").split("|")][:4] == [
        "sgd",
        "70.0 ± 20.0",
        "70.0 ± 21.0",
        "+0.0 ± 0.6",
    ]


def test_a_difference_that_all_pairs_share_is_found(accuracy_run: MakeRun) -> None:
    (section,) = sections(runs(accuracy_run, -0.05))
    assert "class-IL -5.0 ± 0.4 points over 6 pairs, **more than** two standard errors" in lean_accuracy_sentence(
        section
    )


def test_a_difference_counts_from_two_standard_errors_on(accuracy_run: MakeRun) -> None:
    # six differences of -1, 0 and 1 point around the gain, twice each: sqrt(4 / 5 / 6) points of standard error, 0.365
    for gain, said in ((0.006, "within"), (0.009, "**more than**"), (-0.006, "within"), (-0.009, "**more than**")):
        (section,) = sections(runs(accuracy_run, gain))
        assert f"{100 * gain:+.1f} ± 0.4 points over 6 pairs, {said} two" in lean_accuracy_sentence(section)


def test_nothing_is_said_where_nothing_was_carried_out_lean(accuracy_run: MakeRun) -> None:
    plain = [run for run in runs(accuracy_run, 0.0) if run.spec.execution == "plain"]
    assert lean_accuracy_table(*sections(plain)) == lean_accuracy_sentence(*sections(plain)) == ""
    assert "Lean against plain" not in report_text(sections(plain))
    assert "Lean against plain" in report_text(sections(runs(accuracy_run, 0.0)))
