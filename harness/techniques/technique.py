"""What there is to know of one technique, beside its name, its values and what it does. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from clmem.harness.techniques.registry import Techniques
    from clmem.methods.base import Method, Network

MOST = 2**20
"""Of images, samples or parts that a technique takes at a time."""
Count = Annotated[int, Field(ge=0, le=MOST)]


@dataclass(frozen=True)
class Technique:
    """Stands in the annotation of a technique's field, and is asked only while that technique is in use.

    - exact: whether a step computes what it computes in plain execution, up to rounding.
    - in_slices: whether images are run a few at a time, so that a larger batch takes more operations.
    - moves: whether it moves memory between a device and the host.
    - unpredictable: why its bytes cannot be predicted; empty if they can.
    - refuses: returns why it cannot be used with other techniques or with a method, None if it can.
    - prepare: changes a network before it learns, given the technique's value; what needs torch is imported inside.
    """

    exact: bool = True
    in_slices: bool = False
    moves: bool = False
    unpredictable: str = ""
    refuses: Callable[[Techniques, Method], str | None] = lambda techniques, method: None
    prepare: Callable[[Network, Any], None] = lambda network, value: None
