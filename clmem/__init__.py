"""Measures, to the byte, what continual-learning methods hold in memory, beside what they deliver.

    import clmem

    result = clmem.measure("derpp", width=16, execution="lean", settings={"alpha": 0.2})
    print(result.footprint.peak_bytes, result.footprint.at_peak)
    print(clmem.predict("derpp", width=16, execution="lean").footprint.peak_bytes)

`Method`, `Term`, `Batch` and `Network` are what a method of your own is written with. Each name is imported when it is
first used, because most of them import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clmem.bench.api import measure, predict
    from clmem.harness.errors import ClmemError, UsageError
    from clmem.harness.results.record import RunResult
    from clmem.harness.specs.run import RunSpec
    from clmem.methods.base import Batch, Method, Network, Term

    __version__: str

__all__ = [
    "Batch",
    "ClmemError",
    "Method",
    "Network",
    "RunResult",
    "RunSpec",
    "Term",
    "UsageError",
    "__version__",
    "measure",
    "predict",
]

_PLACES = {
    **dict.fromkeys(("measure", "predict"), "clmem.bench.api"),
    **dict.fromkeys(("ClmemError", "UsageError"), "clmem.harness.errors"),
    **dict.fromkeys(("Batch", "Method", "Network", "Term"), "clmem.methods.base"),
    "RunResult": "clmem.harness.results.record",
    "RunSpec": "clmem.harness.specs.run",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name of the public surface when it is first asked for."""
        if name == "__version__":
            value: object = _version()
        elif name in _PLACES:
            value = getattr(import_module(_PLACES[name]), name)
        else:
            raise AttributeError(f"module 'clmem' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the public surface also before it is imported."""
        return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("clmem")
    except PackageNotFoundError:  # a copy of the source that nobody installed
        return "0+unknown"
