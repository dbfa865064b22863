"""Text from outside can always be stored, printed and used as a name."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from clmem.harness.text import LONGEST, clean, file_name

ANYTHING = st.text(st.characters(codec=None), max_size=200)
"""Lone surrogates and control characters too."""


def test_colours_titles_and_line_ends_do_not_survive() -> None:
    assert clean("a \x1b[31mred\x1b[0m\nline\x1b]0;title\x07\tend") == "a red line end"


def test_what_cannot_be_encoded_is_replaced() -> None:
    assert clean("a\ud800b") == "a\N{REPLACEMENT CHARACTER}b"


def test_brackets_and_markup_are_text_like_any_other() -> None:
    assert clean("[/red] [enforce fail at alloc.cpp] <b>") == "[/red] [enforce fail at alloc.cpp] <b>"


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert clean("x" * 10_000_000).endswith("x... (10,000,000 characters)")
    assert len(clean("x" * 10_000_000)) < LONGEST + 40


@given(ANYTHING, st.integers(1, 60))
@example(" ", 1)
@example("a ", 1)
def test_a_text_that_was_cut_is_not_cut_again(text: str, longest: int) -> None:
    shown = clean(text * 5, longest)
    assert clean(shown, longest) == shown


@given(ANYTHING)
def test_any_text_becomes_one_storable_line(text: str) -> None:
    shown = clean(text)
    assert json.loads(json.dumps(shown).encode()) == shown
    assert all(character.isprintable() for character in shown)
    assert clean(shown) == shown


@given(ANYTHING)
def test_any_text_becomes_a_name_inside_its_folder(text: str) -> None:
    name = file_name(text)
    assert name
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name.encode()) < 200


@given(ANYTHING, ANYTHING)
def test_different_texts_never_get_the_same_name(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


def test_names_that_are_safe_already_stay_as_they_are() -> None:
    for name in ("lightcl@released", "split-cifar10-resnet18-w64-cpu-batch32", "trunk.safetensors@3fa9c1d2e4b5"):
        assert file_name(name) == name
