"""In which order a step runs, and how much of it at a time. No torch; `harness/execution/` does what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from clmem.harness.techniques.technique import Count, Technique

if TYPE_CHECKING:
    from clmem.harness.techniques.registry import Techniques
    from clmem.methods.base import Method

Segments = Literal["none", "block", "stage", "nested", "convolution", "deep"]
"""What is forgotten in the forward and computed again in the backward: nothing; the inside of every residual `block`;
of every `stage`, a layer of blocks; `nested`: of every stage, and within it again of every block; `convolution`: of
every block, and within it again of every convolution with its batch norm; `deep`: all three."""


def _normalises_slices(techniques: Techniques, method: Method) -> str | None:
    if method.trunk_bn != "train":
        return None
    return (
        "trunk_chunk would normalise every slice by itself, as this method's trunk stays in train mode; "
        "use trunk_bn=eval"
    )


def _needs_whole_gradients(techniques: Techniques, method: Method) -> str | None:
    if not method.needs_whole_gradients:
        return None
    return "optimizer_in_backward applies gradients one by one, and this method's settings need all of them together"


def _runs_terms_as_one(techniques: Techniques, method: Method) -> str | None:
    others = {"micro_batch": techniques.micro_batch > 0, "backward=termwise": techniques.backward == "termwise"}
    other = next((name for name, used in others.items() if used), None)
    return other and f"{other} runs a step's terms one after the other and grouped_bn runs them as one; choose one"


class Steps(BaseModel):
    """Fields of the techniques of steps."""

    trunk_chunk: Annotated[Count, Technique(in_slices=True, refuses=_normalises_slices)] = Field(
        0, description="images at a time where nothing is learnt: in a frozen trunk and in evaluation"
    )
    optimizer_in_backward: Annotated[bool, Technique(refuses=_needs_whole_gradients)] = Field(
        False,
        description="update each weight during the backward, as soon as its gradient is whole, and drop the gradient",
    )
    checkpoint: Annotated[Segments, Technique()] = Field(
        "none", description="drop the activations inside each segment and recompute them in the backward"
    )
    backward: Annotated[Literal["together", "termwise"], Technique()] = Field(
        "together", description="one backward for all terms of a step, or one right after each term's forward"
    )
    grouped_bn: Annotated[bool, Technique(refuses=_runs_terms_as_one)] = Field(
        False, description="run all terms of a step as one forward; batch norms still normalise each term by itself"
    )
