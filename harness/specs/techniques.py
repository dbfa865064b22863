"""How a step is carried out: one typed object, each technique by itself; all but a few leave what it computes as it is.

Torch is not imported here: specs and reports name techniques, `harness/execution/` carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clmem.harness.errors import UsageError, expectation, nearest
from clmem.harness.text import clean

PLAIN, LEAN = "plain", "lean"
LONGEST_LABEL = 1000
"""Characters: twice a label that sets every technique."""
MOST = 2**20
"""Of images, samples or parts that a technique takes at a time."""
Count = Annotated[int, Field(ge=0, le=MOST)]

Segments = Literal["none", "block", "stage", "nested", "convolution", "deep"]
"""What is forgotten in the forward and computed again in the backward: nothing; the inside of every residual `block`;
of every `stage`, a layer of blocks; `nested`: of every stage, and within it again of every block; `convolution`: of
every block, and within it again of every convolution with its batch norm; `deep`: all three."""


INEXACT = frozenset({"micro_batch", "frozen_weights", "autocast"})
"""Techniques that compute something else: statistics of fewer images, or numbers of fewer bits."""


class Techniques(BaseModel):
    """Which lean techniques are in use; the default is plain execution.

    Every one leaves what is computed as it is (to rounding), or is refused for a method where it would not; but for
    those in INEXACT, which results mark.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trunk_chunk: Count = Field(
        0, description="images per slice of what runs without gradients in eval mode: a frozen trunk, evaluation"
    )
    optimizer_in_backward: bool = Field(
        False, description="apply and drop every gradient as soon as it is whole, during the backward"
    )
    checkpoint: Segments = Field("none", description="recompute activations in the backward, segment by segment")
    backward: Literal["together", "termwise"] = Field(
        "together", description="one backward for all terms of a step, or each term's right after its forward"
    )
    grouped_bn: bool = Field(
        False, description="run a step's terms as one forward, with batch-norm statistics of each term's own"
    )
    conv_slice: Count = Field(
        0, description="samples that a convolution takes at a time, where its maps are larger than its weights"
    )
    inplace_relu: bool = Field(False, description="let ReLUs overwrite their inputs, which no backward reads")
    inplace_sum: bool = Field(False, description="let the sum with a shortcut overwrite the output of a batch norm")
    relu_masks: bool = Field(
        False, description="keep a byte per element for the backward of a ReLU, and not its output, a float"
    )
    bn_parts: Count = Field(0, description="parts, by channels, in which the backward of a batch norm is worked out")
    micro_batch: Count = Field(
        0, description="images whose activations live at a time, and that batch norms take statistics of"
    )
    frozen_weights: Literal["float32", "bfloat16", "float16", "int8"] = Field(
        "float32", description="what a frozen trunk's convolutions are stored in; each is float32 while it computes"
    )
    autocast: Literal["none", "bfloat16"] = Field(
        "none", description="what convolutions and products are computed in, and their inputs kept in for the backward"
    )
    storage: Literal["masked", "compact", "sparse"] = Field(
        "masked",
        description="hold pruned weights as zeros; remove pruned channels; or store the values of open weights alone",
    )

    offload: bool = Field(False, description="keep what a backward needs in the host's memory, beside a device's")
    replay_place: Literal["device", "host"] = Field("device", description="where the slots of a replay buffer lie")
    replay_dtype: Literal["uint8", "float32"] = Field("uint8", description="what images in replay slots are stored in")

    def changed(self) -> dict[str, Any]:
        """Return what differs from plain execution, by name."""
        return self.model_dump(exclude_defaults=True)

    @property
    def moves(self) -> list[str]:
        """Techniques in use that move memory between a device and the host."""
        return [
            name for name, used in (("offload", self.offload), ("replay_place", self.replay_place == "host")) if used
        ]

    @property
    def is_exact(self) -> bool:
        """Tell whether nothing in use computes something else than plain execution does."""
        return not INEXACT & self.changed().keys()


def canonical(text: str) -> str:
    """Return a label in one spelling. Raises ValueError for what is no label."""
    lean = [LEAN] if LEAN in map(str.strip, text.split(",")) else []
    try:
        chosen = techniques(text, {})
    except UsageError as error:
        raise ValueError(str(error)) from error
    # beside `lean` a default says something: that it holds instead of the preset's value
    given = chosen.model_dump(exclude_unset=True) if lean else chosen.changed()
    return ",".join(lean + [f"{key}={str(value).lower()}" for key, value in sorted(given.items())]) or PLAIN


def techniques(text: str, lean: Mapping[str, object]) -> Techniques:
    """Return what a label stands for: `plain`, `lean` (a method's own preset), or `key=value,key=value`.

    A label may begin with `lean,` to change the preset. Raises UsageError naming an unknown technique or a wrong value.
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
