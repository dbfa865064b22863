"""`import clmem` for scripts: light at first, the commands' results as objects, and errors of one sentence."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import clmem
from clmem.harness.errors import UsageError
from clmem.harness.results.record import RunResult
from clmem.harness.specs.run import RunSpec

SCRIPT = """
import clmem

measured = clmem.measure("derpp", stream="split-fashion-mini", width=2, execution="lean", settings={"alpha": 0.2})
predicted = clmem.predict("derpp", stream="split-fashion-mini", width=2, execution="lean", settings={"alpha": 0.2})
print(measured.status, measured.footprint.peak_bytes - predicted.footprint.peak_bytes, measured.method_config["alpha"])
"""


def test_importing_clmem_imports_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys, clmem; clmem.__version__; print([n for n in ('torch', 'pydantic', 'typer') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there_and_listed() -> None:
    assert all(getattr(clmem, name) is not None for name in clmem.__all__)
    assert set(clmem.__all__) <= set(dir(clmem))
    assert (clmem.RunSpec, clmem.RunResult, clmem.UsageError) == (RunSpec, RunResult, UsageError)
    assert clmem.__version__ == version("clmem")
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        clmem.mesure  # type: ignore[attr-defined]  # noqa: B018


def test_a_script_measures_and_predicts_without_a_main_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ok 0 0.2\n"


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("derp", {}, "there is no method 'derp'"),
        ("er", {"settings": {"lrr": 1}}, "has no setting 'lrr'"),
        ("er", {"settings": {"lr": [1]}}, "config.lr is"),
        ("er", {"batch_size": "many"}, "batch_size is 'many' but must be a whole number"),
        ("er", {"buffer_size": 0}, "buffer size 0"),
        ("er", {"execution": "leen"}, "there is no technique 'leen'"),
        ("er", {"weights": "absent.pt"}, "absent.pt"),
        ("er", {"target": "gpu"}, "there is no target 'gpu'"),
    ],
)
@pytest.mark.parametrize("function", [clmem.measure, clmem.predict])
def test_a_mistake_raises_one_sentence(
    function: object, method: str, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError) as refused:
        function(method, **{"stream": "synthetic-8px", "width": 1, **options})  # type: ignore[operator]
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_classes_and_sides_of_synthetic_images_decide_bytes() -> None:
    by_name = clmem.predict("er", stream="synthetic-tinyimagenet", width=2)
    chosen = clmem.predict("er", stream="synthetic-cifar100", num_classes=200, image_size=64, width=2)
    assert by_name.footprint is not None
    assert chosen.footprint is not None
    assert chosen.footprint.at_peak == by_name.footprint.at_peak
    assert chosen.spec.stream_title == "synthetic-cifar100 (200 classes, 64 px)"


def test_a_run_that_fails_is_a_result_with_its_reason() -> None:
    result = clmem.measure("sgd", stream="synthetic-8px", width=1, budget="1MiB")
    assert result.status == "oom"
    assert result.reason
