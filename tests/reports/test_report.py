"""The report as text: golden, complete, loud about what is broken, written whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clmem.harness import files
from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult, Unified, save_result
from clmem.reports.data.grouping import sections
from clmem.reports.markdown.tables import caching_table, process_table
from clmem.reports.report import report_text, write_report

MakeRun = Callable[..., RunResult]
GOLDEN = Path(__file__).parent / "golden" / "report.md"
ROWS = [[0.9, 0.1], [0.5, 0.9]]


def row(text: str, label: str) -> list[str]:
    """Return the cells of the first table row of a method."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_golden_report(example_runs: list[RunResult]) -> None:
    text = report_text(sections(example_runs))
    if os.environ.get("CLMEM_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), "intended? run again with CLMEM_UPDATE_GOLDEN=1, read the diff"


def test_the_order_of_the_results_does_not_matter(example_runs: list[RunResult]) -> None:
    assert report_text(sections(example_runs[::-1])) == report_text(sections(example_runs))


def test_total_of_the_roles_is_the_peak_exactly(example_runs: list[RunResult]) -> None:
    text = report_text(sections(example_runs))
    assert "sum of roles - allocator peak = 0 B for each of 4 methods" in text
    derpp = row(text.split("### Roles at the peak")[1], "derpp (alpha=0.1, beta=0.5)")
    peak = next(run for run in example_runs if run.spec.method == "derpp").footprint
    assert peak is not None
    assert derpp[-1] == f"{peak.peak_bytes:,}"
    assert sum(float(value) for value in derpp[1:10]) == pytest.approx(float(derpp[10]), abs=0.5)


def test_an_observer_delta_is_named_with_its_method(memory_run: MakeRun) -> None:
    text = report_text(sections([memory_run("sgd", {"input": 1.0}), memory_run("er", {"input": 2.0}, delta_bytes=512)]))
    assert "= 512 B for er, 0 B for the other 1." in text
    assert "BROKEN" not in text


def test_roles_that_do_not_sum_to_the_peak_are_loud_and_first(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"input": 1.0})
    assert run.footprint is not None
    run.footprint.at_peak["workspace"] += 8
    lines = report_text(sections([run])).splitlines()
    assert lines[2] == "> **1 CHECK BROKEN: do not quote these numbers.**"
    assert "the roles at the peak sum to 8 B more than the allocator peak" in lines[4]


def test_checks_broken_in_the_run_are_loud(memory_run: MakeRun) -> None:
    text = report_text(sections([memory_run("sgd", {}, checks=("replay is 3 B", "input is 4 B"))]))
    assert "> **2 CHECKS BROKEN" in text
    assert "replay is 3 B" in text
    assert "input is 4 B" in text


def test_a_method_without_class_il_prints_a_dash(example_runs: list[RunResult]) -> None:
    pnn = row(report_text(sections(example_runs)), "pnn")
    assert pnn[4:8] == ["—", "92.5", "—", "0.0"]


def test_a_joint_run_has_no_forgetting(example_runs: list[RunResult]) -> None:
    assert row(report_text(sections(example_runs)), "joint")[4:8] == ["91.0", "97.5", "—", "—"]


def test_a_synthetic_stream_leaves_accuracy_empty(memory_run: MakeRun) -> None:
    text = report_text(sections([memory_run("sgd", {}, stream="synthetic-cifar10")]))
    assert row(text, "sgd")[3:9] == [""] * 6


def test_seeds_are_averaged_with_their_number(example_runs: list[RunResult]) -> None:
    derpp = row(report_text(sections(example_runs)), "derpp (alpha=0.1, beta=0.5)")
    assert derpp[4] == "81.5 ± 1.8"
    assert derpp[8] == "3"


def test_a_metric_that_some_seeds_lack_says_its_own_number(accuracy_run: MakeRun) -> None:
    runs = [accuracy_run("sgd", 0, ROWS, ROWS), accuracy_run("sgd", 1, [[None, None], [0.5, 0.9]], ROWS)]
    assert "| 40.0 (n = 1) |" in " ".join(report_text(sections(runs)).split())


def test_failed_runs_are_listed_with_reason(example_runs: list[RunResult]) -> None:
    failed = report_text(sections(example_runs)).split("## Failed runs")[1].split("## ")[0]
    assert "2 of 12 runs did not finish (1 diverged, 1 oom)." in failed
    assert "the process was killed \\| at 4,096 MiB" in failed
    assert "the loss became NaN at task 1, step 7" in failed


def test_later_tasks_get_a_column_only_where_they_differ(memory_run: MakeRun) -> None:
    falls = memory_run("lightcl", {"activations": 8.0}, later_share=0.25)
    assert "later tasks" not in report_text(sections([memory_run("sgd", {"activations": 8.0})]))
    text = report_text(sections([falls]))
    assert row(text, "lightcl")[1:3] == ["8.0", "2.0"]
    assert "After the first task lightcl falls from 8.0 to 2.0 MiB." in text


def test_baselines_that_differ_by_more_than_chance_are_pointed_out(memory_run: MakeRun) -> None:
    runs = [memory_run("sgd", {"parameters": 1}), memory_run("er", {"parameters": 2})]
    for baseline, loud in ((530, False), (680, True)):
        assert runs[1].process is not None
        runs[1].process.baseline_bytes = baseline * 2**20
        text = report_text(sections(runs))
        assert f"A process holds 527.0 to {baseline}.0 MiB before" in text
        assert ("baselines differ by more than chance" in text) == loud


