"""SparCL on dark experience replay ++ (SparCL-DER++): learn with sparse weights, sparse gradients and ever less data.

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022 (arXiv 2209.09476).

    loss = CE(f(x), y) + alpha MSE(f(x_m), z_m) + beta CE(f(x_m'), y_m')        the first over the task's slice
    W   <- M_w (W - lr M_g dloss/dW)      on the sixteen 3x3 convolutions of layer1 ... layer4

M_w is a task-aware dynamic mask, M_g a dynamic gradient mask, and x lacks the samples that dynamic data removal left
out (`parts/sparcl.py`). In plain execution weights, gradients and activations are dense as in `derpp`: what is sparse
is zero, not absent, and the masks come on top. Carried out lean, open weights are stored alone.

Differs from the paper / the released code in:
- what `sparcl_er.py` lists, with `derpp` for `er` and `sparcl-derpp@released` for `sparcl-er@released`.
- beta is that of the released code on every stream; `derpp` is tuned by stream.
- three forwards, two independent draws and a mean squared error over samples and classes, as in `derpp`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from clmem.methods.base import Batch, MethodContext, Step
from clmem.methods.derpp import dark_replay
from clmem.methods.parts.sparcl import SparCL


class SparCLDERpp(SparCL):
    """SparCL on DER++: trains with sparse weights, sparse gradients and fewer samples as a task goes on."""

    name = "sparcl-derpp"

    class Config(SparCL.Config):
        """Hyper-parameters."""

        alpha: float = Field(0.1, ge=0, description="weight of the loss on stored logits (released code)")
        beta: float = Field(0.5, ge=0, description="weight of the loss on stored labels (released code)")

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config, num_logits=context.num_classes)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Three terms, one optimizer step; in task 0 what is left of the batch alone."""
        learn = self.begin_step(batch)
        if not self.replays(batch):
            return [[learn]]
        return [[learn, *dark_replay(self.buffer, self.context.replay_size, self.config.alpha, self.config.beta)]]
