"""Things of one kind by name: those that come with clmem, and those of other packages' entry points.

Nothing is imported before it is asked for, and what cannot be imported stops nobody else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any

from clmem.harness.errors import UsageError, blame, nearest
from clmem.harness.output import printing_to_stderr
from clmem.harness.text import clean

NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,79}", re.ASCII)
"""A name: it stands in names of files, before the `@` of a preset and before the `:` of a model."""


@dataclass(frozen=True)
class Plugins:
    """What can be asked for by name, of one kind.

    kind: what one of them is called in a sentence. group: that of entry points. own: where those that come with clmem
    lie, by name. load: imports one of them by its name.
    """

    kind: str
    group: str
    own: Callable[[], Mapping[str, str]]
    load: Callable[[str], Any]

    def names(self) -> list[str]:
        """Return every name that is installed, sorted, also of what cannot be used."""
        return sorted({*self.own(), *entries_by_name(self.group, tuple(sys.path))})

    def entry(self, name: str) -> EntryPoint | None:
        """Return the entry point that has a name, None for what comes with clmem; nothing is imported.

        Raises UsageError for a name that does not exist, that is no name, or that two share.
        """
        entries, own = entries_by_name(self.group, tuple(sys.path)).get(name, ()), self.own()
        if not entries and name not in own:
            raise UsageError(f"there is no {self.kind} {clean(name, 80)!r}: {nearest(name, self.names())}")
        places = [*(["clmem itself"] if name in own else []), *(repr(entry.value) for entry in entries)]
        if len(places) > 1:
            raise UsageError(
                f"there are {len(places)} {self.kind}s {name!r} ({' and '.join(places)}); give the entry point of the "
                "plug-in another name, or uninstall it"
            )
        if not NAME.fullmatch(name):
            raise UsageError(
                f"the plug-in {entries[0].value!r} calls its {self.kind} {clean(name, 80)!r}, which is no name; "
                "give its entry point one of letters, digits, dots and dashes"
            )
        return entries[0] if entries else None

    def find(self, name: str) -> tuple[Any, str]:
        """Return what has a name, imported, and where it lies.

        Raises UsageError as `entry` does, and for what cannot be imported.
        """
        entry = self.entry(name)
        place = self.own()[name] if entry is None else entry.value
        with self._importing(name, place):
            return (self.load(name) if entry is None else entry.load()), place

    @contextmanager
    def _importing(self, name: str, place: str) -> Iterator[None]:
        """Import others' code: what it prints is no result, and what it raises becomes one sentence."""
        try:
            with printing_to_stderr():
                yield
        except (KeyboardInterrupt, UsageError):
            raise
        except BaseException as error:  # such as SystemExit
            raise UsageError(
                f"{self.kind} {name!r} cannot be imported from {place!r} ({blame(error)}); mend it, or uninstall its "
                "package"
            ) from error


@lru_cache(maxsize=16)
def entries_by_name(group: str, search_path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return a group's entry points of other packages by name; reading what is installed takes milliseconds."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in _entries(group):
        found.setdefault(entry.name, {})[entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in found.items()}


def _entries(group: str) -> Iterator[EntryPoint]:
    try:
        yield from entry_points(group=group)
    except Exception:  # one package's list cannot be read, which is no reason to do without the others
        for package in distributions():
            try:
                yield from package.entry_points.select(group=group)
            except Exception:
                continue
