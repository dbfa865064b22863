"""A bar in the terminal while images are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr while the block runs, and yield what moves it by one.

    It ends with the block, whatever ends that. Rich's `track` would end when the garbage collector finds it, whose
    threads can then wait for each other for ever.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield partial(progress.advance, progress.add_task(description, total=total))
