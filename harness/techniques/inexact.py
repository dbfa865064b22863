"""Techniques that compute something else: statistics of fewer images, or numbers of fewer bits. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from clmem.harness.techniques.technique import Count, Technique

if TYPE_CHECKING:
    from clmem.harness.techniques.registry import Techniques
    from clmem.methods.base import Method


def _freezes_nothing(techniques: Techniques, method: Method) -> str | None:
    if method.trunk_bn is not None:
        return None
    stored = f"frozen_weights={techniques.frozen_weights}"
    return f"{stored} stores what is frozen in fewer bits, and this method freezes nothing"


def _replaces_operations(techniques: Techniques, method: Method) -> str | None:
    replacing = [name for name in techniques.changed() if name in ("grouped_bn", "conv_slice", "bn_parts")]
    replacing += ["storage=sparse"] if techniques.storage == "sparse" else []
    if not replacing:
        return None
    return (
        f"autocast chooses a type for torch's own operations, and {' and '.join(replacing)} replace some of those; use "
        "it without them"
    )


class Inexact(BaseModel):
    """Fields of the techniques that are not exact."""

    micro_batch: Annotated[Count, Technique(exact=False, in_slices=True)] = Field(
        0, description="images at a time through forward and backward; batch norms see only these images"
    )
    frozen_weights: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"], Technique(exact=False, refuses=_freezes_nothing)
    ] = Field("float32", description="type that a frozen trunk's convolutions are stored in; they compute in float32")
    autocast: Annotated[
        Literal["none", "bfloat16"],
        Technique(
            exact=False,
            unpredictable="autocast=bfloat16 cannot be predicted, as torch casts nothing without a device",
            refuses=_replaces_operations,
        ),
    ] = Field(
        "none",
        description="type that convolutions and matrix products compute in, and keep their inputs in for the backward",
    )
