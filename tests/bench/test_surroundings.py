"""The command in odd surroundings: pipes, locales, optimised Python, plug-ins that are broken, Ctrl-C in an import."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clmem.bench import app
from clmem.bench.cli import ADVICE, main

ROOT = Path(__file__).parents[2]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Nothing but ASCII, in names of files and on the terminal."""
PYTHON = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def clmem(*arguments: str | bytes, flags: tuple[str, ...] = (), shell: str = "", **environment: str) -> tuple[int, str]:
    """Run the command in a process of its own; return its exit code, and what it said on stderr.

    shell: how it is called, with `"$@"` for the command.
    """
    command = [sys.executable, *flags, "-m", "clmem.bench.cli", *arguments]
    whole = ["bash", "-o", "pipefail", "-c", shell, "bash", *command] if shell else command
    path = os.pathsep.join(filter(None, [str(ROOT), environment.pop("PYTHONPATH", "")]))
    done = subprocess.run(
        whole, env={**PYTHON, "PYTHONPATH": path, **environment}, capture_output=True, timeout=300, check=False
    )
    said = done.stderr.decode("utf-8", "surrogateescape")
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    return done.returncode, said


@pytest.mark.parametrize("arguments", [("list", "methods"), ("list", "techniques"), ("show", "ewc"), ("run", "--help")])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: tuple[str, ...]) -> None:
    assert clmem(*arguments, shell='"$@" | head -c 0; exit ${PIPESTATUS[0]}') == (141, "")


@pytest.mark.parametrize(
    ("shell", "code", "sentence"),
    [
        ('"$@" > /dev/full', 2, f"clmem: No space left on device{ADVICE[errno.ENOSPC]}\n"),
        ('"$@" >&-', 0, ""),
        ('"$@" >/dev/full 2>/dev/full', 2, ""),
    ],
)
def test_an_output_that_takes_nothing_is_one_sentence(shell: str, code: int, sentence: str) -> None:
    assert clmem("list", "targets", shell=shell) == (code, sentence)


@pytest.mark.parametrize("limit", ["-v 400000", "-d 100000"])
def test_too_little_memory_for_the_libraries_is_named(limit: str) -> None:
    code, said = clmem("measure", "sgd", "--width", "1", shell=f'ulimit {limit}; "$@"')
    assert code == 1
    assert "this process is out of memory" in said


def test_a_disk_that_is_full_from_the_start_is_named(tmp_path: Path) -> None:
    shell = f'trap "" XFSZ; cd {tmp_path}; ulimit -f 0; "$@" --out out'
    code, said = clmem("measure", "sgd", "--width", "1", "--stream", "split-fashion-mini", shell=shell)
    assert code == 2
    assert "No usable temporary directory" in said or "File too large" in said


def test_an_error_without_a_stdout_is_still_one_sentence() -> None:
    code, said = clmem("report", "x" * 5000, shell='"$@" >&-')
    assert (code, said.count("\n")) == (2, 1)
    assert "File name too long" in said


