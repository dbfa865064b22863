"""A result whose every value may be wrong is refused by one sentence, or reported without harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult, load_result, save_result
from clmem.reports.data.load import load_sections
from clmem.reports.data.predictions import FILE
from clmem.reports.markdown.markup import cell_text, plain
from clmem.reports.report import write_report
from clmem.reports.terminal.runs import measure_table, summary

HOSTILE: tuple[Any, ...] = (
    *(-1, 0, 2**63, -(2**200), 1e308, -0.5, True, None, float("nan"), float("inf")),
    *("", "<script>alert(1)</script>", "[a](javascript:alert(1))", "![a](x)", "`a` | b\n\n# c", "\x1b]0;t\x07a"),
    *("../../../escaped", "/etc/passwd", "\ud800", "\u202eabc", "a" * 5000, "[/red] [enforce fail at x]", "{0}%s"),
    *([], {}, [[]], {"<script>": {"a": ["](javascript:x)"]}}),
)
MISSING = object()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a nested one, those that hold others as well."""
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):  # of long lists the first and the last
        items = [(number, item) for number, item in enumerate(value) if number < 2 or number == len(value) - 1]
    for key, item in items:
        yield from leaves(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], to: Any, as_key: bool) -> Any:
    """Return a copy with one value replaced, or its key, or without it."""
    copy = deepcopy(value)
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if to is MISSING:
        del parent[path[-1]]
    elif as_key and isinstance(parent, dict) and isinstance(to, str):
        parent[to] = parent.pop(path[-1])
    else:
        parent[path[-1]] = to
    return copy


def named_after_itself(value: dict[str, Any]) -> str:
    """Return the run id that a changed spec has, as somebody would who meant harm; the old one where it has none."""
    try:
        value["run_id"] = RunResult.model_validate({**value, "run_id": "x"}).spec.run_id
    except ValueError:
        return str(value.get("run_id", "a--b"))
    return str(value["run_id"])


def harmless(text: str) -> bool:
    return not any(part in text.lower() for part in ("<script", "](javascript:", "\x1b", "\ud800", "\u202e", "![a]"))


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """A memory run as published."""
    archive = Path(__file__).parents[2] / "reports" / "published" / "table1-memory" / "results.tar.gz"
    with tarfile.open(archive) as tar:
        file = tar.extractfile(next(name for name in sorted(tar.getnames()) if "/sgd--" in name))
        assert file is not None
        found: dict[str, Any] = json.loads(file.read())
        return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_value_of_a_result_may_be_hostile(
    data: st.DataObject, example_runs: list[RunResult], published: dict[str, Any]
) -> None:
    runs = [published, *(json.loads(run.model_dump_json(by_alias=True)) for run in example_runs)]
    number = data.draw(st.integers(0, len(runs) - 1))
    path = data.draw(st.sampled_from(list(leaves(runs[number]))))
    to = data.draw(st.one_of(st.sampled_from([*HOSTILE, MISSING]), st.text(), st.integers(), st.floats()))
    runs[number] = changed(runs[number], path, to, as_key=data.draw(st.booleans()))
    with TemporaryDirectory() as folder:
        place = Path(folder) / "a" / "results"
        place.mkdir(parents=True)
        for run in runs:
            name = named_after_itself(run).replace("/", "_").replace("\0", "_")[:200]
            (place / f"{name.encode('utf-8', 'replace').decode()}.json").write_text(json.dumps(run))
        before = set(Path(folder).rglob("*"))
        refused = None
        try:
            page = write_report(place, plots=False).read_text(encoding="utf-8")
            shown = summary(load_sections(place))
            shown += "".join(measure_table(load_result(file)) for file in sorted(place.glob("*--*.json")))
        except UsageError as error:
            refused = str(error)
        if refused is not None:
            assert "\n" not in refused
            assert "\x1b" not in refused
            refused.encode("utf-8")
            assert set(Path(folder).rglob("*")) == before
            return
        assert harmless(page)
        assert "\x1b" not in shown
        shown.encode("utf-8")
        assert set(Path(folder).rglob("*")) - before == {place / "report.md"}


