"""What an un-profiled process holds on a GPU, as the driver counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clmem.harness.execution.monitor import Unwatched
from clmem.harness.memory.system import nvml
from clmem.harness.memory.system.gpu import identity


class DeviceProcess(Unwatched):
    """The monitor of an un-profiled pass on CUDA: asks NVML at the end of each phase but of steady steps.

    What torch reserves it keeps, so a look after a phase sees the peak. peak_bytes: None where NVML cannot tell.
    """

    def __init__(self, target: str) -> None:
        self._uuid = identity(target)
        self.peak_bytes: int | None = None

    @contextmanager
    def phase(self, name: str, task: int) -> Iterator[None]:
        """Bracket one phase of one task, which may end in want of memory."""
        try:
            yield
        finally:
            held = None if self._uuid is None or name == "step" else nvml.process_bytes(self._uuid)
            if held is not None:
                self.peak_bytes = max(held, self.peak_bytes or 0)
