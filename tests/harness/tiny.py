"""A suite file of a few tiny runs."""

from __future__ import annotations

from pathlib import Path

TINY = """
title = "tiny"
methods = ["sgd", "er"]
streams = ["split-fashion-mini"]
width = 1
batch_size = 8
buffer_size = 8
replay_size = 4
steps_per_task = 1
seeds = [0, 1]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path
