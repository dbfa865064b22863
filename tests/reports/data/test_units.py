"""How numbers are written."""

from __future__ import annotations

import pytest

from clmem.reports.data.units import MIB, Statistic, count, listed, mib, plural, share, signed


def test_mib_are_powers_of_two_with_one_decimal() -> None:
    assert mib(MIB) == "1.0"
    assert mib(1_000_000) == "1.0"
    assert mib(1234 * MIB + MIB // 2) == "1,234.5"


def test_what_was_not_measured_is_empty_and_zero_is_not() -> None:
    assert mib(None) == count(None) == ""
    assert mib(0) == "0.0"
    assert count(0) == "0"


def test_deviation_is_the_sample_deviation_over_seeds() -> None:
    statistic = Statistic.of([0.70, 0.72, 0.77])
    assert statistic is not None
    assert statistic.n == 3
    assert statistic.deviation == pytest.approx(0.0360555, abs=1e-6)
    assert statistic.percent() == "73.0 ± 3.6"


def test_two_seeds_deviate_by_their_difference_over_root_two() -> None:
    statistic = Statistic.of([0.5, 0.7])
    assert statistic is not None
    assert (statistic.mean, statistic.n) == (pytest.approx(0.6), 2)
    assert statistic.deviation == pytest.approx(0.2 / 2**0.5)
    assert statistic.percent() == "60.0 ± 14.1"


def test_one_seed_has_no_deviation() -> None:
    statistic = Statistic.of([0.712])
    assert statistic is not None
    assert statistic.percent() == "71.2"


def test_no_value_has_no_statistic() -> None:
    assert Statistic.of([]) is None


def test_a_rounded_negative_zero_loses_its_sign() -> None:
    statistic = Statistic.of([-0.0001])
    assert statistic is not None
    assert statistic.percent() == "0.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.25, "+1.2"),
        (-3.0, "-3.0"),
        (-0.05001, "-0.1"),
        (-0.04, "+0.0"),
        (-0.0, "+0.0"),
        (0.0, "+0.0"),
        (0.04, "+0.0"),
    ],
)
def test_a_difference_has_its_sign_but_a_rounded_zero_is_never_negative(value: float, text: str) -> None:
    assert signed(value, 1) == text


def test_shares_and_plurals() -> None:
    assert share(62, 100) == "62 %"
    assert (share(1, 3), share(3, 4), share(5, 4), share(0, 7)) == ("33 %", "75 %", "125 %", "0 %")
    assert share(0, 0) == "—"
    assert (plural(1, "run"), plural(2, "run")) == ("1 run", "2 runs")


def test_counts_have_thousands_and_lists_an_and() -> None:
    assert count(1_234_567) == "1,234,567"
    assert (listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == ("a", "a and b", "a, b and c")
