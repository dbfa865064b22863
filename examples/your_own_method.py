"""Predicts and measures a method that lies beside this file, `l2_anchor.py`, and that clmem does not know.

python examples/your_own_method.py [width]

A package of yours names its method with an entry point, and `pip install` writes that down:

    [project.entry-points."clmem.methods"]
    l2-anchor = "l2_anchor:L2Anchor"

Here nothing is installed, so the script writes the same two files into a temporary folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import clmem


def announce(folder: Path) -> None:
    """Let clmem find the method, in this process and in those that it starts."""
    info = folder / "l2_anchor-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: l2-anchor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[clmem.methods]\nl2-anchor = l2_anchor:L2Anchor\n")
    paths = [str(folder), str(Path(__file__).parent.resolve())]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])


def main(width: int = 16) -> None:
    """Print what is predicted for the method, what is measured, and what its state takes."""
    predicted = clmem.predict("l2-anchor", stream="split-fashion-mini", width=width).footprint
    result = clmem.measure("l2-anchor", stream="split-fashion-mini", width=width)
    measured = result.footprint
    if predicted is None or measured is None:
        raise SystemExit(f"{result.status}: {result.reason}")
    print(f"predicted peak  {predicted.peak_bytes:>14,} bytes, without running a step")
    print(f"measured peak   {measured.peak_bytes:>14,} bytes")
    print(f"the anchor      {measured.role_peaks['method_state']:>14,} bytes, one copy of the parameters")
    print(f"the parameters  {measured.role_peaks['parameters']:>14,} bytes")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        announce(Path(temporary))
        main(*map(int, sys.argv[1:]))
