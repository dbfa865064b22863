"""Measures two methods on the same stream and prints where the bytes at their peaks are.

python examples/measure_a_method.py [width]
"""

from __future__ import annotations

import sys

import clmem


def main(width: int = 16) -> None:
    """Print the bytes of ER and DER++ at their peaks by role, and which roles make the difference."""
    peaks: dict[str, dict[str, int]] = {}
    for name in ("er", "derpp"):
        result = clmem.measure(name, stream="split-fashion-mini", width=width)
        footprint = result.footprint
        if footprint is None or result.checks:
            raise SystemExit(f"{name}: {result.status}: {result.reason or result.checks}")
        peaks[name] = footprint.at_peak
        assert sum(footprint.at_peak.values()) == footprint.peak_bytes, "roles add up to the allocator's peak"
    print(f"{'bytes at the peak':<20}{'er':>14}{'derpp':>14}{'difference':>14}")
    for role in peaks["derpp"]:
        er, derpp = peaks["er"].get(role, 0), peaks["derpp"][role]
        print(f"{role:<20}{er:>14,}{derpp:>14,}{derpp - er:>+14,}")
    er, derpp = (sum(peaks[name].values()) for name in ("er", "derpp"))
    print(f"{'total':<20}{er:>14,}{derpp:>14,}{derpp - er:>+14,}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
