"""The command line: one sentence for every mistake, the right exit code, and tables that fit a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from clmem.bench.cli import main
from clmem.bench.options import SUITES
from clmem.harness.errors import UsageError
from clmem.harness.files import read_toml


def clmem(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clmem.bench.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)


def assert_refused(
    arguments: tuple[str, ...],
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CLMEM_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["clmem", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    errors = capsys.readouterr().err
    assert stopped.value.code == 2, errors
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(folder.glob("results")) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("measure", "derp"), "there is no method 'derp': did you mean 'derpp'"),
        (("measure", "sgd", "--stream", "split-cifar11"), "did you mean 'split-cifar10'"),
        (("measure", "sgd", "--network", "resnet81"), "there is no network 'resnet81'"),
        (("measure", "sgd", "--num-classes", "13"), "give a multiple of 5"),
        (("predict", "sgd", "--target", "cuda", "--card", "h1000"), "there is no card 'h1000': did you mean 'h100'"),
        (("predict", "sgd", "--card", "h100"), "--card h100 is about a METHOD with --target cuda"),
        (("predict", "sgd", "--num-classes", "1"), "num_classes is 1"),
        (("fit", "sgd", "--image-size", "2"), "image_size is 2"),
        (("run", "quick", "--image-size", "64"), "can be chosen of synthetic streams alone"),
        (("measure", "sgd", "--target", "gpu"), "there is no target 'gpu'"),
        (("measure", "derpp", "--set", "alhpa=1"), "did you mean 'alpha'"),
        (("measure", "derpp", "--set", "alpha=-1"), "alpha"),
        (("measure", "derpp", "--set", "alpha"), "key=value"),
        (("measure", "er", "--buffer-size", "0"), "buffer size 0"),
        (("measure", "sgd", "--stream", "split-fashion-mini", "--batch-size", "5000"), "5000"),
        (("measure", "sgd", "--batch-size", "0"), "batch_size is 0"),
        (("measure", "sgd", "--set", "lr=Infinity"), "config.lr is inf but it should be a finite number"),
        (("measure", "sgd", "--set", "lr=" + "9" * 30), "number of at most 64 bits"),
        (("measure", "sgd", "--set", "lr=true"), "lr' of method 'sgd' is True but"),
        (("measure", "sgd", "--weights", "/dev/zero"), "it is no regular file"),
        (("measure", "sgd", "--data-root", "a\0b"), "holds a NUL character"),
        (("pretrain", "w", "--seed", str(2**64)), "seed is 18446744073709551616"),
        (("pretrain", "w", "--batch-size", "1", "--network", "resnet18-imagenet"), "one pixel in resnet18-imagenet"),
        (
            ("predict", "sgd", "--batch-size", "1", "--network", "resnet18-imagenet", "--stream", "synthetic-32px"),
            "one pixel in resnet18-imagenet",
        ),
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
    assert_refused(arguments, sentence, tmp_path, monkeypatch, capsys)


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clmem", "--version"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"clmem {version('clmem')}\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["clmem", "--debug", "measure", "derp"])
    with pytest.raises(UsageError, match="derpp"):
        main()


@pytest.mark.parametrize("what", ["methods", "streams", "networks", "targets", "cards", "budgets", "suites", "claims"])
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
    assert max(map(len, printed[0].splitlines())) <= 80


def test_show_prints_a_suites_file_and_a_method_of_the_same_name_goes_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["clmem", "show", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        return capsys.readouterr().out

    file = SUITES / "quick.toml"
    assert shown("quick") == file.read_text()
    assert shown("quick").startswith('title = "')
    assert json.loads(shown("quick", "--json")) == read_toml(file)
    monkeypatch.setattr("clmem.bench.commands.show.suite_names", lambda: ["sgd"])
    assert shown("sgd").startswith("sgd: ")


@pytest.mark.parametrize(
    "command",
    [
        ("list", "methods"),
        ("list", "networks"),
        ("measure", "derp"),
        ("measure", "lightcl@releasd"),
        ("predict", "derp"),
        ("fit", "derp"),
        ("run", "quick", "--method", "derp"),
        ("probe", "--stream", "split-cifar11"),
        ("show", "quick"),
    ],
    ids=" ".join,
)
def test_lists_and_wrong_names_never_import_torch(command: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {command!r}; sys.modules['torch'] = None; from clmem.bench.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if command[0] in ("list", "show") else 2), done.stderr
    assert "torch" not in done.stderr


def test_a_measurement_adds_up_and_says_when_it_begins_and_ends() -> None:
    done = clmem("measure", "derpp", "--stream", "split-fashion-mini", "--width", "2", "--json")
    begins, ends = done.stderr.strip().splitlines()
    assert begins.strip() == "begins: derpp on split-fashion-mini: memory"
    assert ends.strip().startswith("1/1 derpp on split-fashion-mini: peak ")
    assert done.returncode == 0
    measured = json.loads(done.stdout)
    assert sum(measured["at_peak"].values()) == measured["peak_bytes"] == measured["allocator"]["peak_bytes"]
    assert measured["observer_delta_bytes"] == 0
    # 15 slots: uint8 image 3 x 32 x 32, int64 label, 10 float32 logits
    assert measured["role_peaks"]["replay"] == 15 * (3 * 32 * 32 + 8 + 4 * 10)
    assert measured["process"]["peak_bytes"] > measured["process"]["baseline_bytes"]


SUITE = 'title = "t"\nmethods = ["sgd"]\nstreams = ["synthetic-8px"]\nmeasure = ["memory"]\nwidth = 1\n'


def suite(**changed: str) -> bytes:
    """Return a suite file in which some keys have other values, as TOML."""
    lines = dict(line.split(" = ", 1) for line in SUITE.splitlines()) | changed
    return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (SUITE.encode("utf-16"), "is not UTF-8 text"),
        (SUITE.encode() + b"\xff", "is not UTF-8 text"),
        (SUITE.encode() + b"\0", "is not valid TOML"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b".".join([b"a"] * 50_000) + b" = 1", "a key of more than 64 parts"),
        (b"#" * 2**21, "more than the 1,048,576 that clmem reads"),
        (b"x = " + b"9" * 5000, "is not valid TOML"),
        (b"", "the key 'title' is missing"),
        (suite(width="true"), "width is True but"),
        (suite(width="1.0"), "width is 1.0 but"),
        (suite(width='"1"'), "width is '1' but"),
        (suite(batch_size="1" + "0" * 30), "batch_size is 1000"),
        (suite(seeds=f"[{2**64}]"), "seed"),
        (suite(timeout_s="inf"), "timeout_s is inf but"),
        (suite(timeout_s="nan"), "timeout_s is nan but"),
        (suite(budget=f'"{"9" * 400}"'), "budget is '999"),
        (suite(methods='["sgd@"]'), "has no preset ''"),
        (suite(methods='["../up"]'), "there is no method '../up'"),
        (suite(methods='[""]'), "there is no method ''"),
        (suite(methods='["a\\nb"]'), "method"),
        (suite(streams='["a\\u0000b"]'), "stream"),
        (suite(methods=str([f"m{number}" for number in range(10_000)])), "there is no method 'm0'"),
        (suite(weights='"a\\u0000b"'), "holds a NUL character"),
        (suite(weights='"~nobody-of-this-name/w.pt"'), "names a home folder that this system does not know"),
        (suite(weights='"/dev/zero"'), "it is no regular file"),
        (suite() + b"[config.sgd]\nlr = inf\n", "config.sgd.lr is inf but it should be a finite number"),
        (suite() + b"[config.sgd]\nlr = true\n", "lr"),
        (suite() + b"[config.sgd]\nlr = [1]\n", "config.sgd.lr is [1] but it should be a number"),
        (suite() + b"[[vary]]\nbatch_size = 0\n", "batch_size is 0 but"),
        (suite() + b"[[vary]]\nseeds = [-1]\n", "vary.0.seeds.0 is -1 but"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_suite_file_that_is_none_is_one_sentence(
    content: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    assert_refused(("run", str(path)), sentence, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_a_suite_that_is_no_file_is_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    assert_refused(("run", str(path)), "own.toml", tmp_path, monkeypatch, capsys)


def test_a_byte_order_mark_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xef\xbb\xbf" + suite(methods='["absent"]'))
    assert_refused(("run", str(path)), "there is no method 'absent'", tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", "sgd", "--weights", "~/absent.pt"),
        ("pretrain", "~/w", "--weights", "~/absent.pt"),
        ("pretrain", "w", "--images", "~/absent"),
        ("run", "~/absent.toml"),
        ("run", "quick", "--weights", "~/absent.pt"),
        ("report", "~/absent"),
        ("claims", "~/absent.toml"),
        ("claims", "--results", "~/absent"),
        ("predict", "--against", "~/absent"),
        ("probe", "--stream", "split-cifar10", "--data-root", "~/absent"),
        ("measure", "sgd", "--out", "~/file/absent"),
        ("measure", "sgd", "--out", "~nobody-of-this-name/absent"),
    ],
    ids=" ".join,
)
def test_a_home_folder_is_understood_wherever_a_path_is(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home))
    said = "names a home folder that" if "nobody" in arguments[-1] else str(home)
    assert_refused(arguments, said, tmp_path, monkeypatch, capsys)
    assert not (tmp_path / "~").exists()
