"""Files are written whole or not at all, and files of others are read with nothing taken for granted."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from clmem.harness.errors import UsageError
from clmem.harness.files import (
    DEEPEST_TOML,
    expand,
    read_text,
    read_toml,
    regular,
    remove_unfinished,
    replacing,
    write_bytes,
)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "file", b"old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_half()
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def test_a_full_disk_is_reported_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file")


def test_only_our_own_unfinished_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    theirs = [tmp_path / ".download.part", tmp_path / ".vimrc", tmp_path / "inner" / ".a.1.clmem-part"]
    for path in theirs:
        path.write_text("mine")
    (tmp_path / ".x.json.123.clmem-part").write_text("{")
    remove_unfinished(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(theirs)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "nothing"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "it")
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(UsageError, match=r"cannot read the thing .*give the path of a file"):
        regular(path, "the thing")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "file", "\ufefftitle = 'ä'".encode())
    assert read_toml(path) == {"title": "ä"}


@pytest.mark.parametrize("content", ["title = 'ä'".encode("latin-1"), "title = 'x'".encode("utf-16"), b"\xff"])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_toml(write_bytes(tmp_path / "file", content))


def test_a_text_larger_than_expected_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 11 B, more than the 10"):
        read_text(write_bytes(tmp_path / "file", b"x" * 11), "the note", 10)


HOSTILE = {
    "many parts": ".".join(["a"] * 50_000) + " = 1",
    "parts behind a comment": '# """\n' + ".".join(['"a b"'] * 50_000) + " = 1",
    "parts with spaces": " . ".join(["a"] * 50_000) + " = 1",
    "nested arrays": "a = " + "[" * 50_000 + "]" * 50_000,
    "nested tables": "a = " + "{a=" * 50_000 + "1" + "}" * 50_000,
    "a long number": "a = " + "1" * 100_000,
    "escapes without an end": 'a = "' + '\\"' * 300_000,
    "quotes without an end": '"""' * 100_000,
    "a long word": "a" * 1_000_000,
    "too large": "# " + "x" * 2_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_toml_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text(HOSTILE[kind])
    start = time.process_time()
    with pytest.raises(UsageError, match=str(path)) as caught:
        read_toml(path)
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value)


def test_dots_in_strings_and_comments_are_no_keys(tmp_path: Path) -> None:
    dotted = ".".join(["word"] * 2 * DEEPEST_TOML)
    path = tmp_path / "file"
    path.write_text(f'# {dotted}\na = \'{dotted}\'\nb = """\n{dotted}"""\n')
    assert read_toml(path) == {"a": dotted, "b": dotted}


def test_a_home_folder_is_filled_in_or_its_absence_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert expand("~/trunk.safetensors") == Path("/home/somebody/trunk.safetensors")
    with pytest.raises(UsageError, match="a home folder that this system does not know"):
        expand("~nobody-of-this-name/trunk.safetensors")
    with pytest.raises(UsageError, match="NUL"):
        expand("a\0b")
