"""Commands on a machine that misbehaves: full disks, little memory, hostile environments, a noisy Python."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from harness.results import load_result
from tests.campaign.commands import Command, judge
from tests.campaign.tally import Tally

SMALL = ["--width", "1", "--batch-size", "8", "--stream", "split-fashion-mini"]
MEASURE = ["measure", "sgd", *SMALL]
SUITE = """
title = "small"
methods = ["sgd"]
streams = ["split-fashion-mini"]
width = 1
batch_size = 50
steps_per_task = 1
"""
MIB = 2**20

NOISE = {
    "one": "1",
    "null": "null",
    "object": "{}",
    "forged": '{"outcome": {"status": "ok"}}',
    "bytes": "\\xff\\xfe\\x00",
    "banner": "*** welcome ***",
}
"""What a site's customisation prints when Python starts."""


def break_the_machine(tally: Tally, folder: Path) -> None:
    """Run every command once; what it says and leaves behind must be sound."""
    (folder / "suite.toml").write_text(SUITE)
    (folder / "empty").mkdir(exist_ok=True)
    expected = _peak(tally, Command("undisturbed", [*MEASURE, "--json"]), folder)
    for command in _commands(folder):
        tally.faults += 1
        before = set(folder.iterdir())
        done = judge(tally, command, folder)
        stray = {path.name for path in set(folder.iterdir()) - before} - {"out", "results", "report.md"}
        if stray:
            tally.outside.append(f"{command.name} left {', '.join(sorted(stray))}")
        if "--json" in command.arguments and done.returncode == 0 and "shape" not in command.name:
            found = json.loads(done.stdout)["peak_bytes"]
            if found != expected:
                tally.wrong.append(f"{command.name}: {found} B where {expected} B were measured undisturbed")
        for path in (folder / "out").glob("[!.]*--*.json") if (folder / "out").is_dir() else ():
            try:
                load_result(path)
            except Exception as error:
                tally.wrong.append(f"{command.name} left a result that is not whole: {error}")
            path.unlink()


def _peak(tally: Tally, command: Command, folder: Path) -> int:
    return int(json.loads(judge(tally, command, folder).stdout)["peak_bytes"])


def _commands(folder: Path) -> Iterator[Command]:
    run = ["run", "suite.toml", "--out", "out"]
    measure = [*MEASURE, "--json"]
    for kib in (0, 4, 64):
        yield Command(f"a disk of {kib} KiB, run", run, limits={"RLIMIT_FSIZE": kib * 1024}, seconds=120)
    for mib in (200, 1200, 3000):
        yield Command(f"an address space of {mib} MiB", measure, limits={"RLIMIT_AS": mib * MIB})
    for mib in (100, 500):
        yield Command(f"a data segment of {mib} MiB", measure, limits={"RLIMIT_DATA": mib * MIB})
    yield Command("16 open files", measure, limits={"RLIMIT_NOFILE": 16})
    for budget in ("1MiB", "800MiB", "810MiB", "850MiB"):
        yield Command(f"a budget of {budget}", [*MEASURE, "--budget", budget])
    for name, words in NOISE.items():
        site = folder.parent / f"site-{name}"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(f"import os\nos.write(1, {words!r}.encode('latin-1') + b'\\n')\n")
        path = f"{site}{os.pathsep}{Path(__file__).resolve().parents[2]}"
        yield Command(f"a site that prints {name}", [*MEASURE], environment={"PYTHONPATH": path})
    shells = {
        "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "no home": {"HOME": "(unset)"},
        "a home that is not there": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "(unset)"},
        "a temporary folder that is not there": {"TMPDIR": "/nonexistent"},
        "a narrow dumb terminal": {"COLUMNS": "1", "TERM": "dumb"},
        "threads": {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "1"},
        "threads that are no number": {"OMP_NUM_THREADS": "many"},
        "malloc": {"MALLOC_ARENA_MAX": "1", "MALLOC_PERTURB_": "85", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"},
        "optimised Python": {"PYTHONOPTIMIZE": "2"},
        "warnings as errors": {"PYTHONWARNINGS": "error"},
        "a debugging malloc": {"PYTHONMALLOC": "debug"},
        "a notebook's plots": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    }
    for name, variables in shells.items():
        yield Command(f"a shell with {name}", measure, environment=variables)
    yield Command("python -OO, run", run, python=["-OO"], seconds=120)
    for out in ("/dev/null", "/proc/nothing", "/dev/full", "suite.toml", "suite.toml/inner", "x" * 5000, ""):
        yield Command(f"results in {out[:40]!r}", ["run", "suite.toml", "--out", out])
