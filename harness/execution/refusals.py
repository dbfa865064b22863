"""Which techniques a method refuses, and why: those that would change what it computes."""

from __future__ import annotations

from harness.techniques import Techniques
from methods.base import Method


def refuse(techniques: Techniques, method: Method) -> None:
    """Raise ValueError with a reason for a technique that would change what a method computes, or cannot be used."""
    if techniques.optimizer_in_backward and method.needs_whole_gradients:
        raise ValueError(
            "optimizer_in_backward applies gradients one by one, and this method's settings need all of them together"
        )
    if techniques.backward == "termwise" and techniques.grouped_bn:
        raise ValueError(
            "backward=termwise runs a step's terms one after the other and grouped_bn runs them as one; choose one"
        )
    if techniques.trunk_chunk and method.trunk is not None and method.trunk.bn == "train":
        raise ValueError(
            "trunk_chunk would normalise every slice by itself, as this method's trunk stays in train mode; "
            "use trunk_bn=eval"
        )
    for name in techniques.changed():
        if name in method.refuses:
            raise ValueError(f"{name} cannot be used with it: {method.refuses[name]}")
