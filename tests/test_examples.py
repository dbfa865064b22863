"""The examples run as they stand, on tiny networks, from another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def printed(script: str, here: Path) -> str:
    """Return what an example prints at width 1."""
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(EXAMPLES / script), "1"]
    done = subprocess.run(command, cwd=here, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.nightly
def test_the_first_example_says_what_der_holds_beyond_er(tmp_path: Path) -> None:
    rows = dict(re.findall(r"^(\w+) .* ([+-][\d,]+)$", printed("measure_a_method.py", tmp_path), re.MULTILINE))
    assert rows["parameters"] == "+0"
    assert rows["replay"] == "+8,000", "200 slots of ten logits in float32"
    sizes = {role: int(size.replace(",", "")) for role, size in rows.items()}
    assert sum(size for role, size in sizes.items() if role != "total") == sizes["total"]


@pytest.mark.slow
@pytest.mark.nightly
def test_the_second_example_predicts_its_method_to_a_percent(tmp_path: Path) -> None:
    rows = re.findall(r"^([a-z ]+?) +([\d,]+) bytes", printed("your_own_method.py", tmp_path), re.MULTILINE)
    sizes = {name: int(size.replace(",", "")) for name, size in rows}
    assert sizes["the anchor"] == sizes["the parameters"]
    assert sizes["predicted peak"] == pytest.approx(sizes["measured peak"], rel=0.01)


def test_the_examples_are_listed_and_mark_their_main_part() -> None:
    listed = set(re.findall(r"[a-z0-9_]+\.py", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    scripts = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert listed == set(scripts)
    assert sum('if __name__ == "__main__":' in text for text in scripts.values()) == 2
