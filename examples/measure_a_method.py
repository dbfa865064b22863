"""Measures two methods on the same stream and prints where the bytes at their peaks are.

python examples/measure_a_method.py [width]
"""

from __future__ import annotations

import sys

from clmem.harness.results.record import RunResult
from clmem.harness.runs.runner import run_specs
from clmem.harness.specs.run import RunSpec


def main(width: int = 16) -> None:
    """Print the bytes of ER and DER++ at their peaks by role, and which roles make the difference."""
    specs = [RunSpec(method=name, stream="split-fashion-mini", width=width) for name in ("er", "derpp")]
    results: dict[str, RunResult] = {}
    run_specs(specs, lambda result: results.update({result.spec.method: result}))
    peaks: dict[str, dict[str, int]] = {}
    for name in ("er", "derpp"):
        footprint = results[name].footprint
        if footprint is None or results[name].checks:
            raise SystemExit(f"{name}: {results[name].status}: {results[name].reason or results[name].checks}")
        peaks[name] = footprint.at_peak
        assert sum(footprint.at_peak.values()) == footprint.peak_bytes, "roles add up to the allocator's peak"
    print(f"{'bytes at the peak':<20}{'er':>14}{'derpp':>14}{'difference':>14}")
    for role in peaks["derpp"]:
        er, derpp = peaks["er"].get(role, 0), peaks["derpp"][role]
        print(f"{role:<20}{er:>14,}{derpp:>14,}{derpp - er:>+14,}")
    er, derpp = (sum(peaks[name].values()) for name in ("er", "derpp"))
    print(f"{'total':<20}{er:>14,}{derpp:>14,}{derpp - er:>+14,}")


if __name__ == "__main__":  # runs are processes of their own, which must not run this file again
    main(*map(int, sys.argv[1:]))