def test_a_label_full_of_markup_is_shown_as_it_is(tmp_path: Path, memory_run: Any) -> None:
    config = {"x": "<script>[a](javascript:b)`c|d`*e*"}
    run = memory_run("sgd", {"input": 1.0, "workspace": 1.0}, config=config, op="`</code>|<b>`")
    run.notes.append("![a](http://b) could not be saved")
    save_result(tmp_path, run)
    page = write_report(tmp_path, plots=False).read_text(encoding="utf-8")
    assert harmless(page)
    assert "sgd (x=&lt;script>\\[a\\]\\(javascript:b)\\`c\\|d\\`\\*e\\*)" in page
    assert "in \\`&lt;/code>|&lt;b>\\`." in page
    assert "- !\\[a\\]\\(http&#58;//b) could not be saved" in page


def test_names_from_results_are_names_of_files_in_the_folder(memory_run: Any) -> None:
    from clmem.reports.data.grouping import sections

    runs = [memory_run("sgd", {"input": 1.0}, network=name) for name in ("../../x", "..//../x", "a b", "ab")]
    slugs = {section.setting.slug for section in sections(runs)}
    assert len(slugs) == len(runs)
    assert all("/" not in slug and not slug.startswith(".") for slug in slugs)


def test_a_plus_in_a_cell_begins_no_list() -> None:
    assert cell_text("+ checkpoint=block") == "+ checkpoint=block"
    assert plain("+ checkpoint=block") == "\\+ checkpoint=block"


def test_a_report_stays_small_whatever_its_results_say(tmp_path: Path, memory_run: Any) -> None:
    run = memory_run("sgd", {"input": 1.0}, checks=("<" * 300,) * 2000)
    run.notes += [f"{number}" + "|" * 300 for number in range(2000)]
    run.environment |= {f"<{number}": "|" * 300 for number in range(500)}
    run.footprint.held_into_backward = {f"{number}" + "`" * 300: 1 for number in range(2000)}
    run.footprint.workspace_at_peak = {f"{number}" + "`" * 300: 0 for number in range(2000)}
    run.method_config = {f"{number}": "*" * 300 for number in range(500)}
    saved = save_result(tmp_path, RunResult.model_validate(run.model_dump()))
    size = write_report(tmp_path, plots=False).stat().st_size
    assert size < saved.stat().st_size / 3


def test_a_link_in_a_download_leads_no_plot_elsewhere(tmp_path: Path, memory_run: Any) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    for folder in (results, elsewhere):
        folder.mkdir()
    save_result(results, memory_run("sgd", {"input": 1.0}))
    (results / "plots").symlink_to(elsewhere)
    with pytest.raises(UsageError, match=r"results/plots is a link to another place; delete it, or choose .* --out$"):
        write_report(results)
    assert list(elsewhere.iterdir()) == []


def test_a_report_holds_no_path_of_the_machine_that_wrote_it(tmp_path: Path, memory_run: Any) -> None:
    shape = {"stream": "synthetic-tinyimagenet", "width": 64}
    for name, seed in (("sgd", 0), ("er", 1)):
        save_result(tmp_path, memory_run(name, {"input": 1.0}, seed=seed, **shape))
    page = write_report(tmp_path, plots=False).read_text(encoding="utf-8")
    assert "Not compared with the claim: seed differs" in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "\ufeff[",
        '{"a": -1}',
        '{"a": 1e9}',
        '{"a": true}',
        '{"a": NaN}',
        '{"a": "1"}',
        '{"\x1b[31m": []}',
        "[" * 9999,
    ],
)
def test_predictions_that_are_none_are_refused_in_one_line(tmp_path: Path, memory_run: Any, content: str) -> None:
    save_result(tmp_path, memory_run("sgd", {"input": 1.0}))
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"predictions.json does not hold predictions: .*; delete it") as caught:
        write_report(tmp_path, plots=False)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_directory_whose_name_is_not_utf8_is_reported_on(
    tmp_path: Path, accuracy_run: Any, locale: dict[str, str]
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9"))
    folder.mkdir()
    save_result(folder, accuracy_run("sgd", 0, [[0.5] * 5] * 5, [[0.5] * 5] * 5))
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "clmem.bench.cli", "report", os.fsencode(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root, **locale}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"report.md\n")
    assert (folder / "report.md").exists()
