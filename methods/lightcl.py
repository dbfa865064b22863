"""LightCL, dense: freeze what generalises, and keep the features of the rest where they were.

Wang et al., "LightCL: Compact Continual Learning with Low Memory Footprint For Edge Device", arXiv 2407.10545v3, 2025.

    task 0:      loss = CE(f(x), y)
    task t > 0:  loss = CE(f(x), y) + beta sum_l sum_{c in K_l} ||F_l,c(M) - F*_l,c||^2 + beta ||f(M) - z*||^2

over the current task's slice of logits, learning only the layers from `boundary` on. M: `memory_size` images, fixed
during a task. F_l: outputs of the ReLUs of the tail, layer4 in a ResNet. F*, z*: features and logits of M under the
weights at the start of the task. K_l: the channels that mattered to an earlier task, score s_c = sum |F_l,c| over one
of its batches. All sums are sums, not means. Each step is two forwards, M and then the batch, and one backward.

Their order changes running statistics a little, and bytes: the graph of the first is held while the second runs through
the trunk, and while the second's backward runs. The batch first would take 5 MiB more at 32 x 32 and 21 MiB less at
64 x 64 (CPU peak, batch 32, width 64, frozen trunk).

F* and z* are computed in the mode in which a step computes F and f: the tail's batch norms normalise by the batch M.
The penalty is thus zero before the first update of a task; with running statistics it would not be.

Differs from the paper / the released code in:
- nothing but the channel masks is held between tasks, as bool [channels], and with `keep_ratio=1` not even they.
- `trunk_bn=eval`: as released, the batch norms of the frozen trunk stay in train mode and drift (`train`).
- `memory_source=reservoir` remembers images of old tasks. As released (`new_task`) M is the start of the NEW task's
  first batch, so no image outlives its task, and no image of an old task is ever seen again.
- `keep_ratio` .15 of 512 channels keeps 78, not 77: the released threshold lets its own channel in, and so do we.
- a task's channels are scored on its first batch of the first epoch, in eval mode; the paper says one batch.
- the paper's learning plasticity and memory stability are defined nowhere; `clmem probe` measures our own.
- weights are not pretrained unless they are loaded: `trunk=first_task` lets task 0 train everything.
- sparsity is another method, `lightcl-sparse`.

The preset `released` holds what the released code holds: all-ones float32 masks over all parameters (42.625 MiB at
width 64 with 10 classes; they change no value, so they are held and not multiplied), drifting batch norms in the trunk,
and the graphs of an evaluation without `no_grad`. It leaves anomaly detection out: switched on by hand (torch 2.15,
CPU, width 64, batch 32), it moved the tensor peak of no phase by a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clmem.methods.base import Batch, Method, MethodContext, Network, Outputs, Step, Task, Term, Trunk
from clmem.methods.parts.channels import top_channels
from clmem.methods.parts.reservoir import Reservoir
from clmem.methods.parts.trunk import TailConfig, frozen_trunk, trunk_modules


class LightCL(Method):
    """LightCL: freezes the early layers and penalises changes to the features of a few images."""

    name = "lightcl"
    stage_settings = ("boundary", "first_boundary")
    checkpointed: ClassVar[tuple[str, ...]] = ("memory", "features", "logits", "masks", "buffer", "weight_masks")

    class Config(TailConfig):
        """Hyper-parameters; defaults of the released code unless noted."""

        lr: float = Field(0.01, gt=0, description="learning rate of SGD (released code)")
        head: Literal["class_il", "task_il"] = Field(
            "task_il",
            description="cross-entropy over all classes (class_il) or those of the current task "
            "(task_il, released code)",
        )
        boundary: str = Field(
            "tail",
            description="first stage that learns; each network says which stage is its `tail` (released code: layer4; "
            "the paper's memory column implies layer3.1)",
        )
        first_boundary: str | None = Field(
            None,
            description="first stage that learns in task 0 if the trunk is frozen from the start; none: the one that "
            "`boundary` names (released code)",
        )
        trunk_bn: Literal["eval", "train"] = Field(
            "eval", description="mode of the batch norms in a frozen trunk (released code: train)"
        )
        beta: float = Field(2e-4, ge=0, description="weight of the penalty, which is a sum, not a mean (released code)")
        keep_ratio: float = Field(
            0.15,
            gt=0,
            le=1,
            description="share of the channels that each task adds to the penalty; 1: all, without a mask",
        )
        memory_size: int = Field(
            15, ge=1, description="images that the penalty is computed on, M (released code; Table 1)"
        )
        memory_source: Literal["new_task", "reservoir"] = Field(
            "new_task",
            description="where M comes from: the new task's first batch (released code), or a reservoir of old images",
        )
        weight_masks: Literal["none", "float32"] = Field(
            "none", description="masks of ones for all parameters, which only take memory (released code: float32)"
        )
        evaluation_graph: bool = Field(
            False,
            description="record autograd graphs in evaluation, as code without no_grad does (released code: true)",
        )

    config: Config

    def __init__(self, context: MethodContext, config: Config) -> None:
        super().__init__(context, config)
        if config.memory_source == "new_task" and config.memory_size > context.batch_size:
            raise ValueError(
                f"memory_size is {config.memory_size} but the batch it is taken from has {context.batch_size} images; "
                "use a smaller memory_size or a larger batch"
            )
        self._trunk_of(1)  # raises for an impossible boundary now, not after task 0
        first = config.first_boundary
        index = context.network.stage_index
        if first is not None and index(first) > index(config.boundary):
            raise ValueError(
                f"first_boundary is {first!r}, behind boundary {config.boundary!r}, so that layers frozen in task 0 "
                "would learn later; choose an earlier first_boundary"
            )
        self.trunk = self._trunk_of(0)
        self.watched = tail_relus(context.network, config.boundary)
        self.buffer = Reservoir(context, config.memory_size if config.memory_source == "reservoir" else 0)
        self.memory: Tensor | None = None
        """M, float32 [m, C, H, W]."""
        self.features: dict[str, Tensor] = {}
        """F* by module name, float32 [m, C, h, w]."""
        self.logits: Tensor | None = None
        """z*, float32 [m, all classes]."""
        self.masks: dict[str, Tensor] = {}
        """K by module name, bool [C]."""
        self.channels: dict[str, int] = {}
        """Channels by module name where some were removed: those of before."""
        self.weight_masks: list[Tensor] = []
        if config.weight_masks == "float32":
            self.weight_masks = [torch.ones_like(parameter) for parameter in context.network.parameters()]

    def before_task(self, task: Task) -> None:
        """Freeze the trunk once its time has come; from task 1 on choose M and look at it with the old weights."""
        self.trunk = self._trunk_of(task.index)
        if task.index > 0:
            self.memory = self._memory_images(task)
            reference = self.context.runner.forward(self.memory, watch=self.watched, bn="train")
            self.features, self.logits = dict(reference.maps), reference.logits

    def terms(self, batch: Batch) -> Iterable[Step]:
        """M, then the batch: two forwards, one optimizer step."""
        learn = Term(batch.images, partial(self.cross_entropy, classes=batch.classes), (batch.labels,))
        if self.memory is None or self.logits is None:
            return [[learn]]
        penalty = partial(self.penalty, features=self.features, logits=self.logits)
        return [[Term(self.memory, penalty, watch=self.watched), learn]]

    def penalty(self, outputs: Outputs, features: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Beta times the summed squared drift from masked features and from all logits."""
        drift = F.mse_loss(outputs.logits, logits, reduction="sum")
        for name, reference in features.items():
            drift = drift + feature_drift(outputs.maps[name], reference, self.masks.get(name))
        return self.config.beta * drift

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Offer the batch to the reservoir, which has no slots unless M comes from it."""
        self.buffer.add(batch.raw, batch.labels)

    def after_task(self, task: Task) -> None:
        """Forget M, then add the channels that matter to this task to those that mattered before."""
        self.memory, self.features, self.logits = None, {}, None
        if self.config.keep_ratio < 1:
            seen = self.context.runner.forward(task.batch(0, 0).images, watch=self.watched)
            for name, features in seen.maps.items():
                mask = important_channels(features, self.config.keep_ratio, self.channels.get(name))
                self.masks[name] = self.masks[name] | mask if name in self.masks else mask

    def predict(self, images: Tensor, task_id: int | None = None) -> Tensor:
        """Return logits [n, all classes]; with `evaluation_graph` they keep the graph that made them."""
        return self.context.runner.forward(images, graph=self.config.evaluation_graph).logits

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Replay: M and the reservoir. Method state: F*, z* and the masks."""
        replay = [*self.buffer.tensors()]
        state = [*self.features.values(), *self.masks.values(), *self.weight_masks]
        if self.memory is not None and self.logits is not None:
            replay.append(self.memory)
            state.append(self.logits)
        return {"replay": replay, "method_state": state}

    @property
    def trunk_bn(self) -> Literal["eval", "train"]:
        """As it was set."""
        return self.config.trunk_bn

    @property
    def samples_to_store(self) -> int:
        """Those that M is drawn from, where it comes from a reservoir."""
        own = self.config.memory_size if self.config.memory_source == "reservoir" else 0
        return max(own, super().samples_to_store)

    def _trunk_of(self, task: int) -> Trunk | None:
        boundary = self.config.first_boundary if task == 0 else None
        return frozen_trunk(
            self.context, boundary or self.config.boundary, self.config.trunk, task, self.config.trunk_bn
        )

    def _memory_images(self, task: Task) -> Tensor:
        size = self.config.memory_size
        if self.config.memory_source == "reservoir":
            return self.buffer.draw(size).images
        return task.batch(0, 0).images[:size].clone()  # a view would keep the whole batch


