"""Text from outside (exceptions, libraries, methods, files), made fit to be stored, printed and used as a file name.

Whoever shows it escapes it for where it goes: `markup` in `reports/markdown` does so for pages. A terminal gets no
control characters, because there are none left.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator

LONGEST = 600
"""Characters of one text that are kept. torch's longest error that says anything is half as long."""

LONGEST_NAME = 120
"""Characters of a file name that a text becomes; file systems take 255 bytes, and names are made longer by others."""

# CSI and OSC sequences, which colour a terminal's text, set its title or write to its clipboard
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")

_CUT = re.compile(r"\.\.\. \([\d,]+ characters\)\Z")
"""How a text ends that was cut."""


def clean(text: str, longest: int = LONGEST) -> str:
    """Return `text` as one line of at most `longest` characters that can be encoded, stored and printed.

    Escape sequences and invisible characters go, line ends become spaces, and what cannot be encoded becomes U+FFFD.
    A text that is cut says how long it was.
    """
    cut = _CUT.search(text)
    if cut is not None and cut.start() <= longest:  # it was cleaned before
        return text if text.isprintable() else clean(text[: cut.start()], longest) + cut[0]
    head = _ESCAPES.sub("", text[: 4 * longest])
    shown = " ".join("".join(_visible(character) for character in head).split())
    if len(shown) <= longest and len(text) <= 4 * longest:
        return shown
    return f"{shown[:longest]}... ({len(text):,} characters)"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    if category == "Cf":  # among them those that turn the direction of writing
        return ""
    return " " if category.startswith(("C", "Z")) else character


def file_name(text: str) -> str:
    """Return `text` as the name of a file in a folder: unchanged where it is one, else without what could lead away.

    A name that was changed carries a digest of the whole text, so that other texts get other names.
    """
    name = re.sub(r"[^\w.,@=+()%-]", "_", text, flags=re.ASCII).lstrip(".")[:LONGEST_NAME]
    if name == text != "":
        return name
    return f"{name or '_'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def some(names: Sequence[object], shown: int = 8) -> str:
    """Return the first names of a list, separated by commas, and how many more there are."""
    first = ", ".join(str(name) for name in names[:shown])
    return first if len(names) <= shown else f"{first} and {len(names) - shown} more"


def _clean_field(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


Said = Annotated[str, BeforeValidator(_clean_field)]
"""A field of a record that holds text from outside."""
