"""tegrastats' lines: every form seen on boards, whatever drifts, and a program that prints them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clmem.harness.memory.system.tegrastats import MB, Core, Reader, TegraStats, parse_line

LINES = {
    "nano": "RAM 717/3964MB (lfb 140x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [18%@102,2%@102,"
    "0%@102,0%@102] EMC_FREQ 2%@204 GR3D_FREQ 0%@76 APE 25 PLL@26C POM_5V_IN 1057/1057",
    "tx2": "RAM 707/7854MB (lfb 1659x4MB) CPU [5%@345,off,off,2%@345,1%@345,0%@345] BCPU@30C MCPU@30C GPU@28.5C "
    "VDD_IN 1038/1134",
    "tx2-swap": "RAM 4722/7844MB (lfb 1x512kB) CPU [5%@345,off,off,2%@345] SWAP 149/1024MB (cached 7MB) EMC_FREQ "
    "2%@1866 GR3D_FREQ 38%@1300",
    "xavier": "RAM 2690/6854MB (lfb 6x1MB) SWAP 479/3427MB (cached 3MB) CPU [3%@1904,2%@1904,off,off] EMC_FREQ 0%@1600 "
    "GR3D_FREQ 0%@[510] VIC_FREQ 601 APE 150 AUX@39C",
    "orin": "08-10-2026 21:39:51 RAM 2513/7620MB (lfb 1x4MB) SWAP 25/3810MB (cached 0MB) CPU [11%@729,9%@729] "
    "GR3D_FREQ 0% cpu@51.218C VDD_IN 4744mW/6179mW",
    "thor": "05-17-2026 10:00:32 RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,0%@972] "
    "EMC_FREQ 0%@665 GR3D_FREQ @[0,0,0] NVENC0_FREQ @0",
}


def stats(name: str) -> TegraStats:
    found = parse_line(LINES[name])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "used", "total", "free"),
    [
        ("nano", 717, 3964, (140, 4 * MB)),
        ("tx2", 707, 7854, (1659, 4 * MB)),
        ("tx2-swap", 4722, 7844, (1, 512 * 1024)),
        ("xavier", 2690, 6854, (6, MB)),
        ("orin", 2513, 7620, (1, 4 * MB)),
        ("thor", 4208, 125773, (31, 4 * MB)),
    ],
)
def test_memory_is_read_from_every_form(name: str, used: int, total: int, free: tuple[int, int]) -> None:
    found = stats(name)
    assert (found.ram_used_bytes, found.ram_total_bytes, found.largest_free) == (used * MB, total * MB, free)


@pytest.mark.parametrize(
    ("name", "swap"), [("nano", (0, 1982)), ("tx2", None), ("tx2-swap", (149, 1024)), ("thor", (0, 2048))]
)
def test_swap_is_read_where_there_is_some(name: str, swap: tuple[int, int] | None) -> None:
    found = stats(name)
    expected = (None, None) if swap is None else (swap[0] * MB, swap[1] * MB)
    assert (found.swap_used_bytes, found.swap_total_bytes) == expected


def test_cores_that_are_off_have_no_load() -> None:
    assert stats("tx2").cores == [Core(5, 345), None, None, Core(2, 345), Core(1, 345), Core(0, 345)]


@pytest.mark.parametrize(("name", "load"), [("nano", 0), ("tx2", None), ("tx2-swap", 38), ("orin", 0), ("thor", None)])
def test_the_gpu_s_load_is_read_where_it_has_one(name: str, load: int | None) -> None:
    assert stats(name).gpu_load == load


@pytest.mark.parametrize(
    ("name", "temperatures", "powers"),
    [
        ("nano", {"PLL": 26.0}, {"POM_5V_IN": (1057, 1057)}),
        ("tx2", {"BCPU": 30.0, "MCPU": 30.0, "GPU": 28.5}, {"VDD_IN": (1038, 1134)}),
        ("xavier", {"AUX": 39.0}, {}),
        ("orin", {"cpu": 51.218}, {"VDD_IN": (4744, 6179)}),
        ("thor", {}, {}),
    ],
)
def test_sensors_and_rails_are_read_by_name(
    name: str, temperatures: dict[str, float], powers: dict[str, tuple[int, int]]
) -> None:
    found = stats(name)
    assert (found.temperatures, found.powers) == (temperatures, powers)


def test_a_line_without_memory_says_nothing() -> None:
    assert parse_line("tegrastats: permission denied") is None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(LINES)), st.data())
def test_no_drifted_line_is_too_strange(name: str, data: st.DataObject) -> None:
    """Cut out, doubled and foreign pieces: an answer or none, and never an error."""
    line = LINES[name]
    start, stop = sorted(data.draw(st.integers(0, len(line))) for _ in range(2))
    foreign = data.draw(st.text(max_size=12)) or "9" * data.draw(st.sampled_from((16, 5000)))
    for changed in (line[:start] + line[stop:], line[:start] + foreign + line[start:], line[start:] + line[:stop]):
        found = parse_line(changed)
        assert found is None or found.ram_used_bytes >= 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**6), st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_memory_is_found_wherever_it_stands(used: int, total: int, rest: str) -> None:
    found = parse_line(f"{rest.replace('RAM', '')} RAM {used}/{total}MB (lfb 1x4MB) {rest}")
    assert found is not None
    assert (found.ram_used_bytes, found.ram_total_bytes) == (used * MB, total * MB)


EMULATOR = (
    f"import time\nfor line in {[LINES['orin'], 'noise', LINES['xavier']]!r}: print(line, flush=True)\ntime.sleep(60)"
)


def test_a_program_that_prints_them_is_read_until_it_is_stopped() -> None:
    """The emulator stands for NVIDIA's tegrastats, which runs on boards alone."""
    reader = Reader([sys.executable, "-c", EMULATOR])
    reader.start()
    while reader.lines + reader.unread < 3:
        pass
    reader.stop()
    assert (reader.lines, reader.unread, reader.peak_bytes) == (2, 1, 2690 * MB)


def test_without_the_program_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    reader = Reader()
    reader.start()
    reader.stop()
    assert reader.peak_bytes is None
