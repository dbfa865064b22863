"""Head only: the control that learns nothing but the linear layer. It comes from no paper.

    loss = CE(f(x), y), of which only the linear layer is learnt

It is `tail-sgd` with the latest boundary there is, under a name of its own because it is the floor of every comparison:
no trained tail can need less memory, and forgetting that is still there is the head's.

Without pretrained weights task 0 trains everything (`trunk=auto`), and costs what plain SGD costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from clmem.methods.base import searched
from clmem.methods.parts.lean import WHOLE
from clmem.methods.tail_sgd import TailSGD


class HeadOnly(TailSGD):
    """Learn every batch as it comes, with the linear layer alone."""

    name = "head-only"
    tuned = searched(lr=0.1)
    # nothing but the trunk's maps is left; image by image takes over twice the plain time on the CPU
    lean: ClassVar[Mapping[str, object]] = {**WHOLE, "trunk_chunk": 2}

    class Config(TailSGD.Config):
        """Hyper-parameters."""

        boundary: Literal["head"] = Field("head", description="first stage that learns (what the method is)")

    config: Config
