"""A bar in the terminal while images are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr while the block runs, and yield what moves it by one; it is drawn anew at every percent.

    It has no thread: Rich's own refreshing ones, left to the garbage collector by an error, can block it for ever.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # where there is no terminal Rich draws nothing, and still ends it with an empty line
    hidden = not console.is_terminal
    with Progress(console=console, transient=True, auto_refresh=False, disable=hidden) as progress:
        task, numbers = progress.add_task(description, total=total), count(1)

        def advance() -> None:
            progress.advance(task)
            if next(numbers) % max(1, total // 100) == 0:
                progress.refresh()

        yield advance
