"""A method carried out in several ways stands together, from released over plain to lean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clmem.harness.results.record import RunResult
from clmem.reports.data.executions import executions_of, without_steps_between
from clmem.reports.data.grouping import Section, sections
from clmem.reports.markdown.executions import execution_sentence, execution_table
from clmem.reports.plots.section import draw_section
from clmem.reports.report import report_text

MakeRun = Callable[..., RunResult]
FIRST = {"optimizer_in_backward": True}
SECOND = {**FIRST, "checkpoint": "block"}
LEAN = {**FIRST, "checkpoint": "convolution", "conv_slice": 4}


@pytest.fixture
def run(memory_run: MakeRun) -> MakeRun:
    def make(method: str, mib: float, execution: str = "plain", **techniques: Any) -> RunResult:
        config = {"trunk": "frozen"} if "lightcl" in method else {}
        result = memory_run(method, {"parameters": 40.0, "activations": mib - 40}, execution=execution, config=config)
        result.execution = {"name": "plain", "optimizer": "sgd", **techniques}
        return result

    return make


@pytest.fixture
def section(run: MakeRun) -> Section:
    runs = [
        run("lightcl", 60.0, "lean", **LEAN),
        run("lightcl", 100.0),
        run("lightcl@released", 140.0),
        run("lightcl", 80.0, "checkpoint=block,optimizer_in_backward=true", **SECOND),
        run("lightcl", 90.0, "optimizer_in_backward=true", **FIRST),
        run("sgd", 200.0),
        run("sgd", 180.0, "lean", **FIRST),
        run("er", 300.0),
    ]
    return sections(runs)[0]


def test_a_methods_executions_stand_in_order_each_saying_what_it_adds(section: Section) -> None:
    found = {
        executions.label: [(way.added, way.peak_bytes // 2**20) for way in executions.ways]
        for executions in executions_of(section)
    }
    assert found == {
        "sgd": [("plain", 200), ("lean: + optimizer_in_backward", 180)],
        "lightcl (trunk=frozen)": [
            ("released", 140),
            ("plain", 100),
            ("+ optimizer_in_backward", 90),
            ("+ checkpoint=block", 80),
            ("lean: + checkpoint=convolution conv_slice=4", 60),
        ],
    }


def test_the_table_sets_every_rung_against_plain(section: Section) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in execution_table(section).splitlines()[2:]]
    assert [(row[0], row[-3], row[-1]) for row in rows if row[1] == "released" or "lean" in row[1]] == [
        ("sgd", "180.0", "90 %"),
        ("lightcl (trunk=frozen)", "140.0", "140 %"),
        ("lightcl (trunk=frozen)", "60.0", "60 %"),
    ]
    assert execution_sentence(section) == (
        "Lean, a method holds between 60 % (lightcl (trunk=frozen)) and 90 % (sgd) of its plain peak."
    )


def test_steps_between_plain_and_lean_stand_under_execution_alone(section: Section, run: MakeRun) -> None:
    left_out = {cell.label for cell in section.cells} - {cell.label for cell in without_steps_between(section).cells}
    assert left_out == {
        "lightcl (trunk=frozen, optimizer_in_backward=true)",
        "lightcl (trunk=frozen, checkpoint=block,optimizer_in_backward=true)",
    }
    text = report_text([section])
    assert "2 executions between plain and lean: under Execution alone." in text
    assert text.count("checkpoint=block") == 1
    (alone,) = sections([run("er", 300.0), run("er", 200.0, "checkpoint=block", checkpoint="block")])
    assert without_steps_between(alone) == alone, "it was not measured lean"


def test_where_every_method_ran_in_one_way_the_report_has_no_such_part(run: MakeRun) -> None:
    (section,) = sections([run("sgd", 200.0), run("lightcl@released", 140.0), run("er", 300.0)])
    assert executions_of(section) == []
    assert "### Execution" not in report_text([section])


def test_the_report_shows_table_and_plot(section: Section, tmp_path: Path) -> None:
    plots = [plot for plot in draw_section(section, tmp_path) if plot.kind == "execution"]
    text = report_text([section], {section.setting.slug: plots})
    assert "### Execution: released, plain, step by step to lean (MiB)" in text
    assert f"(plots/{plots[0].png.name})" in text
    assert plots[0].png.is_file()
