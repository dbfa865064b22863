"""The nightly byte benchmark: `pytest --benchmark-only`, saved, and gated at 0 % against the last saved run.

The first night has nothing to compare with and only saves. CPU tensor peaks are byte-identical from run to run, so any
growth is a regression.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run pytest with the nightly's options; further options come from the command line. Returns its exit code."""
    storage = Path(".benchmarks")
    gate = ["--benchmark-compare", "--benchmark-compare-fail=max:0%"] if any(storage.glob("*/*.json")) else []
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--benchmark-autosave", *gate, *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
