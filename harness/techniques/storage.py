"""Where weights, activations and replay slots lie, and in what form. No torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from clmem.harness.techniques.technique import Technique

if TYPE_CHECKING:
    from clmem.harness.techniques.registry import Techniques
    from clmem.methods.base import Method

MOVES = "moves values between a device and the host and cannot be predicted without"


def _lacks_open_weights(techniques: Techniques, method: Method) -> str | None:
    if techniques.storage != "sparse":
        return None
    if not method.open_weights():
        return "storage=sparse stores open weights alone, and this method closes none weight by weight"
    if not techniques.optimizer_in_backward:
        return (
            "storage=sparse holds one whole weight at a time, and an optimizer step after the backward would need all "
            "of them; add optimizer_in_backward"
        )
    return None


def _lacks_slots(name: str, techniques: Techniques, method: Method) -> str | None:
    return None if method.uses_buffer else f"{name} is about the slots of a replay buffer, and this method has none"


class Storage(BaseModel):
    """Fields of the techniques of storage."""

    storage: Annotated[Literal["masked", "compact", "sparse"], Technique(refuses=_lacks_open_weights)] = Field(
        "masked",
        description="keep pruned weights as zeros; remove pruned channels; or store only weights that are not pruned",
    )
    offload: Annotated[bool, Technique(moves=True, unpredictable=f"offload {MOVES}")] = Field(
        False, description="keep saved activations in the host's memory instead of the device's"
    )
    replay_place: Annotated[
        Literal["device", "host"],
        Technique(moves=True, unpredictable=f"replay_place {MOVES}", refuses=partial(_lacks_slots, "replay_place")),
    ] = Field("device", description="memory that holds the replay buffer")
    replay_dtype: Annotated[Literal["uint8", "float32"], Technique(refuses=partial(_lacks_slots, "replay_dtype"))] = (
        Field("uint8", description="type that images in the replay buffer are stored in")
    )
