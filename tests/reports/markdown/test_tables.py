"""Tables of a report, cell by cell."""

from __future__ import annotations

from collections.abc import Callable

from clmem.harness.results.record import RunResult
from clmem.reports.data.grouping import Section, sections
from clmem.reports.markdown.tables import library_table, workspace_table

MakeRun = Callable[..., RunResult]
MIB = 2**20


def section(*runs: RunResult) -> Section:
    (found,) = sections(runs)
    return found


def cells(table: str) -> list[list[str]]:
    """Return the rows below the headers, cell by cell."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_operations_beyond_the_fifth_share_a_row(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"workspace": 28.0})
    assert run.footprint is not None
    run.footprint.workspace_at_peak = {f"aten::op{size}": size * MIB for size in range(1, 8)}
    assert cells(workspace_table(section(run))) == [
        *(["sgd", f"`aten::op{size}`", f"{size}.0", f"{size * MIB:,}", f"{100 * size / 28:.0f} %"]
          for size in (7, 6, 5, 4, 3)),
        ["sgd", "2 more", "3.0", f"{3 * MIB:,}", "11 %"],
    ]  # fmt: skip


def test_equal_operations_are_listed_by_name(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"workspace": 2.0})
    assert run.footprint is not None
    run.footprint.workspace_at_peak = {"b": MIB, "a": MIB}
    assert [row[1] for row in cells(workspace_table(section(run)))] == ["`a`", "`b`"]


def test_peaks_stand_beside_those_without_libraries(memory_run: MakeRun) -> None:
    runs = [memory_run(name, {"parameters": 1.0, "workspace": 7.0}) for name in ("er", "sgd", "ewc")]
    known = runs[:2]
    for run, taken in zip(known, ({"cuDNN": 4 * MIB, "cuBLAS": MIB}, {"cuBLAS": 2 * MIB}), strict=True):
        assert run.footprint is not None
        run.footprint.library_workspace_at_peak = taken
        run.footprint.without_libraries_bytes = 3 * MIB
    table = library_table(section(*runs))
    assert table.splitlines()[0].split("|")[1:-1] == [
        *(" method   ", "   peak ", "   of it cuBLAS ", "   of it cuDNN ", "   other workspace "),
        "   peak without libraries ",
    ]
    assert sorted(cells(table)) == [
        ["er", "8.0", "1.0", "4.0", "2.0", "3.0"],
        ["sgd", "8.0", "2.0", "0.0", "5.0", "3.0"],
    ], "an older result does not know"
    assert library_table(section(runs[2])) == ""
