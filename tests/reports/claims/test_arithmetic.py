"""Formulas of claim files: arithmetic on numbers and names, and never anything that takes long or much memory."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmem.reports.claims.arithmetic import LARGEST, calculate

NAMES = {"W": 42.625, "k": 4.0, "a": 2.13}


def value(formula: str) -> float:
    return calculate(formula, NAMES.__getitem__)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("2 * W + 47 * a", 2 * 42.625 + 47 * 2.13),
        ("3 * 32 * 32 * 4 * k / 2**20", 3 * 32 * 32 * 4 * 4 / 2**20),
        ("max(0, 32 * (k - a) - W)", 32 * (4 - 2.13) - 42.625),
        ("-min(W, k, a) ** 2 + +1", -(2.13**2) + 1),
        (" 1e3 ", 1000.0),
        ("1_000", 1000.0),
    ],
)
def test_arithmetic_is_that_of_floats(formula: str, expected: float) -> None:
    assert value(formula) == expected


@pytest.mark.parametrize(
    "formula",
    [
        *("'%999999999d' % 1", "'a' * 10**9", "'a' + 'b'", "b'a'", "f'{W}'", "[1] * 10**9", "(1,) * 10**9", "{1: 2}"),
        *(
            "[k for k in [1, 2]]",
            "{1}",
            "W.real",
            "W.__class__",
            "__import__('os')",
            "max.__self__",
            "W[0]",
            "print(1)",
        ),
        *("10 ** 10 ** 10", "9**9**9**9", "10.0**400", "1e999", "1e308 * 10", "2 ** 1e9", "(-8) ** 0.5", "1 / 0"),
        *(
            "10 % 3",
            "7 // 2",
            "1 << 10**9",
            "1 | 2",
            "~1",
            "1 < 2",
            "W and k",
            "W if k else a",
            "not W",
            "True",
            "None",
        ),
        *(
            "lambda: 1",
            "x := 1",
            "x = 1",
            "import os",
            "1; 2",
            "",
            " ",
            "#",
            "1\n+1",
            "1\0",
            "1 +",
            "1if 1 else 2",
            "1 2",
        ),
        *("max(1, 2)(3)", "pow(2, 3)", "0 ** -1", "1" + " + 1" * 249, "max(" * 150 + "1, 1" + ", 1)" * 149 + ")"),
        *("max()", "max(1)", "max([1])", "max(*[1, 2])", "max(1, 2, key=3)", "min(W, 'a')", "nan", "inf", "1j", "..."),
        *("(" * 300 + "1" + ")" * 300, "-" * 999 + "1", "1+" * 499 + "1 1", "1 + " * 10**6 + "1", "9" * 990, "\ud800"),
        *("W" * 999, "é" * 20, "\N{MATHEMATICAL BOLD DIGIT ONE}", "0x" + "f" * 900),
    ],
    ids=lambda formula: ascii(formula)[:30],
)
def test_anything_else_is_refused_at_once(formula: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, KeyError)) as refused:
            value(formula)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    if isinstance(refused.value, ValueError):
        assert len(str(refused.value)) < 500
        assert str(refused.value).isprintable()
        assert " at 0x" not in str(refused.value)


def test_what_comes_to_too_much_is_refused() -> None:
    assert value("10 ** 30") == float(LARGEST)
    with pytest.raises(ValueError, match="not a number of at most"):
        value("10 ** 31")


OPERATIONS = st.recursive(
    st.sampled_from(["W", "k", "a", "1", "2.5", "1e-3"]),
    lambda parts: st.tuples(parts, st.sampled_from([" + ", " - ", " * ", " / "]), parts).map(
        lambda three: f"({three[0]}{three[1]}{three[2]})"
    ),
    max_leaves=12,
)


@given(OPERATIONS)
def test_formulas_come_to_what_python_makes_of_them(formula: str) -> None:
    try:
        expected = eval(formula, {}, NAMES)
    except ZeroDivisionError:
        expected = math.inf
    if math.isfinite(expected) and abs(expected) <= LARGEST:
        assert value(formula) == pytest.approx(expected, rel=1e-12)
    else:
        with pytest.raises(ValueError, match=r"cannot be computed|not a number"):
            value(formula)


@given(st.text(max_size=300) | st.text("()[]{}'\"*+-/%.,:= Wka012eif", max_size=300))
def test_any_text_is_a_number_or_a_sentence(formula: str) -> None:
    try:
        found, said = value(formula), ""
    except (ValueError, KeyError) as error:
        found, said = 0.0, str(error)
    assert math.isfinite(found)
    assert len(said) < 1000
