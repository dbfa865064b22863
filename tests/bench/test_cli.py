"""The command line: one sentence for every mistake, the right exit code, and tables that fit a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from harness.errors import UsageError


def clmem(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("measure", "derp"), "there is no method 'derp': did you mean 'derpp'"),
        (("measure", "sgd", "--stream", "split-cifar11"), "did you mean 'split-cifar10'"),
        (("measure", "sgd", "--network", "resnet81"), "there is no network 'resnet81'"),
        (("measure", "sgd", "--target", "gpu"), "there is no target 'gpu'"),
        (("measure", "derpp", "--set", "alhpa=1"), "did you mean 'alpha'"),
        (("measure", "derpp", "--set", "alpha=-1"), "alpha"),
        (("measure", "derpp", "--set", "alpha"), "key=value"),
        (("measure", "er", "--buffer-size", "0"), "buffer size 0"),
        (("measure", "sgd", "--stream", "split-fashion-mini", "--batch-size", "5000"), "5000"),
        (("measure", "sgd", "--batch-size", "0"), "batch_size is 0"),
        (("measure", "tail-sgd", "--set", "boundary=layer9"), "no boundary 'layer9'"),
        (("measure", "sgd", "--stream", "split-cifar10", "--data-root", "."), "cifar"),
        (("measure", "tail-sgd", "--set", "boundary=stem"), "no trunk"),
        (("measure", "lightcl", "--batch-size", "8"), "memory_size is 15"),
        (("measure", "sgd", "--batch-size", "many"), "--batch-size': Input should be a valid integer"),
        (("measure", "sgd", "--out", "/proc/nowhere"), "cannot write to /proc/nowhere"),
        (("run", "quick", "--width", "5000"), "width is 5000"),
        (("run", "quick", "--method", "er", "--method", "er"), "more than once"),
        (("run", "quik"), "did you mean 'quick'"),
        (("run", "missing.toml"), "missing.toml"),
        (("run", "quick", "--method", "pnn"), "does not run 'pnn'"),
        (("run", "quick", "--set", "derpp=1"), "method.key=value"),
        (("report", "."), "no result"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CLMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clmem", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    errors = capsys.readouterr().err
    assert stopped.value.code == 2, errors
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.glob("results")) == []


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["clmem", "--debug", "measure", "derp"])
    with pytest.raises(UsageError, match="derpp"):
        main()


@pytest.mark.parametrize("what", ["methods", "streams", "networks", "targets", "suites"])
def test_lists_are_readable_and_available_as_json(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for form in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["clmem", "list", what, *form])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        printed.append(capsys.readouterr().out)
    entries = json.loads(printed[1])
    assert entries
    assert all(name in printed[0] and description for name, description in entries.items())
    assert max(map(len, printed[0].splitlines())) <= 110


def test_a_measurement_adds_up_to_the_byte() -> None:
    done = clmem("measure", "derpp", "--stream", "split-fashion-mini", "--width", "2", "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert sum(measured["at_peak"].values()) == measured["peak_bytes"] == measured["allocator"]["peak_bytes"]
    assert measured["observer_delta_bytes"] == 0
    # 15 slots: uint8 image 3 x 32 x 32, int64 label, 10 float32 logits
    assert measured["role_peaks"]["replay"] == 15 * (3 * 32 * 32 + 8 + 4 * 10)
    assert measured["process"]["peak_bytes"] > measured["process"]["baseline_bytes"]