@pytest.mark.parametrize("code", [None, 0, 3])
def test_an_end_that_clmem_did_not_ask_for_is_a_failure(
    code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(arguments: list[str]) -> int:
        raise SystemExit(code)

    monkeypatch.setattr(app, "call", call)
    monkeypatch.setattr(sys, "argv", ["clmem", "list", "methods"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "SystemExit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "completed"),
    [("clmem me", "measure"), ("clmem show der", "derpp"), ("clmem probe --stream split-t", "split-tinyimagenet")],
)
def test_a_shell_completes_commands_methods_and_streams(words: str, completed: str) -> None:
    asked = {"_CLMEM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert clmem(shell=f'test "$("$@")" = {completed}', **asked) == (0, "")


def test_the_script_for_a_shell_is_printed_and_no_failure() -> None:
    assert clmem("--show-completion", shell='"$@" | grep -q _CLMEM_COMPLETE') == (0, "")


def test_a_closed_terminal_gets_no_error_on_stdout() -> None:
    code, _ = clmem("list", "targets", "extra", shell='test -z "$("$@" 2>&-)"')
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((b"report", b"\xc3\xa9\xff"), "is not a directory of results"),
        ((b"measure", b"\xc3\xa9"), "method is"),
        ((b"measure", b"sgd", b"--weights", b"\xc3\xa9"), "no text in ascii"),
        ((b"measure", b"sgd", b"--stream", "日本".encode()), "stream is"),
        ((b"run", "日本".encode()), "there is no suite"),
        ((b"list", "日本".encode()), "Invalid value"),
    ],
)
def test_every_message_can_be_said_in_ascii(arguments: tuple[bytes, ...], sentence: str) -> None:
    code, said = clmem(*arguments, **C_LOCALE)
    assert (code, said.count("\n")) == (2, 1)
    assert sentence in said
    assert said.isascii()


def test_tables_can_be_printed_in_ascii() -> None:
    assert clmem("claims", "sparcl", **C_LOCALE) == (0, "")


def test_a_path_that_is_no_text_is_refused_in_any_locale() -> None:
    for option in (b"--out", b"--data-root", b"--snapshot"):
        code, said = clmem(b"measure", b"sgd", option, b"\xff")
        assert (code, said.count("\n")) == (2, 1)
        assert "no text in utf-8" in said


@pytest.mark.slow
@pytest.mark.nightly  # all that torch consists of is compiled once more
def test_python_without_docstrings_and_asserts_lists_and_measures() -> None:
    assert clmem("list", "methods", "--json", flags=("-OO",)) == (0, "")
    code, said = clmem("measure", "sgd", "--width", "1", "--stream", "split-fashion-mini", flags=("-OO",))
    assert (code, said.count("\n")) == (0, 2)  # it says when it begins and when it ends


def test_broken_plug_ins_are_listed_with_their_reason_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "plugins.py").write_text("from clmem.methods.sgd import SGD\nclass Mute(SGD):\n    name = 'mute'\n")
    (tmp_path / "broken.py").write_text("print('a banner')\nraise RuntimeError('[/red] out of order')\n")
    info = tmp_path / "plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    lines = "mute = plugins:Mute\nbroken = broken:Broken\nabsent = nowhere:Absent\nsgd = plugins:Mute\n"
    (info / "entry_points.txt").write_text(f"[clmem.methods]\n{lines}")
    listed = tmp_path / "listed.json"
    code, said = clmem("list", "methods", "--json", shell=f'"$@" > {listed}', PYTHONPATH=str(tmp_path))
    assert (code, said) == (0, "a banner\n")
    entries = json.loads(listed.read_text(encoding="utf-8"))
    assert "RuntimeError: [/red] out of order" in entries["broken"]
    assert "No module named 'nowhere'" in entries["absent"]
    assert "there are 2 methods 'sgd'" in entries["sgd"]
    assert entries["mute"] == "(not described)"
    assert entries["derpp"].startswith("Dark Experience Replay++")
    code, said = clmem("measure", "absent", PYTHONPATH=str(tmp_path))
    assert (code, said.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("command", "moment", "then"),
    [
        ("predict sgd --width 1", "typer", "starts from the beginning"),
        ("predict sgd --width 1", "torch", "starts from the beginning"),
        ("measure sgd --out results", "pydantic", "starts from the beginning"),
        ("--debug run quick", "typer", "completes what is missing"),
        ("pretrain weights.safetensors", "pydantic", "completes what is missing"),
    ],
)
def test_ctrl_c_in_an_import_is_an_interruption(command: str, moment: str, then: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(name=moment))
    code, said = clmem(*command.split(), PYTHONPATH=str(tmp_path))
    assert code == 130
    assert said == f"clmem: interrupted; the same command {then}\n"


INTERRUPTING = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{name}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
"""


def test_ctrl_c_at_the_end_leaves_no_traceback() -> None:
    command = ["env", "--default-signal=INT", sys.executable, "-m", "clmem.bench.cli", "predict", "sgd", "--width", "1"]
    process = subprocess.Popen(
        command, env={**PYTHON, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 130, -signal.SIGINT, 141)
    assert "Traceback" not in said
    assert "Exception ignored" not in said
