"""Strategies that damage what is sound: bytes, JSON and TOML."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "0", "nan", "x" * 100_000, "\ud800", "\x00", "\x1b[31m"),
    *("../../../escaped", "/etc/passwd", "~root", "C:\\nul", "a\nb", "a|b", "`x`", "[x](javascript:alert(1))"),
    *(
        "<script>alert(1)</script>",
        "![x](http://example.invalid/x.png)",
        "[/red]",
        "{0.__class__}",
        "%s%n",
        "\u202etxt",
    ),
    *([], {}, [[]], [None], {"": ""}, [1] * 1000, {"a": {"b": {"c": {}}}}),
]
"""Values that no field expects."""


def damaged_bytes(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return strategies for what disks, downloads and people do to a file: flips, cuts, insertions, repetitions."""

    @st.composite
    def draw(pick: st.DrawFn) -> bytes:
        content = bytearray(whole)
        for _ in range(pick(st.integers(1, 4))):
            place = pick(st.integers(0, max(0, len(content) - 1)))
            how = pick(st.sampled_from(("flip", "set", "cut", "drop", "insert", "repeat", "zero")))
            if how == "flip" and content:
                content[place] ^= 1 << pick(st.integers(0, 7))
            elif how == "set" and content:
                content[place] = pick(st.integers(0, 255))
            elif how == "cut":
                del content[place:]
            elif how == "drop":
                del content[place : place + pick(st.integers(1, 64))]
            elif how == "insert":
                content[place:place] = pick(st.binary(max_size=64))
            elif how == "repeat":
                content[place:place] = content[place : place + pick(st.integers(1, 256))]
            elif how == "zero":
                content[place : place + 16] = bytes(len(content[place : place + 16]))
        return bytes(content)

    return draw()


def damaged_json(sound: Any) -> st.SearchStrategy[Any]:
    """Return strategies that replace, remove or add a few values anywhere in a JSON value."""
    places = list(_places(sound))

    @st.composite
    def draw(pick: st.DrawFn) -> Any:
        value = copy.deepcopy(sound)
        for _ in range(pick(st.integers(1, 3))):
            *above, last = pick(st.sampled_from(places))
            inside = value
            try:
                for key in above:
                    inside = inside[key]
                how = pick(st.sampled_from(("set", "set", "set", "remove", "rename", "scale")))
                if how == "set":
                    inside[last] = pick(st.sampled_from(HOSTILE))
                elif how == "remove":
                    del inside[last]
                elif how == "rename" and isinstance(inside, dict):
                    inside[pick(st.sampled_from([one for one in HOSTILE if isinstance(one, str)]))] = inside.pop(last)
                elif how == "scale" and isinstance(inside[last], int | float):
                    inside[last] *= pick(st.sampled_from((-1, 2, 1000)))
            except (KeyError, IndexError, TypeError):  # an earlier change took the place away
                continue
        return value

    return draw()


def damaged_toml(text: str) -> st.SearchStrategy[str]:
    """Return strategies that replace values, drop, repeat and swap lines of a TOML file, and damage its characters."""
    lines = text.splitlines()
    hostile = ["inf", "nan", "-1", "true", "1e999", "9" * 400, '"x"', "[]", "{}", "'''", "[" * 200, "0x" + "f" * 50]
    hostile += [
        '"' + "../" * 20 + '"',
        '"<script>"',
        '"\\u0000"',
        "1979-05-27",
        '["a", "a"]',
        "[[1]]",
        "'%999999999d' % 1",
    ]
    hostile += ['"' + "9**" * 30 + '9"', '"a"', '"max(a, a)"', '"[0] * 9999999999"', '"().__class__"']

    @st.composite
    def draw(pick: st.DrawFn) -> str:
        changed = list(lines)
        for _ in range(pick(st.integers(1, 4))):
            number = pick(st.integers(0, len(changed) - 1)) if changed else 0
            how = pick(st.sampled_from(("value", "value", "value", "drop", "repeat", "swap", "key", "characters")))
            if not changed:
                break
            key, equals, _ = changed[number].partition("=")
            if how == "value" and equals:
                changed[number] = f"{key}= {pick(st.sampled_from(hostile))}"
            elif how == "drop":
                del changed[number]
            elif how == "repeat":
                changed.insert(number, changed[number])
            elif how == "swap":
                other = pick(st.integers(0, len(changed) - 1))
                changed[number], changed[other] = changed[other], changed[number]
            elif how == "key" and equals:
                changed[number] = f"{pick(st.text(max_size=20))} = {changed[number].partition('=')[2]}"
            else:
                changed[number] += pick(st.text(max_size=20))
        return "\n".join(changed)

    return draw()


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything inside a JSON value; of long lists the first and the last items."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = [(number, item) for number, item in enumerate(value) if number < 3 or number == len(value) - 1]
    for key, item in items:
        yield (*above, key)
        yield from _places(item, (*above, key))
