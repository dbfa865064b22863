"""How numbers are written for people: MiB with one decimal, bytes with thousands separators, mean ± deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 2**20
UNDEFINED = "—"
"""Printed where a number is not defined for a method (as opposed to not measured, which is left empty)."""


def mib(count_bytes: int | None) -> str:
    """Return bytes as MiB (2^20) with one decimal, or an empty string when not measured."""
    return "" if count_bytes is None else f"{count_bytes / MIB:,.1f}"


def count(value: int | None) -> str:
    """Return an integer with thousands separators, or an empty string when not measured."""
    return "" if value is None else f"{value:,}"


def share(part: int, whole: int) -> str:
    """Return part / whole as a whole percentage ("62 %"); an empty whole has no shares."""
    return f"{100 * part / whole:.0f} %" if whole else UNDEFINED


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign and so many decimals: "+1.2"; one that rounds to zero is "+0.0"."""
    return f"{_rounded(value, digits):+.{digits}f}"


def _rounded(value: float, digits: int) -> float:
    """Return the rounded value; adding 0.0 turns a -0.0, which would print as "-0.0", into 0.0."""
    return round(value, digits) + 0.0


def plural(number: int, noun: str) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True)
class Statistic:
    """Mean over n seeds, and the sample standard deviation (n - 1 in the denominator), None for one seed."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic | None:
        """Return the statistic of the values, or None of no values."""
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        if len(values) == 1:
            return cls(mean, None, 1)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return cls(mean, math.sqrt(variance), len(values))

    def percent(self) -> str:
        """Return a fraction as percent: "71.2 ± 0.8", without ± when there is only one seed."""
        text = f"{_rounded(100 * self.mean, 1):.1f}"
        return text if self.deviation is None else f"{text} ± {100 * self.deviation:.1f}"
