"""Head only: the control that learns nothing but the linear layer. It comes from no paper.

    loss = CE(f(x), y), of which only the linear layer is learnt

It is `tail-sgd` with the latest boundary there is, under a name of its own because it is the floor of every comparison:
no trained tail can need less memory, and forgetting that is still there is the head's.

Without pretrained weights task 0 trains everything (`trunk=auto`), and costs what plain SGD costs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clmem.methods.tail_sgd import TailSGD


class HeadOnly(TailSGD):
    """Control: trains only the last linear layer; the trunk before it is frozen."""

    name = "head-only"

    class Config(TailSGD.Config):
        """Hyper-parameters."""

        boundary: Literal["head"] = Field("head", description="first stage that learns, here always the head")

    config: Config
