"""What `clmem list` and `clmem show` print: names beside descriptions, in lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from clmem.harness.specs.fields import allowed, choices, shown
from clmem.harness.techniques.registry import TECHNIQUES, Techniques
from clmem.harness.text import clean

if TYPE_CHECKING:
    from clmem.harness.learning.cards import MethodCard

COLUMNS = 80
LONGEST_NAME = 32
"""Characters of a name beside which there is room for a description."""
LONGEST_VALUE = 60
"""Characters of a setting's value; those of other packages may be longer."""


def two_columns(entries: Mapping[str, str], margin: str = "") -> str:
    """Return names and their descriptions side by side; a description stands below a name that is very long."""
    indent = margin + " " * (min(max(map(len, entries)), LONGEST_NAME) + 2)
    lines = []
    for name, description in entries.items():
        first = f"{margin}{name}".ljust(len(indent))
        if len(first) > len(indent):
            lines.append(first)
            first = indent
        lines.append(_filled(description, first, indent) or first.rstrip())
    return "\n".join(lines)


def method_text(card: MethodCard) -> str:
    """Return everything there is to know of a method."""
    settings = {
        f"{name}={_value(setting.default)}": _setting_text(setting.meaning, setting.allowed)
        for name, setting in card.settings.items()
    }
    parts = [
        _filled(f"{card.name}: {card.summary}", ""),
        _filled(f"Paper: {card.paper}" if card.paper else "It comes from no paper.", ""),
        f"Settings and their defaults (--set key=value):\n{two_columns(settings, '  ')}",
    ]
    used = "--buffer-size slots, of which a step replays --replay-size" if card.uses_buffer else "none"
    parts.append(f"Replay buffer: {used}")
    if card.tuned:
        values = {stream: _values(settings) for stream, settings in card.tuned.items()}
        parts.append(f"Other defaults on these streams:\n{two_columns(values, '  ')}")
    if card.presets:
        values = {name: _values(settings) for name, settings in card.presets.items()}
        base = card.name.partition("@")[0]
        parts.append(f"Presets (clmem measure {base}@PRESET):\n{two_columns(values, '  ')}")
    lean = _filled(_values(card.lean)) if card.lean else "  none; name techniques (clmem list techniques)"
    parts.append(f"Lean execution (--execution lean):\n{lean}")
    for network, names in card.boundaries.items():
        parts.append(f"Boundaries of {network} (a layer's name is its first block):\n{_filled(', '.join(names))}")
    if card.differs:
        points = "\n".join(_filled(point, "  - ", "    ") for point in card.differs)
        parts.append(f"Differs from the paper or the released code:\n{points}")
    return "\n\n".join(parts)


def _setting_text(meaning: str, allowed: str) -> str:
    return "; ".join(filter(None, (meaning, f"takes {allowed}" if allowed else "")))


def techniques_text() -> str:
    """Return every technique with its plain value, what it does, what it takes, and whether it is exact."""
    entries = {
        f"{name}={shown(field.default)}": _setting_text(field.description or "", allowed(field))
        + ("; exact" if TECHNIQUES[name].exact else "; inexact")
        for name, field in Techniques.model_fields.items()
    }
    return (
        f"{two_columns(entries)}\n\n"
        "Each name stands with its value in plain execution. Exact: a step computes what\n"
        "it computes in plain execution, up to rounding. Inexact: it computes something\n"
        "else, and results say so. For example:\n"
        "  clmem measure sgd --execution checkpoint=block,trunk_chunk=4"
    )


def techniques_json() -> dict[str, dict[str, Any]]:
    """Return the same, ready for JSON. values: a list, or a sentence where they are numbers."""
    return {
        name: {
            "does": field.description or "",
            "values": choices(field.annotation) or allowed(field),
            "default": field.default,
            "exact": TECHNIQUES[name].exact,
        }
        for name, field in Techniques.model_fields.items()
    }


def _values(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in settings.items())


def _value(value: object) -> str:
    return clean(shown(value), LONGEST_VALUE)


def _filled(text: str, first: str = "  ", later: str = "  ") -> str:
    return fill(text, COLUMNS, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
