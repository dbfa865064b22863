"""LightCL, dense: freeze what generalises, and keep the features of the rest where they were.

Wang et al., "LightCL: Compact Continual Learning with Low Memory Footprint For Edge Device", arXiv 2407.10545v3, 2025.

    task 0:      loss = CE(f(x), y)
    task t > 0:  loss = CE(f(x), y) + beta sum_l sum_{c in K_l} ||F_l,c(M) - F*_l,c||^2 + beta ||f(M) - z*||^2

over the current task's slice of logits, learning only the layers from `boundary` on. M: `memory_size` images, fixed
during a task. F_l: outputs of the ReLUs of layer4. F*, z*: features and logits of M under the weights at the start of
the task. K_l: the channels that mattered to an earlier task, score s_c = sum |F_l,c| over one of its batches. All sums
are sums, not means. Each step is two forwards, M and then the batch, and one backward.

Their order changes running statistics a little, and bytes: the graph of the first is held while the second runs through
the trunk, and while the second's backward runs. The batch first would take 5 MiB more at 32 x 32 and 21 MiB less at
64 x 64 (CPU peak, batch 32, width 64, frozen trunk).

F* and z* are computed in the mode in which a step computes F and f: the tail's batch norms normalise by the batch M.
The penalty is thus zero before the first update of a task; with running statistics it would not be.

Differs from the paper / the released code in:
- the released dense run also holds all-ones float32 masks over its weights (42.6 MiB); here nothing but the channel
  masks is held, as bool [channels], and with `keep_ratio=1` not even they.
- `trunk_bn=eval`: as released, the batch norms of the frozen trunk stay in train mode and drift (`train`).
- `memory_source=reservoir` remembers images of old tasks. As released (`new_task`) M is the start of the NEW task's
  first batch, so no image outlives its task, and no image of an old task is ever seen again.
- `keep_ratio` .15 of 512 channels keeps 78, not 77: the released threshold lets its own channel in, and so do we.
- weights are not pretrained unless they are loaded: `trunk=first_task` lets task 0 train everything.
- no anomaly detection, and evaluation builds no graph.
- sparsity is another method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from methods.base import Batch, Method, Network, Outputs, Setting, Step, Task, Term
from methods.parts.reservoir import Reservoir
from methods.parts.trunk import Freezing, frozen_trunk, trunk_modules


@dataclass(frozen=True)
class Memory:
    """What a task is anchored to: images M, float32 [m, C, H, W], and their features F* and logits z*."""

    images: Tensor
    reference: Outputs


class LightCL(Method):
    """Learn the batch with the tail, holding the features of a few images in place."""

    name = "lightcl"

    class Config(Method.Config):
        """Hyper-parameters; defaults of the released code unless noted."""

        lr: float = Field(0.01, gt=0, description="SGD learning rate (released code)")
        head: Literal["class_il", "task_il"] = Field(
            "task_il", description="cross-entropy over the current task's slice (released code), or over all classes"
        )
        boundary: str = Field(
            "layer4", description="first stage that learns (released code; the paper's memory column implies layer3.1)"
        )
        trunk: Freezing = Field(
            "auto",
            description="`frozen` from the start, after the `first_task`, or `auto`: by whether weights were loaded",
        )
        trunk_bn: Literal["eval", "train"] = Field("eval", description="mode of a frozen trunk's bn (released: train)")
        beta: float = Field(2e-4, ge=0, description="weight of the penalty, a sum (released code)")
        keep_ratio: float = Field(0.15, gt=0, le=1, description="channels held per task; 1 holds all, without a mask")
        memory_size: int = Field(15, ge=1, description="images in M (released code; Table 1)")
        memory_source: Literal["new_task", "reservoir"] = Field(
            "new_task", description="M from the new task's first batch (released code), or from a reservoir of old ones"
        )

    config: Config

    def __init__(self, setting: Setting, config: Config) -> None:
        super().__init__(setting, config)
        if config.memory_source == "new_task" and config.memory_size > setting.batch_size:
            raise ValueError(
                f"memory_size is {config.memory_size} but the batch it is taken from has {setting.batch_size} images; "
                "use a smaller memory_size or a larger batch"
            )
        self.trunk = frozen_trunk(setting, config.boundary, config.trunk, 0, config.trunk_bn)
        self.watched = tail_relus(setting.network, config.boundary)
        self.buffer = Reservoir(setting, config.memory_size if config.memory_source == "reservoir" else 0)
        self.memory: Memory | None = None
        self.masks: dict[str, Tensor] = {}

    def before_task(self, task: Task) -> None:
        """Freeze the trunk once its time has come; from task 1 on choose M and look at it with the old weights."""
        self.trunk = frozen_trunk(
            self.setting, self.config.boundary, self.config.trunk, task.index, self.config.trunk_bn
        )
        if task.index > 0:
            images = self._memory_images(task)
            reference = self.setting.executor.forward(images, watch=self.watched, bn="train")
            self.memory = Memory(images, reference)

    def terms(self, batch: Batch) -> Iterable[Step]:
        """M, then the batch: two forwards, one optimizer step."""
        learn = Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))
        if self.memory is None:
            return [[learn]]
        penalty = partial(self.penalty, reference=self.memory.reference)
        return [[Term(self.memory.images, penalty, watch=self.watched), learn]]

    def penalty(self, outputs: Outputs, reference: Outputs) -> Tensor:
        """Beta times the summed squared drift of masked features and of all logits."""
        drift = F.mse_loss(outputs.logits, reference.logits, reduction="sum")
        for name in self.watched:
            drift = drift + feature_drift(outputs.maps[name], reference.maps[name], self.masks.get(name))
        return self.config.beta * drift

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Offer the batch to the reservoir, which has no slots unless M comes from it."""
        self.buffer.add(batch.raw, batch.labels)

    def after_task(self, task: Task) -> None:
        """Forget M, then add the channels that matter to this task to those that mattered before."""
        self.memory = None
        if self.config.keep_ratio < 1:
            seen = self.setting.executor.forward(task.batch(0, 0).images, watch=self.watched)
            for name, features in seen.maps.items():
                mask = important_channels(features, self.config.keep_ratio)
                self.masks[name] = self.masks[name] | mask if name in self.masks else mask

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Replay: M and the reservoir. Method state: F*, z* and the masks."""
        replay, state = [*self.buffer.tensors()], [*self.masks.values()]
        if self.memory is not None:
            replay.append(self.memory.images)
            state += [self.memory.reference.logits, *self.memory.reference.maps.values()]
        return {"replay": replay, "method_state": state}

    def _memory_images(self, task: Task) -> Tensor:
        size = self.config.memory_size
        if self.config.memory_source == "reservoir":
            return self.buffer.draw(size).images
        return task.batch(0, 0).images[:size].clone()  # a view would keep the whole batch


def tail_relus(network: Network, boundary: str) -> tuple[str, ...]:
    """Return the names of layer4's ReLUs that lie from `boundary` on: the frozen ones have nothing to learn."""
    frozen = {id(module) for module in trunk_modules(network, boundary)}
    named = network.named_modules()
    relus = ((name, module) for name, module in named if name.startswith("layer4.") and isinstance(module, nn.ReLU))
    return tuple(name for name, module in relus if id(module) not in frozen)


def feature_drift(features: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """Return sum_{c in mask} ||F_c - F*_c||^2: features and reference [m, C, h, w], mask bool [C] or None for all.

    `mse_loss` saves F and F*, which live anyway; F - F* would be one more map (480 KiB at 15 x 512 x 4 x 4).
    """
    if mask is None:
        return F.mse_loss(features, reference, reduction="sum")
    by_channel = F.mse_loss(features, reference, reduction="none").sum((0, 2, 3))
    return (by_channel * mask).sum()


def important_channels(features: Tensor, keep_ratio: float) -> Tensor:
    """Return a bool mask [C] of the channels of features [n, C, h, w] with the largest sum |F_c|.

    n_keep = int(C keep_ratio + .5); the threshold is the (C - n_keep)-th smallest score, itself kept: n_keep + 1.
    """
    scores = features.abs().sum((0, 2, 3))
    n_keep = int(len(scores) * keep_ratio + 0.5)
    return scores >= scores.topk(min(n_keep + 1, len(scores))).values[-1]
