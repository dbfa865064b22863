"""What a field of a pydantic model takes, in words. No torch."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
BOUNDS = {Gt: ("more than", "gt"), Ge: ("at least", "ge"), Lt: ("less than", "lt"), Le: ("at most", "le")}


def allowed(field: FieldInfo) -> str:
    """Return the values that a field takes: those of a Literal, or a kind of value with its bounds."""
    bounds = {
        words: getattr(bound, name)
        for bound in field.metadata
        for kind, (words, name) in BOUNDS.items()
        if isinstance(bound, kind)
    }
    kind = _kind(field.annotation)
    if set(bounds) == {"at least", "at most"}:
        return f"{kind} from {bounds['at least']} to {bounds['at most']}"
    return ", ".join(filter(None, (kind, " and ".join(f"{words} {value}" for words, value in bounds.items()))))


def choices(kind: Any) -> list[Any]:
    """Return the values of a Literal, also of an optional one; none for any other kind."""
    if get_origin(kind) in (Union, UnionType):
        return [value for part in get_args(kind) for value in choices(part)]
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def shown(value: object) -> str:
    """Return a value as it is written behind `--set key=`; a value that cannot be written there as Python shows it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _kind(kind: Any) -> str:
    values = [shown(value) for value in choices(kind)]
    if values:
        return " or ".join(filter(None, (", ".join(values[:-1]), values[-1])))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(kind) if part is not type(None))
    return KINDS.get(kind, "") or getattr(kind, "__name__", "")
