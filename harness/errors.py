"""The exceptions a user can meet; the command line prints each as one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class ClmemError(Exception):
    """Something a user should read: the message is one sentence that says what is wrong and what to do."""


class UsageError(ClmemError):
    """The request itself cannot be carried out (unknown name, impossible combination, bad file): exit code 2."""


class LedgerError(ClmemError):
    """The books do not balance: an invariant of the ledger is broken, so no number may be published."""


class UndeclaredStateError(ClmemError):
    """A method keeps memory across steps that it does not declare in `memory_roles()`."""


class DivergedError(ClmemError):
    """The training loss became NaN or infinite."""


LONGEST_NAME = 80
"""Characters of an unknown name that are compared with those that exist: comparing takes quadratic time."""

MOST_COMPARED = 1000
"""Names that an unknown one is compared with."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" for a misspelt name, or the list of what is known."""
    import difflib

    from clmem.harness.text import some

    names = sorted(known)
    close = difflib.get_close_matches(name[:LONGEST_NAME], names[:MOST_COMPARED], n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known are {some(names, shown=40)}"


EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a table of keys and values"),
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have at most {max_length} values",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
}
"""What was expected, by pydantic's name of the fault."""


def expectation(item: ErrorDetails) -> str:
    """Return what one of pydantic's findings expected, in words of a user rather than of a type."""
    words = EXPECTED.get(item["type"])
    if words is not None:
        return words.format_map(item.get("ctx", {}))
    message = item["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


LIBRARIES = frozenset({"torch", "torchvision", "numpy", "pydantic"})
"""Packages that others' code calls; a mistake that shows in them is the caller's."""


def blame(error: BaseException) -> str:
    """Return an exception of somebody else's code as a clause: its type, its message, and the line of that code."""
    from clmem.harness.text import clean

    try:
        said = clean(str(error), 300)
    except Exception:  # an exception whose text is wrong as well
        said = ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """Return `, in FILE:LINE` for the last line of somebody else's code that an exception came through, if any."""
    import traceback

    from clmem.harness.text import clean

    own, standard = Path(__file__).parent, Path(os.__file__).parent
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    # the last line that is neither clmem's nor a library's that the code called
    theirs = [
        (path, number)
        for path, number in ((Path(name), number) for name, number in lines)
        if own not in path.parents
        and not LIBRARIES & set(path.parts)
        and (standard not in path.parents or "site-packages" in path.parts)
        and path.exists()
    ]
    return f", in {clean(str(theirs[-1][0]), 200)}:{theirs[-1][1]}" if theirs else ""
