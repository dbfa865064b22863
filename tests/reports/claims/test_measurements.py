"""Which runs measure a claim's rows, which may stand in one table, and what the page makes of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult, save_result
from clmem.reports.claims.claim import Claim
from clmem.reports.claims.measurements import Measurements, Place, load_measurements, measurements_of
from clmem.reports.claims.page import claim_json, page, short, terminal, write_page
from clmem.reports.claims.plots import draw_claim, drawn_lines, waterfall_steps
from clmem.reports.claims.ratios_by_size import ratios_by_size_table
from clmem.reports.claims.tables import measured_table, ratio_table
from clmem.reports.data.grouping import sections
from clmem.reports.report import report_text

MakeRun = Callable[..., RunResult]


def only(claim: Claim, runs: list[RunResult]) -> Measurements:
    (measurements,) = measurements_of(claim, runs)
    return measurements


def test_a_run_belongs_to_the_row_whose_method_and_settings_it_has(claim: Claim, run: MakeRun) -> None:
    made = [
        run("sparcl-derpp", 1.0),
        run("sparcl-derpp", 1.0, config={"sparsity": 0.75}),
        run("lightcl", 1.0, config={"trunk": "frozen", "boundary": "layer3.1"}),
        run("lightcl", 1.0, config={}),
        run("lightcl", 1.0, config={"trunk": "first_task"}),
        run("lightcl", 1.0, config={"trunk": "frozen", "memory_size": 14}),
        run("lightcl", 1.0, config={"trunk": "frozen", "memory_size": 64}, buffer_size=64, replay_size=64),
        run("lightcl@released", 1.0),
        run("ewc", 1.0, config={"fisher_samples": 8}),
        run("sgd", 1.0, width=16),
        run("sgd", 1.0, stream="split-fashion-mini"),
        run("er", 1.0, buffer_size=200, replay_size=32),
    ]
    assert set(only(claim, made).runs) == {
        Place("tinyimagenet", "sparcl-derpp", "plain", 32, 15),
        Place("tinyimagenet", "lightcl", "released", 32, 15),
        Place("tinyimagenet", "lightcl", "from-scratch", 32, 15),
        Place("tinyimagenet", "lightcl", "plain", 32, 64),
        Place("tinyimagenet", "ewc", "plain", 32, 0),
    }


def test_what_was_not_measured_or_failed_says_so(claim: Claim, run: MakeRun) -> None:
    measurements = only(claim, [run("sgd", 640.0), run("derpp", 1.0, status="oom", reason="killed")])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in measured_table(measurements).splitlines()]
    cells = {(row[0], row[1]): row[2:] for row in rows}
    assert "640.0" in cells["SGD", "plain"]
    assert cells["DER++", "plain"].count("oom") == 2
    assert cells["DER++", "plain"].count("not measured") == 2, "the other data set"
    assert "not measured" in ratio_table(measurements, "tinyimagenet", "tensor")


ENVIRONMENT = {"torch": "2.13.0", "device": "a processor"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"environment": {"torch": "2.13.0", "device": "another"}}, "device differs: 'a processor' in sgd"),
        ({"environment": {"torch": "2.11.0", "device": "a processor"}}, "torch differs"),
        ({"environment": {**ENVIRONMENT, "vectors": "AVX512"}}, "vectors differs: None in sgd"),
        ({"environment": {**ENVIRONMENT, "system": "Linux 6.19.1-7 x86_64"}}, "system differs"),
        ({"stream": "split-tinyimagenet"}, "stream differs"),
        ({"weights": "trunk@0123"}, "weights differs"),
        ({"fingerprint": "beef"}, "fingerprint differs"),
        ({"fingerprint": None}, "does not say which batches it consumed"),
        ({"seed": 1}, "seed differs"),
        ({"steps_per_task": 3}, "steps_per_task differs"),
        ({"budget": "2GB"}, "budget differs"),
        ({"data_digest": "beef"}, "data_digest differs"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(
    claim: Claim, run: MakeRun, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        measurements_of(claim, [run("sgd", 640.0), run("er", 900.0, **changes)])


def test_builds_of_one_kernel_belong_together(claim: Claim, run: MakeRun) -> None:
    systems = ("Linux 6.18.44-cloud-amd64 x86_64", "Linux 6.18.44-v657 x86_64")
    made = [
        run(name, 640.0, environment={**ENVIRONMENT, "system": system})
        for name, system in zip(("sgd", "er"), systems, strict=True)
    ]
    assert len(only(claim, made).runs) == 2


def test_two_runs_of_one_cell_must_agree_to_the_byte(claim: Claim, run: MakeRun) -> None:
    peak = run("sgd", 640.0, measure="peak")
    peak.footprint = peak.process = None
    kept = only(claim, [peak, run("sgd", 640.0)])
    assert [run.spec.measure for run in kept.runs.values()] == ["memory"], "which says more of the same cell"
    with pytest.raises(UsageError, match="the tensor peak of sgd on tinyimagenet differs"):
        measurements_of(claim, [run("sgd", 640.0), run("sgd", 641.0, measure="peak")])


def test_a_preset_that_changed_between_two_runs_is_refused(claim: Claim, run: MakeRun) -> None:
    made = [run("sgd", 300.0, execution="lean"), run("sgd", 100.0, execution="lean", stream="synthetic-cifar10")]
    made[1].execution = {"trunk_chunk": 4}
    with pytest.raises(UsageError, match=r"execution differs: \{\} in sgd"):
        measurements_of(claim, made)


def test_a_row_with_batches_of_its_own_is_named_and_not_refused(claim: Claim, run: MakeRun) -> None:
    pnn = run("pnn", 900.0, fingerprint="beef", tasks=5)
    assert "JOINT and PNN alone have batches, or an order, of their own" in page(
        claim, measurements_of(claim, [run("sgd", 640.0), pnn])
    )


def test_a_difference_names_the_files_of_both_runs(claim: Claim, run: MakeRun, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    save_result(tmp_path / "one", run("sgd", 640.0))
    save_result(tmp_path / "two", run("er", 900.0, seed=1))
    with pytest.raises(UsageError, match=r"seed differs: 0 in \S*one/sgd\S*\.json but 1 in \S*two/er\S*\.json"):
        load_measurements(claim, [tmp_path / "one", tmp_path / "two"])


def test_ratios_that_reach_the_claim_are_bold(claim: Claim, runs: list[RunResult]) -> None:
    table = ratios_by_size_table(only(claim, runs))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (row,) = [row for row in rows if row[:4] == ["TinyImageNet", "SparCL-DER++ 0.9", "LightCL 0.9", "15"]]
    assert row[4:] == ["6.00", "**11.43**"]


def test_released_rows_are_compared_with_released_ones_where_there_are_any(claim: Claim, run: MakeRun) -> None:
    made = [run("sgd", 600.0), run("sparcl-derpp", 1200.0), run("sparcl-derpp@released", 1280.0)]
    table = ratio_table(only(claim, [*made, run("lightcl@released", 320.0)]), "tinyimagenet", "tensor")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert ["LightCL", "released", "1.88", "not measured", "not measured", "4.00"] in rows


def test_the_object_holds_all_44_cells_and_every_measurement(claim: Claim, runs: list[RunResult]) -> None:
    found = claim_json(claim, measurements_of(claim, runs), [claim.fix("ewc-two-copies")])
    json.dumps(found)
    assert len(found["cells"]) == 44
    assert all(cell["within_tolerance"] for cell in found["cells"])
    assert len(found["measured"]) == len(runs)
    corrected = {(cell["row"], cell["dataset"]): cell["memory"] for cell in found["corrected"]}
    assert corrected["ewc", "cifar10"] == pytest.approx(238.66)
    assert found["headline"]["recomputed"] == pytest.approx(6.165, abs=0.001)


def test_the_terminal_has_80_columns(claim: Claim, runs: list[RunResult]) -> None:
    for fixes in ([], claim.fixes):
        assert max(map(len, terminal(claim, measurements_of(claim, runs), fixes).splitlines())) <= 80


def test_the_page_keeps_published_recomputed_and_measured_apart(claim: Claim, runs: list[RunResult]) -> None:
    text = page(claim, measurements_of(claim, runs), [claim.fix("all-activations")])
    assert "### Together: `all-activations`" in text
    assert "not derivable from what is published" in text
    assert "## Measured on cpu (a processor)" in text
    header = next(line for line in text.splitlines() if "tensor peak MiB" in line)
    assert [cell.strip() for cell in header.strip("|").split("|")][2:5] == [
        "CIFAR-10, published MB",
        "tensor peak MiB",
        "process peak MiB",
    ]


def test_the_waterfall_leads_from_the_published_cell_to_the_measured_peak(claim: Claim, runs: list[RunResult]) -> None:
    steps = waterfall_steps(only(claim, runs), "plain")
    assert steps[0] == ("published", 87.1)
    assert steps[-1] == ("measured on cpu, plain", pytest.approx(200.0))
    assert sum(size for _, size in steps[:-1]) == pytest.approx(200.0)


def test_plots_are_drawn_where_there_are_numbers(claim: Claim, runs: list[RunResult], tmp_path: Path) -> None:
    measurements = only(claim, runs)
    lines = [(line.dataset, line.larger, line.whole_batch) for line in drawn_lines(measurements)]
    assert lines == [("tinyimagenet", "sgd", False), ("tinyimagenet", "sparcl-derpp", False)]
    drawn = draw_claim(claim, [measurements], tmp_path)
    assert [name for _, name in drawn] == ["lightcl-cpu-ratio", "lightcl-cpu-waterfall"]
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for _, name in drawn)
    assert draw_claim(claim, [], tmp_path / "none") == []


def test_a_report_says_what_its_runs_mean_for_a_claim(claim: Claim, runs: list[RunResult], run: MakeRun) -> None:
    assert "## A published claim: LightCL" in report_text(sections(runs))
    assert "\n".join(short(claim, measurements_of(claim, runs))).count("6.16x") > 1
    assert "## A published claim" not in report_text(sections([run("sgd", 640.0)]))


def test_a_report_of_runs_that_a_claim_cannot_compare_says_why(runs: list[RunResult]) -> None:
    runs[0].environment = {**runs[0].environment, "torch": "2.11.0"}
    text = report_text(sections(runs))
    assert "Not compared with the claim" in text
    assert "torch differs" in text


def test_a_directory_without_results_is_refused(claim: Claim, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results"):
        load_measurements(claim, [tmp_path])


def test_the_command_writes_the_page_and_needs_no_torch(tmp_path: Path, runs: list[RunResult]) -> None:
    for result in runs:
        save_result(tmp_path, result)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from clmem.bench.cli import main\n"
        f"sys.argv = ['clmem', 'claims', '--results', {str(tmp_path)!r}, '--out', {str(tmp_path / 'page')!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Claimed: 6.16x" in done.stdout
    assert (tmp_path / "page" / "lightcl.md").read_text(encoding="utf-8").startswith("# LightCL")
    assert (tmp_path / "page" / "plots" / "lightcl-cpu-ratio.png").exists()


def test_a_claim_s_name_and_words_stay_in_their_place(claim: Claim, runs: list[RunResult], tmp_path: Path) -> None:
    words = {"name": "../../x(1)", "title": "a\x1b]0;t\x07 <script>b [c](javascript:d)"}
    hostile = claim.model_copy(update=words)
    found = measurements_of(hostile, runs)
    path = write_page(hostile, found, [], tmp_path / "a" / "b")
    assert path.parent == tmp_path / "a" / "b"
    assert {file.parent for file in tmp_path.rglob("*.*")} <= {path.parent, path.parent / "plots"}
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# a &lt;script>b [c]\\(javascript:d)\n")
    links = {unquote(name) for name in re.findall(r"\(plots/([^)]*)\)", text)}
    assert links == {file.name for file in (path.parent / "plots").iterdir()}
    assert "\x1b" not in terminal(hostile, found, [])


def test_equal_results_of_two_directories_count_once(claim: Claim, run: MakeRun, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_result(tmp_path / name, run("sgd", 640.0))
        save_result(tmp_path / name, run("head-only", 640.0))
    (measurements,) = load_measurements(claim, [tmp_path / "one", tmp_path / "two"])
    assert len(measurements.runs) == 1
    assert measurements.left_out == {"head-only": 1}
    save_result(tmp_path / "two", run("sgd", 640.0, data_digest="other"))
    with pytest.raises(UsageError, match=r"/one/sgd--\S* and \S*/two/sgd--\S* are results of one run but differ in"):
        load_measurements(claim, [tmp_path / "one", tmp_path / "two"])
