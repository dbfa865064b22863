"""SparCL on experience replay (SparCL-ER): learn with sparse weights, sparse gradients and ever less data.

Wang et al., "SparCL: Sparse Continual Learning on the Edge", NeurIPS 2022 (arXiv 2209.09476).

    loss = CE(f(x + x_m), y + y_m)        over the task's slice for y, over all classes for y_m, in ONE forward
    W   <- M_w (W - lr M_g dloss/dW)      on the sixteen 3x3 convolutions of layer1 ... layer4

M_w is a task-aware dynamic mask, M_g a dynamic gradient mask, and x lacks the samples that dynamic data removal left
out (`parts/sparcl.py`). In plain execution weights, gradients and activations are dense as in `er`: what is sparse is
zero, not absent, and the masks come on top. Carried out lean, open weights are stored alone.

Differs from the paper / the released code in:
- masks are 1 bit per weight; `sparcl-er@released` holds the released code's two float32 masks per masked layer.
- schedules are fractions of a task's steps: what they do at epoch e of 50 happens at e / 50 of the steps.
- a weight mask moves between a backward and the optimizer step, by that step's gradient before it is masked. As
  released it moves before an epoch's first forward, by the gradient left from the batch before.
- the paper's importance weighs gradients of the batch and of the buffer apart; as released one gradient holds both.
- only the released code's bounds for a sparsity of .75 are known; the others move by the same .01.
- at a sparsity of .8 or more the default `gradient_keep` leaves every open weight its gradient.
- a gradient mask is renewed with every weight mask: as released, weight masks move where an epoch begins, which does.
- a removed sample is left out of the batch that the common stream put it in, so batches become smaller, not fewer; one
  that would have fewer than two samples is learnt whole.
- what is left out is not offered to the buffer either. Replay is as in `er`, but from task 1 on (as released).
- a sample is right when it is in the task's slice; what is known of it is kept through a task, where the released code
  begins anew after each removal; and samples that were never right are removed last, though never forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from clmem.methods.base import Batch, Step, Term
from clmem.methods.parts.sparcl import SparCL


class SparCLER(SparCL):
    """SparCL on ER: trains with sparse weights, sparse gradients and fewer samples as a task goes on."""

    name = "sparcl-er"

    def terms(self, batch: Batch) -> Iterable[Step]:
        """One term on the concatenation; in task 0 on what is left of the batch alone."""
        learn = self.begin_step(batch)
        if not self.replays(batch):
            return [[learn]]
        replayed = self.buffer.draw(self.context.replay_size)
        loss = partial(self.cross_entropy_of_both, classes=batch.classes)
        return [[Term(torch.cat([learn.images, replayed.images]), loss, (*learn.targets, replayed.labels))]]
