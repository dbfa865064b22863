"""One reader of result files: what is whole loads, what is not is refused by one sentence that names the file."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clmem.harness.errors import UsageError
from clmem.harness.results.record import LARGEST_BYTES, RunResult, distinct, load_result, load_results, save_result
from clmem.harness.specs.run import RunSpec

PUBLISHED = sorted((Path(__file__).parents[3] / "reports" / "published").glob("*/results.tar.gz"))
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """A memory run as published."""
    return _published("table1-memory", "--memory--")


@pytest.fixture(scope="module")
def learnt() -> dict[str, Any]:
    """An accuracy run as published."""
    return _published("accuracy", "--seed0--")


def _published(folder: str, part: str) -> dict[str, Any]:
    archive = next(path for path in PUBLISHED if path.parent.name == folder)
    with tarfile.open(archive) as tar:
        name = next(name for name in sorted(tar.getnames()) if "/sgd--" in name and part in name)
        file = tar.extractfile(name)
        assert file is not None
        found: dict[str, Any] = json.loads(file.read())
        return found


def write(folder: Path, value: dict[str, Any], change: Change | None = None) -> Path:
    """Write a copy of a result, changed, under the name of its run."""
    copy = json.loads(json.dumps(value))
    if change is not None:
        change(copy)
    path = folder / f"{value['run_id']}.json"
    path.write_text(json.dumps(copy))
    return path


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_result(path)
    text = str(caught.value)
    assert text.startswith(str(path)) or str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("archive", PUBLISHED, ids=lambda path: str(path.parent.name))
def test_every_published_result_is_whole(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
        files = [name for name in tar.getnames() if "--" in Path(name).name]
    assert len(list(load_results(next(tmp_path.iterdir())))) == len(files) > 0


def _set(*keys: Any, to: Any) -> Change:
    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("schema", to=2), "its schema is 2 and this clmem reads 1"),
        (_set("schema", to=True), "its schema is True"),
        (_set("run_id", to="../../evil"), "its run id is '../../evil' but its spec gives 'sgd--"),
        (_set("spec", "batch_size", to=33), "its run id is 'sgd--"),
        (_set("footprint", "peak_bytes", to=-1), "footprint.peak_bytes is -1 but"),
        (_set("footprint", "peak_bytes", to=2**70), "footprint.peak_bytes is 1180591620717411303424 but"),
        (_set("footprint", "peak_bytes", to=5), "footprint has a peak of 5 but its roles sum to"),
        (_set("footprint", "phases", "step", to=7), "footprint.phases says 7 for step but footprint.by_phase has"),
        (_set("footprint", "by_phase", 0, "peak_bytes", to=7), "before_task has a peak of 7 but its roles sum to"),
        (
            _set("footprint", "role_peaks", "parameters", to=0),
            "of parameters at the peak but says that it is 0 at most",
        ),
        (_set("footprint", "at_peak", "soul", to=0), "footprint has the role 'soul', which clmem does not know"),
        (_set("footprint", "peak_task", to=9), "is said to be that of task 9"),
        (_set("footprint", "workspace_at_peak", to={}), "of workspace but workspace_at_peak sums to 0"),
        (
            _set("footprint", "library_workspace_at_peak", to={"cuDNN": 2**40}),
            "sums to 1,099,511,627,776, more than the",
        ),
        (_set("footprint", "without_libraries_bytes", to=2**40), "is 1,099,511,627,776, above the peak of"),
        (_set("footprint", "timeline", "time_s", to=[0.0]), "footprint.timeline has 1 times but"),
        (_set("allocator", "peak_bytes", to=7), "allocator.peak_bytes is 7 but the highest of allocator.by_phase is"),
        (_set("observer_delta_bytes", to=7), "observer_delta_bytes is 7 but the two peaks differ by 0"),
        (_set("status", to="oom"), "its status is 'oom' but it gives no reason"),
        (_set("steps", to=True), "steps is True but"),
        (_set("surprise", to=1), "it has a key 'surprise'"),
        (_set("wall_s", to=float("nan")), "NaN is no number of JSON"),
        (_set("environment", "deep", to=json.loads("[" * 40 + "]" * 40)), "nested more than 16 levels deep"),
        (_set("execution", "trunk_chunk", to={}), "execution.trunk_chunk is {}"),
        (_set("spec", "weights", to="a\x1b[31mb"), "the spec's weights is"),
        (_set("footprint", to=None), "its status is 'ok' but it has no footprint, as runs that measure memory have"),
        (_set("allocator", to=None), "its status is 'ok' but it has no allocator"),
        (_set("allocator", "kind", to="cuda"), "allocator.kind is 'cuda' but the spec's target is 'cpu'"),
        (_set("allocator", "by_phase", to=[]), "allocator.by_phase names no phase"),
        (_set("allocator", "by_phase", 1, 1, to="before_task"), "allocator.by_phase has task 0 before_task more than"),
        (_set("allocator", "reserved_bytes", to=5), "but allocator.reserved_bytes, which holds it, is 5"),
        (_set("footprint", "phases", to={}), "footprint.phases says 0 for before_task but"),
        (_set("footprint", "peak_op", to="aten::x"), "footprint.peak_op is 'aten::x' but by_phase says 'aten::"),
        (_set("footprint", "timeline", "marks", to=[[0.0, "a"]] * 2001), "footprint.timeline has 2,001 marks"),
        (_set("footprint", "timeline", "roles", "input", 0, to=2**40), "footprint.timeline rises to 1,0"),
        (_set("process", "peak_bytes", to=5), "process.peak_bytes is 5 but the process began with"),
        (_set("phase_s", "lunch", to=1.0), "phase_s has the phase 'lunch', which clmem does not know"),
        (_set("execution", "conv_slice", to=4), "execution.conv_slice is 4 but the spec's label 'plain' means 0"),
        (_set("execution", "exact", to=False), "execution.exact should be True"),
        (_set("environment", "huge", to=2**70), "it holds a number of more than 64 bits"),
        (_set("environment", "many", to=[0] * 2000), "it holds more than 1,000 values"),
        (_set("wall_s", to="1.0"), "wall_s is '1.0' but"),
        (_set("footprint", "role_peaks", "parameters", to=10**15), "role_peaks says 1,000,000,000,000,000 for param"),
        (_set("footprint", "role_peaks", "replay", to=1), "role_peaks says 1 for replay but footprint.by_phase has 0"),
        (_set("allocator", "by_phase", 0, 2, to=1), "allocator.by_phase has 1 for task 0 before_task but"),
        (_set("allocator", "by_phase", 0, 0, to=7), "for task 7 before_task but footprint.by_phase lacks it"),
        (_set("process", "curve", to=[[0.0, 10**15]]), "process.curve rises to 1,000,000,000,000,000 but"),
        (_set("footprint", "timeline", "time_s", -1, to=-1.0), "footprint.timeline.time_s falls from"),
        (_set("footprint", "timeline", "marks", -1, 0, to=-1.0), "footprint.timeline.marks falls from"),
        (_set("fingerprint", to=None), "its status is 'ok' but it has no fingerprint"),
        (_set("data_digest", to=None), "its status is 'ok' but it has no data_digest"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(
    whole: dict[str, Any], tmp_path: Path, change: Change, said: str
) -> None:
    assert said in refused(write(tmp_path, whole, change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("accuracy", "class_il", 0, 0, to=90.0), "the accuracy matrix holds 90.0"),
        (_set("metrics", "class_il_accuracy", to=0.5), "the metric 'class_il_accuracy' is 0.5 but the accuracies give"),
        (_set("metrics", to={}), "is None but the accuracies give"),
        (_set("accuracy", to=None), "its status is 'ok' but it has no accuracy"),
        (_set("accuracy", "class_il", 0, 0, to=True), "accuracy.class_il.0.0 is True but"),
        (_set("metrics", "luck", to=1.0), "the metric 'luck' is 1.0 but the accuracies give None"),
    ],
)
def test_metrics_follow_from_the_accuracies(learnt: dict[str, Any], tmp_path: Path, change: Change, said: str) -> None:
    assert said in refused(write(tmp_path, learnt, change))


def _learnt(matrix: Any, metrics: dict[str, float]) -> Change:
    """Replace the accuracies by a matrix in both scenarios, and the metrics by those that follow from it."""

    def change(value: Any) -> None:
        value["accuracy"] = dict.fromkeys(value["accuracy"]) | {"class_il": matrix, "task_il": matrix}
        value["metrics"] = {f"{il}_{name}": value for il in ("class_il", "task_il") for name, value in metrics.items()}

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_learnt([[1.0]], {"accuracy": 1.0}), "accuracy.class_il is 1 x 1 but a run over 5 tasks gives 5 x 5"),
        (_learnt([[1.0] * 5], {"accuracy": 1.0}), "accuracy.class_il is 1 x 5 but a run over 5 tasks gives 5 x 5"),
        (_set("joint", to=True), "accuracy.class_il is 5 x 5 but a joint run over 5 tasks gives 1 x 5"),
        (_learnt(None, {}), "it has neither accuracy.class_il nor accuracy.task_il"),
    ],
)
def test_matrices_fit_the_stream(learnt: dict[str, Any], tmp_path: Path, change: Change, said: str) -> None:
    assert said in refused(write(tmp_path, learnt, change))


def test_untrained_accuracies_fit_the_stream(learnt: dict[str, Any], tmp_path: Path) -> None:
    def change(value: Any) -> None:
        _learnt([[0.5] * 5], {"accuracy": 0.5})(value)
        value["joint"], value["accuracy"]["untrained_task_il"] = True, [0.5]

    assert "accuracy.untrained_task_il has 1 accuracies but" in refused(write(tmp_path, learnt, change))


def test_a_phase_that_a_check_names_may_peak_elsewhere(whole: dict[str, Any], tmp_path: Path) -> None:
    def change(value: Any) -> None:
        value["allocator"]["by_phase"][0][2] = 1
        value["checks"] = ["before_task of task 0 peaks at 9 B when observed and at 1 B when not"]

    assert load_result(write(tmp_path, whole, change)).checks


def _overriding(whole: dict[str, Any], **config: Any) -> dict[str, Any]:
    """Return the run as one whose spec overrides settings; what it says that it used stays."""
    spec = RunSpec.model_validate({**whole["spec"], "config": config})
    return {**whole, "run_id": spec.run_id, "spec": spec.model_dump(mode="json")}


@pytest.mark.parametrize(("key", "value"), [("lr", 0.5), ("head", "task_il"), ("luck", 1)])
def test_settings_are_those_of_the_spec(whole: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    text = refused(write(tmp_path, _overriding(whole, **{key: value})))
    assert f"method_config.{key} is {whole['method_config'].get(key)!r} but the spec sets {value!r}" in text


@pytest.mark.parametrize("value", [1, 1.0, "1.0"])
def test_settings_may_be_stored_as_their_type(whole: dict[str, Any], tmp_path: Path, value: Any) -> None:
    used = {**whole["method_config"], "lr": 1.0}
    assert load_result(write(tmp_path, {**_overriding(whole, lr=value), "method_config": used}))


def test_settings_of_other_packages_are_not_judged(whole: dict[str, Any], tmp_path: Path) -> None:
    other = {**whole, "spec": {**whole["spec"], "method": "my-own"}}
    assert load_result(write(tmp_path, _overriding(other, lr="small")))


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[1]",
            b"null",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a": 1e999}',
            b"9" * 5000,
            b'{"schema": 1, "schema": 1}',
        ),
        b'{"schema": 1, "status": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a--b.json"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("where", [(), ("spec", "config"), ("footprint", "by_phase", 0)])
def test_thousands_of_wrong_keys_are_refused_in_few_words(
    whole: dict[str, Any], tmp_path: Path, where: tuple[Any, ...]
) -> None:
    def change(value: Any) -> None:
        for key in where:
            value = value[key]
        value.update({f"{number:x}": [] for number in range(20_000)})

    path = write(tmp_path, whole, change)
    text = refused(path)
    assert "keys, more than 10,000" in text
    assert len(text) < 500 + len(str(path))


def test_thousands_of_wrong_items_are_refused_by_the_first(whole: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, whole, _set("footprint", "timeline", "roles", "input", to=[-1] * 1000))
    with pytest.raises(UsageError, match=r"footprint.timeline.roles.input.0 is -1 but") as caught:
        load_result(path)
    assert isinstance(caught.value.__cause__, ValidationError)
    assert caught.value.__cause__.error_count() == 1


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a--b.json"
    with path.open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    assert "more than the 16,777,216 that clmem reads" in refused(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a--b.json")
    assert "no regular file" in refused(tmp_path / "a--b.json")


def test_a_copy_is_named_and_counts_as_no_second_seed(whole: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, whole)
    for name in (f"{path.stem} (1).json", f"Copy of {path.name}"):
        (tmp_path / name).write_bytes(path.read_bytes())
        with pytest.raises(UsageError, match=rf"{re.escape(name)} looks like a copy of sgd--.*; delete the copy$"):
            list(load_results(tmp_path))
        (tmp_path / name).unlink()


def test_a_result_under_another_run_s_name_is_refused(whole: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, whole).rename(tmp_path / "sgd--other--memory--01234567.json")
    assert f"holds the run {whole['run_id']}" in refused(path)


def test_a_renamed_result_is_refused_by_name(whole: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(whole))
    with pytest.raises(UsageError, match=f"other.json holds the run {whole['run_id']}; name the file after its run"):
        list(load_results(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{", '{"title": "a suite"}', '[{"schema": 1, "run_id": "x"}]'])
def test_other_json_beside_results_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    assert list(load_results(tmp_path)) == []


def test_hidden_files_are_no_results(whole: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, whole)
    (tmp_path / "._a--b.json").write_bytes(b"\0\5")
    assert len(list(load_results(tmp_path))) == 1


def test_one_result_in_two_directories_counts_once(whole: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, whole)
    found = [load_result(path) for path in sorted(tmp_path.glob("*/*.json"))]
    assert distinct(found) == found[:1]


def test_two_results_of_one_run_are_told_apart_by_path(whole: dict[str, Any], tmp_path: Path) -> None:
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, whole, _set("wall_s", to=seconds))
    found = [load_result(path) for path in sorted(tmp_path.glob("*/*.json"))]
    with pytest.raises(UsageError, match=r"one/sgd--.* and \S*two/sgd--.* differ in wall_s"):
        distinct(found)


def test_text_from_outside_is_stored_clean_and_comes_back(tmp_path: Path) -> None:
    spec = RunSpec(method="sgd")
    reason = "a\x1b[31m\ud800\n" + "b" * 10_000
    run = RunResult(run_id=spec.run_id, spec=spec, status="crashed", reason=reason, environment={"e\n": ["\ud800"]})
    found = load_result(save_result(tmp_path, run))
    assert found.environment == {"e": ["\N{REPLACEMENT CHARACTER}"]}
    assert found.reason is not None
    assert len(found.reason) < 700
    assert found.reason.startswith("a\N{REPLACEMENT CHARACTER} bbb")


def test_a_loaded_result_knows_its_file_but_does_not_store_it(tmp_path: Path) -> None:
    spec = RunSpec(method="sgd")
    run = RunResult(run_id=spec.run_id, spec=spec, status="oom", reason="it was too much")
    path = save_result(tmp_path, run)
    found = load_result(path)
    assert (run.where, found.where) == (spec.run_id, str(path))
    assert found == run
    assert str(tmp_path) not in save_result(tmp_path, found).read_text()


def test_a_path_that_is_not_utf8_is_named_in_text_that_can_be_written(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "a--b.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        list(load_results(folder))
    assert "a--b.json" in str(caught.value).encode("utf-8").decode()
