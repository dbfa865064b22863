"""Figures are the same bytes whatever a user configured of matplotlib, and configuring nothing breaks them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from clmem.reports.plots.figures import LARGEST_INCHES, new_figure, plot_style, save_figure
from clmem.reports.plots.section import ROLE_COLOURS

ROOT = Path(__file__).parents[3]
DRAW = """
import pathlib, sys
from clmem.reports.plots.figures import new_figure, plot_style, save_figure
with plot_style():
    figure, (axes,) = new_figure(3, 2)
    axes.plot([1, 2], [3, 4], label="a method of 1,234.5 MiB")
    axes.set_xlabel("live at the peak (MiB)")
    figure.legend(loc="outside upper left")
    save_figure(figure, pathlib.Path(sys.argv[1]) / "drawn.png")
"""
HOSTILE = b"savefig.dpi: 20\ntext.usetex: True\nfont.size: 30\nsvg.fonttype: none\nbackend: nonsense\nno key: 1\n"
UNREADABLE = b"\xff\xfe\x00 \xff:\n"


def drawn(folder: Path, here: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """Return the files that a process of its own draws in a folder, started in the folder `here`."""
    folder.mkdir()
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB"))}
    command = [sys.executable, "-c", DRAW, str(folder)]
    done = subprocess.run(
        command, cwd=here, env={**known, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    found = drawn(folder / "out", folder, {})
    assert list(found) == ["drawn.png"]
    return found


@pytest.mark.parametrize("content", [HOSTILE, UNREADABLE], ids=["hostile", "unreadable"])
def test_a_configuration_in_the_current_folder_changes_nothing(
    content: bytes, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_bytes(content)
    assert drawn(tmp_path / "out", tmp_path, {"MPLBACKEND": "nonsense"}) == undisturbed


@pytest.mark.parametrize("content", [HOSTILE, UNREADABLE], ids=["hostile", "unreadable"])
def test_a_configuration_that_a_variable_names_changes_nothing(
    content: bytes, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for name in ("named", "matplotlibrc"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "here").mkdir()
    (tmp_path / "stylelib").mkdir()
    (tmp_path / "stylelib" / "own.mplstyle").write_bytes(content)
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    variables = {"MATPLOTLIBRC": str(tmp_path / "named"), "MPLCONFIGDIR": str(tmp_path), **notebook}
    assert drawn(tmp_path / "out", tmp_path / "here", variables) == undisturbed


def test_variables_that_lead_nowhere_change_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    nowhere = {"MATPLOTLIBRC": "/proc/nowhere", "MPLCONFIGDIR": "/proc/nowhere", "HOME": "/proc/nowhere"}
    assert drawn(tmp_path / "out", tmp_path, nowhere) == undisturbed


def test_a_program_that_configured_matplotlib_gets_its_settings_back(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        with plot_style():
            assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["text.usetex"]) == (10, False)
            figure, _ = new_figure(2, 2)
            save_figure(figure, tmp_path / "drawn.png")
        assert dict(matplotlib.rcParams) == before


def test_a_program_that_draws_later_finds_its_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 31\nbackend: svg\n", encoding="utf-8")
    code = (
        "from clmem.reports.plots.figures import plot_style\n"
        "with plot_style(): pass\n"
        "import os, matplotlib\n"
        "print(matplotlib.rcParams['font.size'], matplotlib.get_backend().lower())\n"
        "print(os.getcwd(), os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "pdf"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["31.0", "pdf", str(tmp_path), "pdf"]


@pytest.mark.filterwarnings("error")
def test_text_of_others_is_drawn_as_it_stands(tmp_path: Path) -> None:
    with plot_style():
        figure, (axes,) = new_figure(2, 2)
        axes.set_title(r"a $\frac{ method^ & 100 % \undefined 日本")
        save_figure(figure, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000


def test_a_figure_is_never_higher_than_can_be_drawn(tmp_path: Path) -> None:
    with plot_style():
        figure, _ = new_figure(1, 10**6)
        assert figure.get_figheight() == LARGEST_INCHES
        save_figure(figure, tmp_path / "drawn.png")


def test_a_plot_keeps_its_colours_in_a_palette(tmp_path: Path) -> None:
    colours = list(ROLE_COLOURS.values())
    with plot_style():
        figure, (axes,) = new_figure(8, 3)
        axes.barh(range(len(colours)), range(1, len(colours) + 1), color=colours)
        axes.set_xlabel("live at the peak (MiB)")
        save_figure(figure, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as image:
        assert (image.format, image.mode) == ("PNG", "P")
        found = [colour for _, colour in image.convert("RGB").getcolors() or []]
    for colour in colours:
        wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert min(max(abs(a - b) for a, b in zip(wanted, near, strict=True)) for near in found) <= 1, colour
