"""Plots: both formats, the same bytes twice, labels that do not cover one another."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmem.harness.results.record import ROLES, RunResult, save_result
from clmem.reports.data.grouping import sections
from clmem.reports.plots.labels import spread
from clmem.reports.plots.section import (
    ROLE_COLOURS,
    STACK,
    accuracy_figure,
    draw_section,
    process_figure,
    timeline_figure,
)
from clmem.reports.report import write_report

MakeRun = Callable[..., RunResult]


def test_every_role_has_its_own_colour_and_place() -> None:
    assert set(ROLE_COLOURS) == set(STACK) == set(ROLES)
    assert len(set(ROLE_COLOURS.values())) == len(ROLES)


def test_plots_are_the_same_bytes_in_every_process(tmp_path: Path, memory_run: MakeRun) -> None:
    save_result(tmp_path, memory_run("sgd", {"parameters": 1.0, "activations": 3.0}))
    code = "import sys, pathlib, clmem.reports.report as m; m.write_report(*map(pathlib.Path, sys.argv[1:]))"
    drawn = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path), str(out)]
        subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, check=True)
        drawn.append({path.name: path.read_bytes() for path in (out / "plots").iterdir()})
    assert drawn[0] == drawn[1]
    assert [Path(name).suffix for name in drawn[0]] == 3 * [".png"]


def test_the_report_links_every_plot_it_wrote(tmp_path: Path, example_runs: list[RunResult]) -> None:
    for run in example_runs:
        save_result(tmp_path, run)
    seen: list[str] = []
    text = write_report(tmp_path, progress=seen.append).read_text(encoding="utf-8")
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(seen) == len(written) == 3 + 4
    assert all(f"(plots/{name})" in text for name in written)


def test_a_section_without_numbers_draws_nothing(tmp_path: Path, memory_run: MakeRun) -> None:
    (section,) = sections([memory_run("gem", {}, status="oom", reason="killed")])
    assert draw_section(section, tmp_path) == []


def test_two_cells_of_one_method_draw_into_different_files(tmp_path: Path, memory_run: MakeRun) -> None:
    runs = [memory_run("ewc", {"input": 1.0}, config={"penalty": kind}, samples=2) for kind in ("graph", "inplace")]
    (section,) = sections(runs)
    names = [plot.png.name for plot in draw_section(section, tmp_path)]
    assert len(set(names)) == len(names) == 4


def test_a_timeline_needs_a_footprint(memory_run: MakeRun) -> None:
    with pytest.raises(ValueError, match="has no footprint"):
        timeline_figure(memory_run("gem", {}, status="oom"), "gem")


def test_marks_before_the_first_sample_stay_inside_the_plot(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"input": 1.0}, samples=4)
    assert run.footprint is not None
    run.footprint.timeline.time_s = [0.4, 0.5, 0.6, 0.7]
    assert timeline_figure(run, "sgd").axes[0].get_xlim() == (0.0, 0.7)


def test_labels_of_crowded_points_do_not_overlap(memory_run: MakeRun, accuracy_run: MakeRun) -> None:
    runs = []
    for index in range(8):
        name = f"method-{index}"
        runs.append(memory_run(name, {"activations": 100.0 + index}))
        rows = [[0.9, None], [0.5 + 0.01 * index, 0.6]]
        runs.append(accuracy_run(name, 0, rows, rows))
    (section,) = sections(runs)
    figure = accuracy_figure(section)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_peak_that_falls_after_the_first_task_has_a_second_point(memory_run: MakeRun, accuracy_run: MakeRun) -> None:
    rows = [[0.9, None], [0.25, 0.75]]
    runs = [accuracy_run(name, 0, rows, rows) for name in ("sgd", "lightcl")]
    level = [*runs, memory_run("sgd", {"activations": 8.0}), memory_run("lightcl", {"activations": 8.0})]
    falls = [*level[:3], memory_run("lightcl", {"activations": 8.0}, later_share=0.25)]
    figures = [accuracy_figure(sections(found)[0]) for found in (level, falls)]
    points = [[tuple(np.ravel(dot.get_offsets())) for dot in figure.axes[0].collections[1:]] for figure in figures]
    assert (2.0, 50.0) not in points[0]
    assert points[1].count((2.0, 50.0)) == 1
    assert [len(figure.legends) for figure in figures] == [0, 1]


def test_every_sampled_process_has_a_labelled_line(memory_run: MakeRun) -> None:
    runs = [memory_run(f"method-{number}", {"input": 1.0}) for number in range(9)]
    assert runs[8].process is not None
    runs[8].process.curve = []
    lines = process_figure(sections(runs)[0]).axes[0].get_lines()
    assert [line.get_label() for line in lines] == [f"method-{number}" for number in range(8)]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8


@given(st.lists(st.floats(0.0, 1.0), max_size=40).map(sorted), st.floats(0.001, 0.2))
def test_spread_keeps_order_range_and_distance(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap)
    possible = min(gap, 1.0 / max(1, len(positions) - 1))
    assert len(moved) == len(positions)
    assert all(-1e-9 <= position <= 1.0 + 1e-9 for position in moved)
    assert all(later - earlier >= possible - 1e-9 for earlier, later in itertools.pairwise(moved))
