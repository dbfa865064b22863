"""Plots: both formats, the same bytes twice, labels that do not cover one another."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results import ROLES, RunResult, save_result
from reports.cells import sections
from reports.labels import spread
from reports.markdown import write_report
from reports.plots import ROLE_COLOURS, STACK, accuracy_figure, draw_section, timeline_figure

MakeRun = Callable[..., RunResult]


def test_every_role_has_its_own_colour_and_place() -> None:
    assert set(ROLE_COLOURS) == set(STACK) == set(ROLES)
    assert len(set(ROLE_COLOURS.values())) == len(ROLES)


def test_svg_and_png_are_the_same_bytes_in_every_process(tmp_path: Path, memory_run: MakeRun) -> None:
    save_result(tmp_path, memory_run("sgd", {"parameters": 1.0, "activations": 3.0}))
    code = "import sys, pathlib, reports.markdown as m; m.write_report(*map(pathlib.Path, sys.argv[1:]))"
    drawn = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path), str(out)]
        subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)
        drawn.append({path.name: path.read_bytes() for path in (out / "plots").iterdir()})
    assert drawn[0] == drawn[1]
    assert sorted(Path(name).suffix for name in drawn[0]) == [".png", ".png", ".svg", ".svg"]
    assert b"<dc:date>" not in b"".join(drawn[0].values())


def test_the_report_links_every_plot_it_wrote(tmp_path: Path, example_runs: list[RunResult]) -> None:
    for run in example_runs:
        save_result(tmp_path, run)
    seen: list[str] = []
    text = write_report(tmp_path, progress=seen.append).read_text(encoding="utf-8")
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(written) == 2 * len(seen) == 2 * (2 + 4)
    assert all(f"(plots/{name})" in text for name in written)


def test_a_section_without_numbers_draws_nothing(tmp_path: Path, memory_run: MakeRun) -> None:
    (section,) = sections([memory_run("gem", {}, status="oom", reason="killed")])
    assert draw_section(section, tmp_path) == []


def test_two_cells_of_one_method_draw_into_different_files(tmp_path: Path, memory_run: MakeRun) -> None:
    runs = [memory_run("ewc", {"input": 1.0}, config={"penalty": kind}, samples=2) for kind in ("graph", "inplace")]
    (section,) = sections(runs)
    names = [plot.png.name for plot in draw_section(section, tmp_path)]
    assert len(set(names)) == len(names) == 3


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


@given(st.lists(st.floats(0.0, 1.0), max_size=40).map(sorted), st.floats(0.001, 0.2))
def test_spread_keeps_order_range_and_distance(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap)
    possible = min(gap, 1.0 / max(1, len(positions) - 1))
    assert len(moved) == len(positions)
    assert all(-1e-9 <= position <= 1.0 + 1e-9 for position in moved)
    assert all(later - earlier >= possible - 1e-9 for earlier, later in itertools.pairwise(moved))
