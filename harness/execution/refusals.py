"""Which techniques a method refuses, and why: those that would change what it computes."""

from __future__ import annotations

from clmem.harness.specs.techniques import Techniques
from clmem.methods.base import Method


def refuse(techniques: Techniques, method: Method) -> None:
    """Raise ValueError with a reason for a technique that would change what a method computes, or cannot be used."""
    if techniques.optimizer_in_backward and method.needs_whole_gradients:
        raise ValueError(
            "optimizer_in_backward applies gradients one by one, and this method's settings need all of them together"
        )
    for name in ("replay_place", "replay_dtype"):
        if name in techniques.changed() and not method.uses_buffer:
            raise ValueError(f"{name} is about the slots of a replay buffer, and this method has none")
    if techniques.storage == "sparse":
        if not method.open_weights():
            raise ValueError("storage=sparse stores open weights alone, and this method closes none weight by weight")
        if not techniques.optimizer_in_backward:
            raise ValueError(
                "storage=sparse holds one whole weight at a time, and an optimizer step after the backward would need "
                "all of them; add optimizer_in_backward"
            )
    if techniques.micro_batch and techniques.grouped_bn:
        raise ValueError(
            "micro_batch runs a step's terms one after the other and grouped_bn runs them as one; choose one"
        )
    if techniques.frozen_weights != "float32" and method.trunk_bn is None:
        raise ValueError(
            f"frozen_weights={techniques.frozen_weights} stores what is frozen in fewer bits, and this method freezes "
            "nothing"
        )
    if techniques.autocast != "none":
        names: list[str] = ["grouped_bn", "conv_slice", "bn_parts"]
        replacing = [name for name in names if name in techniques.changed()]
        replacing += ["storage=sparse"] if techniques.storage == "sparse" else []
        if replacing:
            raise ValueError(
                f"autocast chooses a type for torch's own operations, and {' and '.join(replacing)} replace some of "
                "those; use it without them"
            )
    if techniques.backward == "termwise" and techniques.grouped_bn:
        raise ValueError(
            "backward=termwise runs a step's terms one after the other and grouped_bn runs them as one; choose one"
        )
    if techniques.trunk_chunk and method.trunk_bn == "train":
        raise ValueError(
            "trunk_chunk would normalise every slice by itself, as this method's trunk stays in train mode; "
            "use trunk_bn=eval"
        )
    for name in techniques.changed():
        if name in method.refuses:
            raise ValueError(f"{name} cannot be used with it: {method.refuses[name]}")
