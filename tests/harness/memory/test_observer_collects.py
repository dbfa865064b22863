"""Garbage is collected before a phase whatever other threads do."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from clmem.harness.errors import ClmemError
from clmem.harness.memory.watching import observer
from clmem.harness.memory.watching.observer import collect


class Cycle:
    """Garbage that a collection alone finds. pause_s: how long that collection then takes."""

    def __init__(self, pause_s: float = 0) -> None:
        self.me, self.pause_s = self, pause_s

    def __del__(self) -> None:
        time.sleep(self.pause_s)


def test_a_collection_under_way_in_another_thread_is_waited_for() -> None:
    Cycle(pause_s=0.3)
    other = threading.Thread(target=gc.collect)
    other.start()
    time.sleep(0.1)
    garbage = Cycle()
    gone = weakref.ref(garbage)
    del garbage
    collect()
    assert gone() is None
    other.join()


def test_a_collection_that_does_not_end_is_an_error_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observer, "PATIENCE_S", 0.1)
    Cycle(pause_s=0.6)
    other = threading.Thread(target=gc.collect)
    other.start()
    time.sleep(0.1)
    with pytest.raises(ClmemError, match=r"collecting garbage for 0\.1 s"):
        collect()
    other.join()
