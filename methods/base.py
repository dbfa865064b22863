"""The contract between an algorithm and the harness: what a method says, and what it is given.

A method says *what* one batch is learnt by (`terms`); it never calls `backward` or an optimizer. The harness's
execution says *how*, so that lean techniques and the memory ledger work for every method at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Scenario = Literal["class-il", "task-il"]


@dataclass(frozen=True)
class Batch:
    """One training batch of a task.

    images: float32 [b, C, H, W], augmented and normalised, on the target device.
    labels: int64 [b], global class numbers, on the target device.
    raw: uint8 [b, C, H, W], the same samples un-augmented, on the host: what a replay buffer stores.
    positions: int64 [b], on the host: which of its task's samples each one is, 0 ... Task.num_samples - 1.
    classes: the global class numbers of the task that the batch belongs to.
    """

    images: Tensor
    labels: Tensor
    raw: np.ndarray
    positions: np.ndarray
    classes: range
    task: int
    epoch: int
    step: int


@dataclass(frozen=True)
class Task:
    """One task of the stream: `batch(epoch, step)` is pure, so a method may look at any batch of its own task.

    epochs, steps_per_epoch: how long this run really stays in the task, so a short measurement has short tasks.
    """

    index: int
    classes: range
    epochs: int
    steps_per_epoch: int
    num_samples: int
    batch: Callable[[int, int], Batch]


@dataclass(frozen=True)
class Outputs:
    """What one forward gave: logits [n, all classes] and the watched feature maps by module name."""

    logits: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """One forward (so one batch-norm batch) and the loss it contributes.

    images: float32 [n, C, H, W].
    loss: maps (outputs, *targets) to a scalar.
    targets: tensors the loss compares with; they count as `input`, like the images.
    watch: names of modules whose outputs the loss needs, found in `outputs.maps`.
    """

    images: Tensor
    loss: Callable[..., Tensor]
    targets: tuple[Tensor, ...] = ()
    watch: tuple[str, ...] = ()


Step = list[Term]
"""The terms whose losses are summed before ONE optimizer step."""


@dataclass(frozen=True)
class Trunk:
    """The part of the network before `boundary`, frozen: it runs without gradients.

    bn: mode of its batch norms, `eval` (running statistics, kept) or `train` (batch statistics, drifting).
    """

    boundary: str
    bn: Literal["eval", "train"] = "eval"


@dataclass(frozen=True)
class Convolution:
    """One convolution of a network whose channels can be pruned, by module names.

    norm: the batch norm behind it. summed: the convolutions of one name are added to each other.
    reads: the convolution whose channels are its inputs; None for images, and for a shortcut, whose inputs stay.
    depth: the number of its layer, of which the stem is 0. relu: the ReLU that its channels go through next, None for a
    shortcut.
    """

    name: str
    norm: str
    summed: str
    reads: str | None
    depth: int
    relu: str | None


class Network(nn.Module):
    """What a method learns: a chain of named stages, from images [n, C, H, W] to logits [n, all classes].

    Images have the channels C and the sides of the stream. A subclass must define `boundaries`, `tail_stage`, `run` and
    `stage_modules`. What else it says of itself lets more methods and techniques work on it. Stages of one name before
    the last dot are a layer: `layer2.0` and `layer2.1`.
    """

    @property
    def boundaries(self) -> list[str]:
        """Names of the stages in order; the network can be split before any of them but the first."""
        raise NotImplementedError

    @property
    def tail_stage(self) -> str:
        """The first stage that learns where a trunk is frozen, unless a method is told otherwise."""
        raise NotImplementedError

    @property
    def head_stage(self) -> str:
        """The last stage; its name is also that of the module that makes the logits."""
        return self.boundaries[-1]

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (included) to `stop` (excluded); None is the beginning and the end."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        return self.run(x)

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return the modules that lie before `boundary`. Raises for a boundary that the network lacks."""
        raise NotImplementedError

    def stage_index(self, boundary: str) -> int:
        """Return the position of a stage; the name of a layer stands for its first stage.

        `tail`, `before_tail` and `head` are the stages that these roles have, unless a stage has such a name. Raises
        ValueError for a boundary that the network lacks.
        """
        names = self.boundaries
        for index, name in enumerate(names):
            if boundary in (name, layer_of(name)):
                return index
        if boundary == "head":
            return len(names) - 1
        if boundary in ("tail", "before_tail"):
            return max(0, self.stage_index(self.tail_stage) - (boundary == "before_tail"))
        raise ValueError(f"this network has no boundary {boundary!r}; its stages are {', '.join(names)}")

    @property
    def feature_relus(self) -> list[str]:
        """Names of the ReLUs that give maps of features, in order; each runs once in a forward."""
        return []

    def closing_relu(self, stage: str) -> str | None:
        """Return the name of the ReLU that gives a stage's maps [n, C, h, w] and runs once; None where none does."""
        return None

    def relus_in_place(self) -> None:
        """Let every ReLU whose input nothing else needs, from now on, overwrite it."""

    def sums_in_place(self) -> None:
        """Let every residual sum, from now on, overwrite a term that nothing else needs."""

    def convolutions(self) -> list[Convolution]:
        """Return the convolutions in order; none if the network does not say what a pruned channel takes with it."""
        return []

    def is_divisible(self, stage: str) -> bool:
        """Return whether `run_parts` runs a stage in more parts than one."""
        return False

    def run_parts(self, stage: str, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Run one stage, each of its parts by `run(function, *inputs)`."""
        raise NotImplementedError

    def own_name(self, name: str) -> str:
        """Return this network's name of a tensor that others' weights files call `name`."""
        return name

    def advice_on(self, name: str, shape: tuple[int, ...]) -> str:
        """Return what to do about a weights file whose tensor of that name has another shape; empty if unknown."""
        return ""


def layer_of(stage: str) -> str:
    """Return the layer that a stage belongs to: what stands before its last dot, or all of its name."""
    return stage.rpartition(".")[0] or stage


class OpenElements(Protocol):
    """Says which elements of a tensor are open; the others are zero."""

    def read(self) -> Tensor:
        """Return a bool [n] over all elements in order: True where open."""
        ...


class Runner(Protocol):
    """How a method looks through the network without learning: evaluation, importance, reference features."""

    def forward(
        self,
        images: Tensor,
        *,
        watch: tuple[str, ...] = (),
        bn: Literal["eval", "train"] = "eval",
        network: Network | None = None,
        graph: bool = False,
    ) -> Outputs:
        """Run the network, or another one that the method holds, without learning.

        bn: `train` normalises by the batch, leaving running statistics alone. graph: record the autograd graph as code
        without `no_grad` does (the outputs keep it), to measure what that costs.
        """
        ...

    def gradients(self, term: Term, *, bn: Literal["eval", "train"] = "eval") -> dict[str, Tensor]:
        """Return {parameter name: gradient of the term's loss}; no parameter moves, and gradients of a step stay.

        bn: as in `forward`. A frozen trunk has no gradients. A method that calls it in `adjust_gradient` needs whole
        gradients.
        """
        ...


@dataclass(frozen=True)
class MethodContext:
    """Everything a method is given when it is made.

    augment: uint8 [n, C, H, W] images (any device) -> float32 augmented and normalised, drawing from the generator.
    rng: the method's own generator; nothing it draws moves the stream.
    buffer_size: replay slots in all; replay_size: samples drawn per step.
    pretrained: whether the network's weights were loaded rather than drawn.
    new_network: makes another network of the same shape; its weights depend on the run's seed and on the number given.
    replay_device, replay_dtype: where replay slots lie, and what images in them are stored in.
    shapes_only: whether tensors have no values, in a prediction. There a number that is read is 0, and a comparison is
    true. What is done alike for many samples one after the other may be done for two of them.
    """

    network: Network
    runner: Runner
    num_classes: int
    num_tasks: int
    image_shape: tuple[int, int, int]
    batch_size: int
    buffer_size: int
    replay_size: int
    device: str
    rng: np.random.Generator
    augment: Callable[[Tensor, np.random.Generator], Tensor]
    new_network: Callable[[int], Network]
    pretrained: bool = False
    replay_device: str = ""
    replay_dtype: torch.dtype = torch.uint8
    shapes_only: bool = False

    def __post_init__(self) -> None:
        """Let replay slots lie on the device unless they are put elsewhere."""
        if not self.replay_device:
            object.__setattr__(self, "replay_device", self.device)


DATA = ("tuned", "presets", "lean")
"""Tables of a method's data file."""


class Method:
    """An algorithm that learns a stream of tasks. Subclass it once; override what the algorithm does."""

    name: ClassVar[str]
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"class-il", "task-il"})
    uses_buffer: ClassVar[bool] = False
    """Whether it keeps samples: then a buffer of 0 is refused."""
    joint: ClassVar[bool] = False
    """Whether it trains on all tasks at once, and so is no continual learner."""
    grows_with_tasks: ClassVar[Literal["", "begun", "learnt"]] = ""
    """Whether its state grows with every task that is `begun`, or only `learnt` by at least one step, so that a memory
    measurement must visit all of them; empty when it does not."""
    tuned: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Hyper-parameters by stream name where they differ from the Config's defaults.

    This and the next two may stand as tables in a file NAME.toml beside the module instead."""
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Named settings: `lightcl@released` is `lightcl` with those of its preset `released`."""
    lean: ClassVar[Mapping[str, object]] = {}
    """The smallest exact execution that was found for it and takes under twice the plain step's time, by technique
    (`harness/techniques`)."""
    stage_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that name a stage. Where one names a role (`Network.stage_index`), a run and its result have the stage's
    own name."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Techniques that it cannot be carried out with, and why."""
    checkpointed: ClassVar[tuple[str, ...]] = ()
    """Attributes that change while learning or are declared in `memory_roles`, so that a stopped run can go on where it
    was. Each holds a tensor, a number, a string, None, lists, tuples or dicts of those, or has `state_dict()` and
    `load_state_dict()`."""

    class Config(BaseModel):
        """Typed hyper-parameters. Unknown keys are refused."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        lr: float = Field(0.03, gt=0, description="learning rate of SGD")
        head: Literal["class_il", "task_il"] = Field(
            "class_il", description="cross-entropy over all classes (class_il) or those of the current task (task_il)"
        )

    config: Config

    def __init_subclass__(cls, **arguments: object) -> None:
        """Take `tuned`, `presets` and `lean` from the file NAME.toml beside the class's module, if there is one.

        A table that the file lacks is empty; nothing is inherited then.
        """
        super().__init_subclass__(**arguments)
        data = _data_of(cls)
        for key in data or ():
            if key not in DATA or key in vars(cls):
                why = "stands in the class already" if key in DATA else f"is none of {', '.join(DATA)}"
                raise ValueError(f"{cls.name}.toml has the table {key!r}, which {why}; remove it")
        if data is not None:
            for key in set(DATA) - set(vars(cls)):
                setattr(cls, key, data.get(key, {}))

    def __init__(self, context: MethodContext, config: Config) -> None:
        self.context = context
        self.config = config
        self.network = context.network
        """What the optimizer moves. `before_task` may put another network here."""
        self.trunk: Trunk | None = None

    @property
    def samples_to_store(self) -> int:
        """How many samples must be stored before a step holds all that it will: in a measurement task 0 stores them."""
        return min(self.context.replay_size, self.context.buffer_size)

    def kept_channels(self) -> Mapping[str, Tensor]:
        """Return, by convolution, a bool mask [channels out] of those that are not zero for good; empty without any.

        The others may be removed physically before anything is learnt; then `channels_removed` follows.
        """
        return {}

    def channels_removed(self) -> None:
        """Take note that the network holds nothing but the kept channels from now on."""

    @property
    def trunk_bn(self) -> Literal["eval", "train"] | None:
        """Mode of the batch norms in the trunk that it freezes, from the start or later; None where it freezes none."""
        return None

    def open_weights(self) -> Mapping[str, OpenElements]:
        """Return, by parameter name, masks of convolutions' elements; closed ones are zero between steps.

        The method changes a mask only in `adjust_gradient` of its parameter, so closed elements need not be stored.
        """
        return {}

    def usable_gradient(self, name: str) -> Tensor:
        """Return bool [n]: the elements of a gradient in `open_weights` that can change anything in this step."""
        return self.open_weights()[name].read()

    @property
    def needs_whole_gradients(self) -> bool:
        """Whether gradients can only be adjusted all together, as where `adjust_gradients` is overridden."""
        return type(self).adjust_gradients is not Method.adjust_gradients

    def before_task(self, task: Task) -> None:
        """Prepare for a task (reference features, importance ...)."""

    def terms(self, batch: Batch) -> Iterable[Step]:
        """Say what one batch is learnt by: one optimizer step per yielded list of terms."""
        raise NotImplementedError(f"{type(self).__name__} must define terms(batch)")

    def adjust_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Change `parameter.grad` in place before the optimizer step (penalties, gradient masks)."""

    def adjust_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change the gradients of all parameters that have one. Override only what truly needs them together."""
        for name, parameter in parameters.items():
            self.adjust_gradient(name, parameter)

    def after_step(self, batch: Batch, outputs: list[Outputs]) -> None:
        """Act after the batch's last optimizer step; `outputs` are the detached outputs of all its terms in order."""

    def after_task(self, task: Task) -> None:
        """Consolidate (Fisher, importance, exemplars ...)."""

    def predict(self, images: Tensor, task_id: int | None = None) -> Tensor:
        """Return logits [n, all classes] of float32 images in eval mode; with a graph only where that is measured."""
        return self.context.runner.forward(images).logits

    def memory_roles(self) -> Mapping[str, Iterable[Tensor]]:
        """Declare every tensor kept across steps: keys `replay` and `method_state`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what `checkpointed` names, for a checkpoint."""
        values = {name: getattr(self, name) for name in self.checkpointed}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned in another process."""
        for name, value in state.items():
            holder = getattr(self, name)
            if hasattr(holder, "load_state_dict"):
                holder.load_state_dict(value)
            else:
                setattr(self, name, value)

    def cross_entropy(self, outputs: Outputs, labels: Tensor, classes: range) -> Tensor:
        """Cross-entropy over all classes, or over the slice `classes` when `config.head` is `task_il`."""
        if self.config.head == "class_il":
            return F.cross_entropy(outputs.logits, labels)
        return F.cross_entropy(outputs.logits[:, classes.start : classes.stop], labels - classes.start)

    def cross_entropy_of_both(self, outputs: Outputs, labels: Tensor, replayed: Tensor, classes: range) -> Tensor:
        """Mean cross-entropy of one forward on a batch and replayed samples behind it.

        labels: int64 [b], of the current task, compared as in `cross_entropy`. replayed: int64 [m], compared over all
        classes.
        """
        if self.config.head == "class_il":
            return F.cross_entropy(outputs.logits, torch.cat([labels, replayed]))
        current, old = outputs.logits[: len(labels)], outputs.logits[len(labels) :]
        total = len(labels) * self.cross_entropy(Outputs(current), labels, classes)
        return (total + len(replayed) * F.cross_entropy(old, replayed)) / len(outputs.logits)


def _data_of(cls: type[Method]) -> dict[str, Any] | None:
    module = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if "name" not in vars(cls) or not isinstance(module, str):
        return None
    path = Path(module).with_name(f"{cls.name}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
