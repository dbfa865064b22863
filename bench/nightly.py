"""The nightly byte benchmark: `pytest --benchmark-only`, saved, and gated at 0 % against the last good run.

The first night has nothing to compare with and only saves. CPU tensor peaks are byte-identical from run to run, so any
growth is a regression. A night that fails is kept under a name that no later night compares with.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STORAGE = Path(".benchmarks")


def saved_runs() -> set[Path]:
    """Return the runs that pytest-benchmark would compare with."""
    return set(STORAGE.glob("*/[0-9]*.json"))


def main(arguments: list[str]) -> int:
    """Run pytest with the nightly's options; further options come from the command line. Returns its exit code."""
    before = saved_runs()
    gate = ["--benchmark-compare", "--benchmark-compare-fail=max:0%"] if before else []
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--benchmark-autosave", *gate, *arguments]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        for path in saved_runs() - before:
            path.rename(path.with_name(f"failed_{path.name}"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