def tail_relus(network: Network, boundary: str) -> tuple[str, ...]:
    """Return the names of the tail's ReLUs that lie from `boundary` on: the frozen ones have nothing to learn.

    Raises ValueError where there is none, because LightCL would then hold no features.
    """
    frozen = {id(module) for stage in (boundary, network.tail_stage) for module in trunk_modules(network, stage)}
    names = tuple(name for name in network.feature_relus if id(network.get_submodule(name)) not in frozen)
    if not names:
        raise ValueError(
            f"no ReLU that could be watched lies from boundary {boundary!r} on, so there are no features to hold; "
            "choose an earlier boundary, or a network with such ReLUs, as resnet18 has"
        )
    return names


def feature_drift(features: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """Return sum_{c in mask} ||F_c - F*_c||^2: features and reference [m, C, ...], mask bool [C] or None for all.

    `mse_loss` saves F and F*, which live anyway; F - F* would be one more map (480 KiB at 15 x 512 x 4 x 4).
    """
    if mask is None:
        return F.mse_loss(features, reference, reduction="sum")
    by_channel = F.mse_loss(features, reference, reduction="none").sum(all_but_channels(features))
    return (by_channel * mask).sum()


def important_channels(features: Tensor, keep_ratio: float, channels: int | None = None) -> Tensor:
    """Return a bool mask [C] of the channels of features [n, C, ...] with the largest sum |F_c|.

    channels: of how many the ratio is taken, if not of C.
    """
    return top_channels(features.abs().sum(all_but_channels(features)), keep_ratio, channels)


def all_but_channels(features: Tensor) -> tuple[int, ...]:
    """Return the dimensions of features [n, C, ...] that a channel's sum goes over."""
    return (0, *range(2, features.ndim))
