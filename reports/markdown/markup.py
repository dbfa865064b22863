"""Text from outside (labels, reasons, names of operations, settings) made harmless inside markdown."""

from __future__ import annotations

import re
from urllib.parse import quote

from clmem.harness.text import clean

LONGEST_AUTHORED = 10_000
"""Characters of one sentence or note of a claim."""

# what makes links, images, emphasis and code; an underline does it only before a word
_SPECIAL = re.compile(r"[\\`*\[\]~$]|(?<=\])\(|(?<![A-Za-z0-9])_")

# what GitHub makes a link of where it is bare
_BARE_LINK = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)

# what begins a heading, a list, a quotation or a rule, where a text begins a line
_BEGINS = re.compile(r"^(\d{0,9})(?=[#+-]{1,6}(?:\s|$)|>|[-=]+$|(?<=\d)[.)](?:\s|$))")


class Markdown(str):
    """Text that is markdown already. Everything else that comes to a table is escaped there."""

    __slots__ = ()


def plain(text: str) -> Markdown:
    """Return a text as one line of markdown that shows it as it is: no tag, link, image, emphasis, formula or code."""
    return Markdown(_BEGINS.sub(r"\1\\", _inside_a_line(text)))


def _inside_a_line(text: str) -> str:
    escaped = _SPECIAL.sub(lambda found: "\\" + found[0], clean(text))
    return _BARE_LINK.sub(lambda match: f"&#{ord(match[0])};", escaped.replace("&", "&amp;").replace("<", "&lt;"))


def code(text: str) -> Markdown:
    """Return a text as code, e.g. the name of an operation; without code's look where code could not hold it."""
    shown = clean(text)
    if not shown or "](" in shown or any(character in shown for character in "`<&|\\"):
        return plain(shown)
    return Markdown(f"`{shown}`")


def harmless(text: str) -> str:
    """Return a text whose author meant markdown, such as a claim's note, as one line without tags and links."""
    shown = clean(text, LONGEST_AUTHORED).replace("<", "&lt;")
    return re.sub(r"\](?=[(\[:])", r"]\\", shown)


def link(name: str) -> str:
    """Return the name of a file as what a link leads to."""
    return quote(name, safe="@=+,")


def cell_text(text: str) -> str:
    """Return a text for a table's cell: one line without bare pipes, escaped unless it is markdown already."""
    escaped = text if isinstance(text, Markdown) else _inside_a_line(text)
    return " ".join(escaped.split()).replace("|", "\\|")
