"""What is published can be made again from what lies beside it, and the documents show real output."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from clmem.harness.answers.prediction import predicted_peak_bytes
from clmem.harness.results.record import RunResult
from clmem.reports.data.grouping import sections
from clmem.reports.publish import publish
from clmem.reports.report import report_text

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "reports" / "published"
ARCHIVES = sorted(PUBLISHED.glob("*/results.tar.gz"))
WITHOUT_COMMIT = {"h100"}
"""Folders whose runs name none, because they came from a copy without git; `docs/devices.md` says which code it was."""


def results(archive: Path) -> dict[str, RunResult]:
    """Return the results in an archive by their path."""
    with tarfile.open(archive) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames() if "--" in Path(name).name}
        return {name: RunResult.model_validate_json(file.read()) for name, file in files.items() if file is not None}


def test_everything_published_has_its_results_beside_it_each_in_its_own_folder() -> None:
    assert {archive.parent.name for archive in ARCHIVES} >= {"accuracy", "lean", "table1", "table1-memory", "claims"}
    folders = [{Path(name).parts[0] for name in results(archive)} for archive in ARCHIVES]
    assert all(len(found) == 1 for found in folders)
    assert len(set().union(*folders)) == len(ARCHIVES), "unpacked in one place none overwrites another"


@pytest.mark.parametrize("archive", [path for path in ARCHIVES if (path.parent / "report.md").exists()], ids=str)
def test_a_published_report_is_of_the_runs_beside_it(archive: Path) -> None:
    text = (archive.parent / "report.md").read_text(encoding="utf-8")
    found = results(archive)
    assert f"\n{len(found)} runs of " in text
    assert {run.environment["commit"] is None for run in found.values()} == {archive.parent.name in WITHOUT_COMMIT}
    assert all(str(run.environment["commit"] or "") in text for run in found.values())
    for run in found.values():
        assert run.status == "ok"
        assert run.checks == []
        if run.footprint is not None and run.spec.execution in ("plain", "lean"):
            assert f"{run.footprint.peak_bytes:,}" in text, run.run_id


def test_every_commit_behind_what_is_published_is_in_the_history() -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT).stdout

    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("not a checkout with its whole history")
    tables = "".join(path.read_text(encoding="utf-8") for path in PUBLISHED.rglob("*.md"))
    known = [archive for archive in ARCHIVES if archive.parent.name not in WITHOUT_COMMIT]
    named = {str(run.environment["commit"]) for archive in known for run in results(archive).values()}
    named |= set(re.findall(r"\bcommit ([0-9a-f]{10})\b", tables))
    history = git("rev-list", "HEAD").split()
    assert named
    assert [name for name in sorted(named) if not any(commit.startswith(name) for commit in history)] == []


def test_the_published_accuracies_are_what_todays_code_writes_of_their_runs() -> None:
    runs = list(results(PUBLISHED / "accuracy" / "results.tar.gz").values())
    assert report_text(sections(runs)) == (PUBLISHED / "accuracy" / "report.md").read_text(encoding="utf-8")


def test_every_published_plot_is_shown_and_stored_once() -> None:
    links = {
        (page.parent / unquote(target)).resolve()
        for page in PUBLISHED.rglob("*.md")
        for target in re.findall(r"\]\(([^)#:]+\.(?:png|md|gz))\)", page.read_text(encoding="utf-8"))
    }
    assert [str(path) for path in links if not path.is_file()] == []
    files = [path for path in PUBLISHED.rglob("*") if path.is_file() and path.suffix not in (".md", ".gz")]
    assert {path.resolve() for path in files} == {path for path in links if path.suffix == ".png"}
    assert len({path.read_bytes() for path in files}) == len(files) > 50


@pytest.mark.slow
@pytest.mark.nightly
def test_published_pages_are_what_todays_code_writes(tmp_path: Path) -> None:
    for path in PUBLISHED.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            (tmp_path / path.relative_to(PUBLISHED)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tmp_path / path.relative_to(PUBLISHED))
    written = publish(tmp_path)
    assert len(written) >= 7
    changed = [page for page in written if page.read_text() != (PUBLISHED / page.relative_to(tmp_path)).read_text()]
    assert changed == []
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    assert names == {path.relative_to(PUBLISHED) for path in PUBLISHED.rglob("*.png")}


@pytest.mark.slow
@pytest.mark.nightly
def test_every_published_peak_of_every_method_is_predicted_to_a_percent() -> None:
    errors = {}
    for run in results(PUBLISHED / "table1-memory" / "results.tar.gz").values():
        predicted = predicted_peak_bytes(run.spec)
        assert predicted is not None
        assert run.allocator is not None
        errors[run.run_id] = predicted / run.allocator.peak_bytes - 1
    assert len(errors) == 28
    assert {name: error for name, error in errors.items() if abs(error) > 0.01} == {}


@pytest.mark.slow
@pytest.mark.nightly
def test_the_fits_shown_are_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "boards.md").read_text(encoding="utf-8")
    blocks = re.findall(r"\$ (clmem fit [^\n]*)\n(.*?)(?=\n\$ |\n```)", text, re.DOTALL)
    assert len(blocks) == 3
    for command, shown in blocks:
        done = subprocess.run(
            [sys.executable, "-m", "clmem.bench.cli", *shlex.split(command)[1:]],
            capture_output=True, text=True, check=True, cwd=ROOT, env={"COLUMNS": "80", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.stdout.strip() == shown.strip()
