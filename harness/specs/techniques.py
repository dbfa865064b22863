"""Labels of executions: `plain`, `lean` or techniques as `key=value,key=value`, and what they stand for. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from clmem.harness.errors import UsageError, expectation, nearest
from clmem.harness.techniques.registry import Techniques
from clmem.harness.text import clean

PLAIN, LEAN = "plain", "lean"
LONGEST_LABEL = 1000
"""Characters: twice a label that sets every technique."""


def canonical(text: str) -> str:
    """Return a label in one spelling. Raises ValueError for what is no label."""
    lean = [LEAN] if LEAN in map(str.strip, text.split(",")) else []
    try:
        chosen = techniques(text, {})
    except UsageError as error:
        raise ValueError(str(error)) from error
    # beside `lean` a default says something: that it holds instead of the value that the method chose
    given = chosen.model_dump(exclude_unset=True) if lean else chosen.changed()
    return ",".join(lean + [f"{key}={str(value).lower()}" for key, value in sorted(given.items())]) or PLAIN


def techniques(text: str, lean: Mapping[str, object]) -> Techniques:
    """Return what a label stands for: `plain`, `lean` (the method's own choice), or `key=value,key=value`.

    A label may begin with `lean,` to change the choice. Raises UsageError naming an unknown technique or a wrong value.
    """
    if len(text) > LONGEST_LABEL:
        raise UsageError(
            f"the label {clean(text, 80)!r} is too long; techniques take {LONGEST_LABEL} characters at most"
        )
    values: dict[str, object] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = part.partition("=")
        if part == LEAN:
            if values:
                raise UsageError(f"the label {text!r} names `lean` behind other techniques; put it first")
            values.update(lean)
        elif part != PLAIN:
            values[key] = value if equals else "true"
    known = list(Techniques.model_fields)
    for key in values:
        if key not in known:
            raise UsageError(f"there is no technique {clean(key, 80)!r}: {nearest(key, [*known, PLAIN, LEAN])}")
    try:
        return Techniques.model_validate(values)
    except ValidationError as error:
        item = error.errors()[0]
        raise UsageError(
            f"technique {item['loc'][0]} is {clean(repr(item['input']), 80)} but {expectation(item)}"
        ) from error
