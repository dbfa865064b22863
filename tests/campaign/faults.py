"""Commands on a machine that misbehaves: full disks, little memory, hostile environments, a noisy Python."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from clmem.harness.results.record import load_result
from tests.campaign.commands import Command, judge
from tests.campaign.tally import Tally

SMALL = ["--width", "1", "--batch-size", "8", "--stream", "split-fashion-mini"]
MEASURE = ["measure", "sgd", *SMALL, "--json"]
RUN = ["run", "suite.toml", "--out", "out"]
SUITE = """
title = "small"
methods = ["sgd"]
streams = ["split-fashion-mini"]
width = 1
batch_size = 50
steps_per_task = 1
measure = ["peak"]
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


def break_the_machine(tally: Tally, folder: Path, seed: int, until: float) -> None:
    """Run the commands in a random order, each once, until the time is over; what they say and leave must be sound.

    folder: where they run. until: on the clock of `time.monotonic`.
    """
    (folder / "suite.toml").write_text(SUITE)
    expected = {
        name: _peak(tally, Command(name, which), folder) for name, which in (("run", RUN), ("measure", MEASURE))
    }
    for name, peak in expected.items():
        if peak is None:  # what is held against it below would pass whatever it finds
            tally.wrong.append(f"{name}: nothing was measured undisturbed")
    commands = list(_commands(folder))
    random.Random(seed).shuffle(commands)
    for command in commands:
        if time.monotonic() > until:
            break
        tally.faults += 1
        before = set(folder.iterdir())
        peak = _peak(tally, command, folder)
        stray = {path.name for path in set(folder.iterdir()) - before} - {"out", "results", "report.md"}
        if stray:
            tally.outside.append(f"{command.name} left {', '.join(sorted(stray))}")
        undisturbed = expected[str(command.arguments[0])]
        if peak != undisturbed and (command.harmless or peak is not None):
            tally.wrong.append(f"{command.name}: {peak} B where {undisturbed} B were measured undisturbed")


def _peak(tally: Tally, command: Command, folder: Path) -> int | None:
    """Run a command and return the tensor peak in bytes that it found, None if it found none; remove its results."""
    done = judge(tally, command, folder)
    peaks = []
    for path in (folder / "out").glob("[!.]*--*.json") if (folder / "out").is_dir() else ():
        try:
            result = load_result(path)
            peaks += [result.allocator.peak_bytes] if result.status == "ok" and result.allocator else []
        except Exception as error:
            tally.wrong.append(f"{command.name} left a result that is not whole: {error}")
        path.unlink()
    if done.returncode == 0 and "--json" in command.arguments:
        peaks.append(json.loads(done.stdout)["peak_bytes"])
    return peaks[0] if peaks else None


def _commands(folder: Path) -> Iterator[Command]:
    for kib in (0, 4, 64):
        yield Command(f"a disk of {kib} KiB, run", RUN, limits={"RLIMIT_FSIZE": kib * 1024}, seconds=120)
    for mib in (200, 1200, 3000):
        yield Command(f"an address space of {mib} MiB", MEASURE, limits={"RLIMIT_AS": mib * MIB})
    for mib in (100, 500):
        yield Command(f"a data segment of {mib} MiB", MEASURE, limits={"RLIMIT_DATA": mib * MIB})
    yield Command("16 open files", MEASURE, limits={"RLIMIT_NOFILE": 16})
    for budget in ("1MiB", "800MiB", "810MiB", "850MiB"):
        yield Command(f"a budget of {budget}", [*MEASURE, "--budget", budget])
    for name, words in NOISE.items():
        site = folder.parent / f"site-{name}"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(f"import os\nos.write(1, {words!r}.encode('latin-1') + b'\\n')\n")
        path = f"{site}{os.pathsep}{Path(__file__).resolve().parents[2]}"
        yield Command(f"a site that prints {name}", RUN, environment={"PYTHONPATH": path}, harmless=True)
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
        yield Command(f"a shell with {name}", RUN, environment=variables, harmless=True)
    for name in ("threads", "malloc", "optimised Python"):
        yield Command(f"a shell with {name}, measure", MEASURE, environment=shells[name], harmless=True)
    yield Command("python -OO, run", RUN, python=["-OO"], seconds=120, harmless=True)
    for out in ("/dev/null", "/proc/nothing", "/dev/full", "suite.toml", "suite.toml/inner", "x" * 5000, ""):
        yield Command(f"results in {out[:40]!r}", ["run", "suite.toml", "--out", out])
