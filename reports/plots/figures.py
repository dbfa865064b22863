"""How figures are made and written: from matplotlib's defaults and with our own backend, whatever a user configured.

matplotlib is imported only when something is drawn. Its configuration is read while it is imported: from the current
folder, from files that variables name, and from a notebook's choice of a backend, each of which can break the import.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmem.harness.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.labelsize": 10.5,
    "legend.fontsize": 9.5,
    "text.parse_math": False,  # a `$` in somebody's label is no formula
}
LARGEST_INCHES = 200.0
"""Of a figure's side: what matplotlib can draw has fewer than 65,536 pixels."""
COLOURS = 256
"""Of a stored plot: as many as a PNG with a palette can have, at two fifths of the bytes of one with every colour."""


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw with matplotlib's defaults and the fonts of our plots. No other setting counts inside."""
    with _unconfigured():
        import matplotlib
        import matplotlib.font_manager

    # the backend stays: none is asked for here, and asking for its name would choose one
    settings: dict[Any, Any] = {key: value for key, value in dict.items(matplotlib.rcParamsDefault) if key != "backend"}
    settings.update(STYLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)  # of a default
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a label in a script that the font lacks
        with matplotlib.rc_context(settings):
            yield


def save_figure(figure: Figure, png: Path) -> Path:
    """Write a figure as a PNG with a palette, whole or not at all; return its path.

    Call it inside `plot_style`: then the bytes depend on the figure and on the versions of matplotlib and Pillow only,
    and hold no date.
    """
    from PIL import Image

    pixels = io.BytesIO()
    figure.savefig(pixels, format="rgba")
    drawn = Image.frombytes("RGBA", figure.canvas.get_width_height(), pixels.getvalue()).convert("RGB")
    image = drawn.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    write_bytes(png, buffer.getvalue())
    return png


def new_figure(width_inches: float, height_inches: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side that share their vertical axis."""
    # a bare Figure, not pyplot: no window, no global state, and no backend chosen for whoever imports us
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, min(height_inches, LARGEST_INCHES)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    drawn: list[Axes] = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure, drawn


@contextmanager
def _unconfigured() -> Iterator[None]:
    """Let matplotlib be imported for the first time without reading what a user configured, and without a word of it.

    It looks into the current folder first, so for that moment this is the folder of its own settings. Afterwards a
    program that uses us finds matplotlib configured as if it had imported it itself.
    """
    found = None if "matplotlib" in sys.modules else find_spec("matplotlib")
    if found is None or found.origin is None:
        yield
        return
    kept = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    log = logging.getLogger("matplotlib")
    level, here = log.level, os.open(".", os.O_PATH)
    log.setLevel(logging.ERROR)  # a folder for its caches that cannot be written to is replaced by another
    try:
        os.chdir(Path(found.origin).parent / "mpl-data")
        yield
    finally:
        os.fchdir(here)
        os.close(here)
        os.environ.update({name: value for name, value in kept.items() if value is not None})
        _configure()
        log.setLevel(level)


def _configure() -> None:
    """Read into matplotlib what a user configured, as far as it can be read."""
    import matplotlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # whatever a broken file gives rise to
            configured = matplotlib.rc_params()
            for kept in (matplotlib.rcParams, matplotlib.rcParamsOrig):
                kept.update(configured)
        with suppress(Exception):
            if backend := os.environ.get("MPLBACKEND"):
                matplotlib.rcParams["backend"] = backend
