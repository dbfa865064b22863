"""A Jetson board that is not there: a fake /proc and /etc, and an emulated tegrastats."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from clmem.harness.memory.system import jetson
from clmem.harness.memory.system.jetson import Meminfo, UnifiedSampler
from tests.harness.memory.test_tegrastats import LINES

MEMINFO = """MemTotal:        7802112 kB
MemFree:          812344 kB
MemAvailable:    {available} kB
SwapTotal:       3901056 kB
SwapFree:        {swap_free} kB
NvMapMemFree:          0 kB
NvMapMemUsed:     {nvmap} kB
CmaTotal:         262144 kB
"""


def board(root: Path, available: int = 5_000_000, swap_free: int = 3_901_056, nvmap: int = 1000) -> Path:
    (root / "proc/device-tree").mkdir(parents=True, exist_ok=True)
    (root / "etc").mkdir(exist_ok=True)
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    (root / "proc/meminfo").write_text(MEMINFO.format(available=available, swap_free=swap_free, nvmap=nvmap))
    return root


def test_a_board_is_known_by_its_device_tree(tmp_path: Path) -> None:
    assert not jetson.is_jetson(tmp_path)
    assert jetson.is_jetson(board(tmp_path))
    assert jetson.model(tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"


def test_a_container_that_hides_the_device_tree_still_shows_the_release(tmp_path: Path) -> None:
    (board(tmp_path) / "proc/device-tree/model").unlink()
    assert jetson.is_jetson(tmp_path)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 1", "JetPack 4 (L4T 32.7.1)"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "JetPack 5 (L4T 35.4.1)"),
        ("# R36 (release), REVISION: 4.3, GCID: 1", "JetPack 6 (L4T 36.4.3)"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "JetPack 7 (L4T 38.2.0)"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "JetPack ? (L4T 99.1.0)"),
        ("something else", None),
    ],
)
def test_the_release_is_read_from_its_file(text: str, release: str | None, tmp_path: Path) -> None:
    (board(tmp_path) / "etc/nv_tegra_release").write_text(text)
    assert jetson.release(tmp_path) == release


def test_memory_is_the_kernel_s_own_account(tmp_path: Path) -> None:
    found = Meminfo.read(board(tmp_path, available=5_000_000, swap_free=3_900_000, nvmap=2048))
    assert found == Meminfo(7802112 * 1024, 5_000_000 * 1024, 1056 * 1024, 2048 * 1024)
    assert found.used == (7802112 - 5_000_000) * 1024


def test_thor_s_kernel_does_not_say_what_the_gpu_holds(tmp_path: Path) -> None:
    path = board(tmp_path) / "proc/meminfo"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "NvMap" not in line))
    assert Meminfo.read(tmp_path).nvmap is None


def test_an_account_without_available_memory_is_refused(tmp_path: Path) -> None:
    (board(tmp_path) / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(OSError, match="has no field MemAvailable"):
        Meminfo.read(tmp_path)


def test_the_highest_of_a_run_is_kept_and_swap_that_grew_is_told(tmp_path: Path) -> None:
    running, started = SimpleNamespace(now=True), time.monotonic()
    emulator = f"import time; print({LINES['orin']!r}, flush=True); time.sleep(60)"
    sampler = UnifiedSampler(
        lambda: running.now, Meminfo.read(board(tmp_path)), board(tmp_path), [sys.executable, "-c", emulator]
    )
    while sampler._tegrastats.peak_bytes is None and time.monotonic() < started + 20:
        time.sleep(0.01)
    for available, swap_free, nvmap in ((4_000_000, 3_901_056, 9000), (3_000_000, 3_900_056, 7000), (4_500_000, 0, 10)):
        whole = tmp_path / "next"
        whole.write_text(MEMINFO.format(available=available, swap_free=swap_free, nvmap=nvmap))
        whole.replace(tmp_path / "proc/meminfo")
        time.sleep(0.1)
    running.now = False
    found = sampler.result()
    assert found.before_bytes == (7802112 - 5_000_000) * 1024
    assert found.peak_bytes == (7802112 - 3_000_000) * 1024
    assert (found.nvmap_before_bytes, found.nvmap_peak_bytes) == (1000 * 1024, 9000 * 1024)
    assert found.swap_growth_bytes == 3_901_056 * 1024
    assert found.tegrastats_peak_bytes == 2513 * 2**20
    assert found.samples > 3


class Board:
    """What jetson-stats' `jtop` is, as far as it is asked."""

    memory: ClassVar[dict[str, Any]] = {"RAM": {"tot": 7802112, "used": 1, "free": 1}}
    nvpmodel = "MAXN"

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None: ...


def test_jetson_stats_describes_a_board_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=Board))
    assert jetson.jtop_says() == {"total_bytes": 7802112 * 1024, "power_mode": "MAXN"}


def test_jetson_stats_that_does_not_answer_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=type("Other", (Board,), {"memory": {}})))
    assert jetson.jtop_says() == {"error": "KeyError: 'RAM'"}
    monkeypatch.setitem(sys.modules, "jtop", None)
    assert jetson.jtop_says() is None
