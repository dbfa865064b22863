"""Sentences about unknown names and about exceptions of others' code: short, whatever was asked or raised."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clmem.harness.errors import blame, nearest
from clmem.harness.text import clean


def test_a_misspelt_name_is_compared_and_an_unlike_one_gets_the_list() -> None:
    assert nearest("derp", ["derpp", "er", "sgd"]) == "did you mean 'derpp' or 'er'?"
    assert nearest("zzz", ["b", "a"]) == "known are a, b"
    assert nearest("zzz", [f"name{number:03}" for number in range(100)]).endswith("name039 and 60 more")


def test_a_long_name_is_compared_with_many_in_little_time() -> None:
    names = [f"a-method-with-the-number-{number}" for number in range(10_000)]
    before = time.process_time()
    nearest("a-method-" * 10**5, names)
    assert time.process_time() - before < 5


def raised_by(source: str, folder: Path) -> BaseException:
    path = folder / "theirs.py"
    path.write_text(source)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        exec(compile(source, str(path), "exec"), {})
    return caught.value


def test_an_exception_is_told_with_the_line_of_the_code_it_is_of(tmp_path: Path) -> None:
    error = raised_by("import json\n\njson.loads('{')\n", tmp_path)
    assert blame(error).startswith("JSONDecodeError: Expecting property name")
    where = tmp_path / "theirs.py"
    assert blame(raised_by("1 / 0", tmp_path)) == f"ZeroDivisionError: division by zero, in {where}:1"
    error = raised_by("import torch\ntorch.ones(2) @ torch.ones(3)\n", tmp_path)
    assert blame(error).endswith(f", in {where}:2")


def test_an_exception_that_cannot_be_told_is_still_named(tmp_path: Path) -> None:
    source = "class Mute(Exception):\n    def __str__(self):\n        raise KeyError\nraise Mute\n"
    assert blame(raised_by(source, tmp_path)) == f"Mute, in {tmp_path / 'theirs.py'}:4"
    long = blame(raised_by("raise ValueError('\\x1b[31m\\n' + 'x' * 10**7)", tmp_path))
    assert long == clean(long, 1000)
    assert len(long) < 700
