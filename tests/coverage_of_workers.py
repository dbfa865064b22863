"""A plug-in of pytest's for `tox -e coverage`: workers get the time to save which lines they ran.

A worker is killed as soon as it has answered. Under coverage it still has to write its data then, which takes a moment.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress

from clmem.harness.runs.processes import _Worker

SAVING_S = 10.0
"""Longer than saving takes; a worker that hangs, as some tests want it to, is killed that much later."""

end = _Worker.end


def end_when_saved(self: _Worker) -> int:
    """Wait until a worker that has answered ends by itself, then end it as always."""
    with suppress(subprocess.TimeoutExpired):
        self.process.wait(SAVING_S)
    return end(self)


_Worker.end = end_when_saved  # type: ignore[method-assign]
