"""Garbage is collected before a phase whatever other threads do."""

from __future__ import annotations

import gc
import threading
import time
import weakref

from harness.memory.observer import collect


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