def test_environments_that_differ_are_named(memory_run: MakeRun) -> None:
    text = report_text(sections([memory_run("sgd", {}), memory_run("er", {}, environment={"torch": "2.14.0"})]))
    assert "not the same in all 2 runs: device, git.commit, git.dirty, torch differ." in text


def test_every_setting_has_its_own_section(memory_run: MakeRun) -> None:
    text = report_text(sections([memory_run("sgd", {}), memory_run("sgd", {}, network="other")]))
    assert text.count("\n## split-cifar10") == 2


def test_writing_twice_gives_the_same_bytes_and_leaves_no_temporary_file(
    tmp_path: Path, example_runs: list[RunResult]
) -> None:
    for run in example_runs:
        save_result(tmp_path, run)
    first = write_report(tmp_path, plots=False).read_bytes()
    assert write_report(tmp_path, plots=False).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == ["report.md"]


def test_the_report_can_be_written_elsewhere(tmp_path: Path, memory_run: MakeRun) -> None:
    save_result(tmp_path, memory_run("sgd", {"input": 1.0}))
    assert write_report(tmp_path, tmp_path / "a" / "b", plots=False) == tmp_path / "a" / "b" / "report.md"
    assert write_report(tmp_path, tmp_path / "c" / "mine.md", plots=False).is_file()


def test_a_place_that_cannot_be_written_to_is_named_with_what_to_do(tmp_path: Path, memory_run: MakeRun) -> None:
    save_result(tmp_path, memory_run("sgd", {"input": 1.0}))
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.md").mkdir()
    for out in (tmp_path / "file" / "inside", tmp_path / "file", tmp_path / "folder.md"):
        with pytest.raises(UsageError, match=rf"cannot be written to {out}.*; give a folder that .* with --out$"):
            write_report(tmp_path, out, plots=False)


def test_without_the_uninstrumented_pass_its_columns_and_sentence_are_empty(memory_run: MakeRun) -> None:
    runs = [memory_run("sgd", {"input": 1.0}), memory_run("er", {"input": 2.0}, later_share=0.5)]
    runs[1].allocator = None
    text = report_text(sections(runs))
    assert row(text, "er")[1] == ""
    assert "At its peak sgd holds 1.0 MiB; " in text
    runs[0].allocator = None
    assert "No method has a measured tensor peak here." in report_text(sections(runs))


def test_seconds_are_those_inside_phases_and_said_to_be_rough(accuracy_run: MakeRun) -> None:
    runs = [accuracy_run("sgd", seed, ROWS, ROWS) for seed in (0, 1)]
    part = report_text(sections(runs)).split("Work and time")[1].split("</details>")[0]
    assert row(part, "sgd")[-1] == "11.0"
    assert "Processes shared the cores, so these are rough" in part


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_text(tmp_path / "report.md", "old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def calls_of_a_report(directory: Path) -> int:
    """Return how many functions are called to report on a directory, which no other load on the machine changes."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        write_report(directory, plots=False)
    finally:
        sys.setprofile(None)
    return calls


def test_a_report_takes_work_in_proportion_to_its_results(tmp_path: Path, memory_run: MakeRun) -> None:
    calls = []
    for number in (10, 20, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        for index in range(number):
            save_result(folder, memory_run(f"method-{index}", {"input": 1.0}, tasks=10, samples=400))
        calls.append(calls_of_a_report(folder))
    assert calls[2] - calls[1] < 2.5 * (calls[1] - calls[0])


def test_importing_reports_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, clmem.reports.report, clmem.reports.terminal.runs, clmem.harness.results.metrics;"
        "sys.exit(', '.join({'torch', 'matplotlib'} & set(sys.modules)) or None)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_device_s_allocator_and_a_board_counted_is_shown(memory_run: MakeRun) -> None:
    run = memory_run("sgd", {"parameters": 1.0})
    assert run.allocator is not None
    assert run.process is not None
    mib = 2**20
    run.allocator.requested_bytes, run.allocator.active_bytes = 11 * mib, 13 * mib
    run.allocator.reserved_bytes, run.allocator.retries = 14 * mib, 2
    run.process.device_peak_bytes = 515 * mib
    run.process.unified = Unified(
        total_bytes=8000 * mib, before_bytes=1000 * mib, peak_bytes=1616 * mib, nvmap_before_bytes=0,
        nvmap_peak_bytes=17 * mib, swap_growth_bytes=0, samples=3,
    )  # fmt: skip
    (section,) = sections([run])
    caching = [cell.strip() for cell in caching_table(section).splitlines()[-1].strip("|").split("|")]
    assert caching == ["sgd", "11.0", "1.0", "13.0", "14.0", "2"]
    process = [cell.strip() for cell in process_table(section).splitlines()[-1].strip("|").split("|")]
    assert process[-2:] == ["515.0", "616.0"]
    page = report_text([section])
    assert "The caching allocator's own counts" in page
    assert "(616.0 more); the GPU's allocator (NvMap) held 17.0 at most; swap grew by 0.0" in page


def test_methods_that_learn_in_other_logits_are_told_apart(accuracy_run: MakeRun) -> None:
    runs = [accuracy_run(name, 0, ROWS, ROWS) for name in ("sgd", "er", "lightcl")]
    for run in runs:
        run.method_config = {"head": "task_il" if run.spec.method == "lightcl" else "class_il"}
    text = report_text(sections(runs))
    assert "two losses: over the task's classes (lightcl), or over all classes (er and sgd)." in text
    assert "What is learnt differs" not in report_text(sections(runs[:2]))
