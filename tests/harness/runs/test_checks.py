"""Checks before a run: what cannot work is one sentence, and nothing has been started."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clmem.harness.answers.prediction import record
from clmem.harness.errors import ClmemError, UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.learning.registry import method_names
from clmem.harness.runs import checks
from clmem.harness.runs.checks import check_batch_norms, check_spec
from clmem.harness.specs.run import RunSpec, Sources
from clmem.harness.specs.suite import load_suite

PIXEL = {"stream": "synthetic-32px", "network": "resnet18-imagenet", "width": 2, "replay_size": 2, "buffer_size": 4}
"""A run whose last maps are one pixel."""
SUITES = Path(__file__).parents[3] / "bench" / "suites"


@pytest.mark.parametrize(
    "run",
    [
        {"method": "sgd", "batch_size": 1},
        {"method": "joint", "batch_size": 1},
        {"method": "derpp", "replay_size": 1},
        {"method": "derpp", "buffer_size": 1},
        {"method": "sgd", "batch_size": 5, "execution": "micro_batch=2"},
        {"method": "sgd", "batch_size": 1025, "execution": "micro_batch=32"},
        {"method": "derpp", "replay_size": 1, "execution": "grouped_bn=true"},
        {"method": "sgd", "batch_size": 1, "execution": "bn_parts=4"},
        {"method": "sgd", "batch_size": 1, "measure": "accuracy"},
    ],
    ids=lambda run: " ".join(map(str, run.values())),
)
def test_a_batch_norm_of_one_value_is_refused_with_the_sizes(run: dict[str, object]) -> None:
    spec = RunSpec.model_validate({**PIXEL, **run})
    with pytest.raises(UsageError, match=r"one pixel in resnet18-imagenet.*one sample of them") as refused:
        check_spec(spec)
    assert f"batch size {spec.batch_size}, replay size {spec.replay_size}" in str(refused.value)
    with pytest.raises(UsageError, match="one pixel"):
        check_spec(spec.model_copy(update={"stream": "synthetic-8px", "network": "resnet18"}))


@pytest.mark.parametrize(
    "run",
    [
        {"method": "sgd", "batch_size": 2},
        {"method": "sgd", "batch_size": 1, "stream": "synthetic-40px"},
        {"method": "sgd", "batch_size": 1, "network": "resnet18"},
        {"method": "er", "batch_size": 4, "replay_size": 1},
        {"method": "head-only", "batch_size": 1, "config": {"trunk": "frozen"}},
        {"method": "sgd", "batch_size": 4, "execution": "micro_batch=2"},
        {"method": "sgd", "batch_size": 2000, "execution": "micro_batch=27"},
    ],
    ids=lambda run: " ".join(map(str, run.values())),
)
def test_what_no_batch_norm_learns_from_alone_is_allowed(run: dict[str, object]) -> None:
    spec = RunSpec.model_validate({**PIXEL, **run})
    check_spec(spec)
    record(spec)


@pytest.mark.parametrize("name", method_names())
def test_every_method_can_be_checked_where_maps_are_one_pixel(name: str) -> None:
    check_spec(RunSpec.model_validate({**PIXEL, "method": name, "buffer_size": 15, "replay_size": 15}))


def test_images_of_ones_own_are_checked_by_their_size() -> None:
    spec = RunSpec(method="joint", network="resnet18-imagenet", batch_size=1, stream="split-fashion-mini")
    check_batch_norms(spec, (3, 64, 64))
    with pytest.raises(UsageError, match="images of 16 x 16 come down to one pixel"):
        check_batch_norms(spec, (3, 16, 16))


def test_runs_that_differ_in_seed_or_measure_are_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[RunSpec] = []

    def counted(spec: RunSpec, monitor: Unwatched, sources: Sources, **options: object) -> object:
        built.append(spec)
        return build(spec, monitor, sources, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checks, "build", counted)
    checks._put_together.cache_clear()
    for measure in ("memory", "accuracy"):
        for seed in range(3):
            check_spec(RunSpec(method="sgd", width=2, seed=seed, measure=measure, epochs=1 + seed))
    assert len(built) == 1


def test_nothing_is_built_with_values_to_check_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: set[object] = set()

    def counted(spec: RunSpec, monitor: Unwatched, sources: Sources, **options: object) -> object:
        devices.add(options["device"])
        return build(spec, monitor, sources, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checks, "build", counted)
    for spec in load_suite(SUITES / "table1-memory.toml").specs():
        check_spec(spec)
    assert devices <= {"meta"}


PLUGIN = """
from clmem.methods.sgd import SGD

class Wrong(SGD):
    name = "wrong"
    def __init__(self, setting, config):
        super().__init__(setting, config)
        {line}
"""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("self.absent", "AttributeError: 'Wrong' object has no attribute 'absent', in "),
        ("raise SystemExit(3)", "SystemExit: 3, in "),
        ("raise ValueError('lr must be even')", "method 'wrong' cannot be set up like this: lr must be even"),
        ("raise KeyError('\\x1b[31m' + 'x' * 10 ** 6)", "KeyError: "),
        ("import torch; torch.ones(2) @ torch.ones(3)", "in "),
    ],
)
def test_whatever_a_plug_in_raises_is_one_sentence(line: str, sentence: str, install: Callable[..., None]) -> None:
    install({"wrong_method.py": PLUGIN.format(line=line)}, {"wrong": "wrong_method:Wrong"})
    with pytest.raises(UsageError) as refused:
        check_spec(RunSpec(method="wrong", width=1))
    said = str(refused.value)
    assert sentence in said
    assert "\n" not in said
    assert len(said) < 900
    if sentence.endswith("in "):
        assert re.search(r"wrong_method\.py:8", said)


def test_a_method_without_enough_memory_is_no_bad_usage(install: Callable[..., None]) -> None:
    line = "import torch; torch.empty(1 << 60).numpy()"
    install({"wrong_method.py": PLUGIN.format(line=line)}, {"wrong": "wrong_method:Wrong"})
    with pytest.raises(ClmemError, match="this process is out of memory while method 'wrong' is set up") as refused:
        check_spec(RunSpec(method="wrong", width=1))
    assert not isinstance(refused.value, UsageError)


def test_what_a_method_prints_while_it_is_checked_is_no_result(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install({"wrong_method.py": PLUGIN.format(line="print('hello')")}, {"wrong": "wrong_method:Wrong"})
    check_spec(RunSpec(method="wrong", width=1))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_a_plug_in_that_reads_values_is_checked_all_the_same(install: Callable[..., None]) -> None:
    install({"wrong_method.py": PLUGIN.format(line="self.network.fc.weight.tolist()")}, {"wrong": "wrong_method:Wrong"})
    check_spec(RunSpec(method="wrong", width=1))
    with pytest.raises(UsageError, match="one pixel"):
        check_spec(RunSpec.model_validate({**PIXEL, "method": "wrong", "batch_size": 1}))
