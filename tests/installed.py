"""What `tox -e installed` checks of a wheel: it is one package, and no folder of a user's takes its place."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

MEASURE = ("measure", "sgd", "--stream", "split-fashion-mini", "--width", "4")
OURS = ("bench", "harness", "methods", "reports")


def check_files() -> None:
    """The wheel holds one importable name, the marker of its types, and the data that commands read."""
    wheel = metadata.distribution("clmem")
    files = {path.as_posix() for path in wheel.files or ()}
    names = {path.split("/")[0] for path in files if not path.startswith("..")}
    assert names == {"clmem", f"clmem-{wheel.version}.dist-info"}, names
    for needed in ("py.typed", "harness/results/record.py", "harness/data/budgets.toml", "bench/suites/quick.toml"):
        assert f"clmem/{needed}" in files, needed


def check_a_folder_with_the_same_names() -> None:
    """Commands run in a folder that has packages `methods`, `harness`... of its own, and import none of them."""
    with TemporaryDirectory() as temporary:
        for name in OURS:
            folder = Path(temporary) / name
            folder.mkdir()
            for file in ("__init__.py", "sgd.py"):
                (folder / file).write_text("raise SystemExit('a file of the current folder was imported')\n")
        commands = ([str(Path(sys.executable).parent / "clmem")], [sys.executable, "-m", "clmem.bench.cli"])
        for command in commands:
            done = subprocess.run([*command, *MEASURE], cwd=temporary, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "parameters" in done.stdout, done.stdout


if __name__ == "__main__":
    check_files()
    check_a_folder_with_the_same_names()
    print("one package, and no other folder of its names is imported")
