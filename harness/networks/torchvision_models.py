"""Any classification model of torchvision by name, split into the stages that its own modules form.

torch.fx says in which order a model's modules run. A stage begins at each module with weights of a convolution or a
linear layer, and goes on with all that follows up to the next: batch norms, activations, pools. A model must be a
chain: each module takes what the one before it gives, and nothing else.

Dropout and stochastic depth are left out: they draw from torch's global generator, which would make a segment that is
computed again another one. Sums and activations are carried out as torchvision wrote them, mostly in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from math import prod
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from clmem.harness.errors import UsageError, blame
from clmem.harness.networks.architecture import Architecture, Family
from clmem.harness.networks.staged import StagedNetwork, Stages

T = TypeVar("T")

REFERENCE_SHAPE = (2, 3, 224, 224)
"""Images on which a model's maps are compared: those that torchvision's weights were trained on."""

RANDOM = (nn.modules.dropout._DropoutNd, torchvision.ops.StochasticDepth)
"""Modules that draw while they learn."""

WITHOUT_AUXILIARY = ("googlenet", "inception_v3")
"""Models whose further heads are left out, as they give no logits."""


@dataclass(frozen=True)
class Operation:
    """One node of a model's graph: a module by its name, a function, or a method of the tensor.

    arguments, keywords: those of the call, `INPUT` standing for what the operation before gave.
    """

    kind: str
    target: Any
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


INPUT = object()


@dataclass(frozen=True)
class Chain:
    """A model's operations by stage, and its ReLUs that give maps of features and run once."""

    stages: Stages
    operations: tuple[tuple[Operation, ...], ...]
    feature_relus: tuple[str, ...]


class TorchvisionNetwork(StagedNetwork):
    """A model of torchvision as a chain of stages; its parameters keep their names."""

    def __init__(self, model: nn.Module, chain: Chain) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self.stages, self.chain = chain.stages, chain

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run the stages from `start` (included) to `stop` (excluded); None is the beginning and the end."""
        first = 0 if start is None else self.stage_index(start)
        last = len(self.stages.names) if stop is None else self.stage_index(stop)
        for operations in self.chain.operations[first:last]:
            for operation in operations:
                x = self._carry_out(operation, x)
        return x

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Return the modules that lie before `boundary`."""
        before = self.chain.operations[: self.stage_index(boundary)]
        names = [operation.target for stage in before for operation in stage if operation.kind == "call_module"]
        return [self.get_submodule(name) for name in names]

    @property
    def feature_relus(self) -> list[str]:
        """Names of the ReLUs that run once and give maps, in order."""
        return list(self.chain.feature_relus)

    def _carry_out(self, operation: Operation, x: Tensor) -> Tensor:
        arguments = [x if argument is INPUT else argument for argument in operation.arguments]
        keywords = {key: x if value is INPUT else value for key, value in operation.keywords}
        if operation.kind == "call_module":
            result: Tensor = self.get_submodule(operation.target)(*arguments, **keywords)
        elif operation.kind == "call_method":
            result = getattr(arguments[0], operation.target)(*arguments[1:], **keywords)
        else:
            result = operation.target(*arguments, **keywords)
        return result


class _Stages(fx.Tracer):
    """Looks into plain containers alone: every other module is one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) not in (nn.Sequential, nn.ModuleList)


class _Counting(TorchFunctionMode):
    """Keeps on the CPU what a RegNet reckons its channels with, because tensors on `meta` have no values.

    Modules make their parameters and buffers with a `device` of their own.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.arange, torch.tensor) and "device" not in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _model(name: str, num_classes: int) -> nn.Module:
    keywords: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in WITHOUT_AUXILIARY else {}
    with _Counting():
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **keywords)
    for module in list(model.modules()):
        for child, inner in module.named_children():
            if isinstance(inner, RANDOM):
                setattr(module, child, nn.Identity())
    return model


@cache
def _names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


@cache
def _chain(name: str) -> Chain:
    """Return how a model is split. Raises UsageError for one that is no chain."""
    try:
        return _unseen(partial(_split, name))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"network 'torchvision:{name}' cannot be split into stages ({blame(error)}); choose another model"
        ) from error


def _unseen(work: Callable[[], T]) -> T:
    """Return what some work on tensors without values gives, of which no recorder of this thread hears."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _split(name: str) -> Chain:
    with torch.device("meta"):
        model = _model(name, 2)
    nodes = list(_Stages().trace(model).nodes)
    steps = nodes[1:-1]
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before]:
            raise UsageError(
                f"network 'torchvision:{name}' is no chain of stages, because {node.name} takes more than "
                f"{before.name} gives; choose another model"
            )
    targets = [node.target for node in steps if node.op == "call_module"]
    if len(set(targets)) < len(targets):
        raise UsageError(f"network 'torchvision:{name}' runs a module more than once; choose another model")
    names: list[str] = []
    operations: list[list[Operation]] = [[]]
    for node in steps:
        if node.op == "call_module" and _has_weights(model.get_submodule(str(node.target))):
            if names:
                operations.append([])
            names.append(str(node.target))
        operations[-1].append(_operation(node))
    stages = tuple(tuple(each) for each in operations)
    tail, relus = _looked_at(model, names, stages)
    return Chain(Stages(tuple(names), tail), stages, relus)


def _has_weights(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Conv2d | nn.Linear) for inner in module.modules())


def _operation(node: fx.Node) -> Operation:
    arguments = tuple(INPUT if isinstance(value, fx.Node) else value for value in node.args)
    keywords = tuple((key, INPUT if isinstance(value, fx.Node) else value) for key, value in node.kwargs.items())
    return Operation(node.op, node.target, arguments, keywords)


def _looked_at(
    model: nn.Module, names: list[str], operations: tuple[tuple[Operation, ...], ...]
) -> tuple[str, tuple[str, ...]]:
    """Return the first stage that works on the smallest maps, and the ReLUs that give features and run once.

    A map of one pixel gives no features but weighs channels, and what has another number of samples is no sample's.
    """
    sizes: dict[str, int] = {}
    relus: Counter[str] = Counter()
    maps: set[str] = set()

    def look(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if name in names and output.ndim == 4:
                # channels come first or last, and are more than pixels of a side where maps are small
                sizes[name] = prod(sorted(output.shape[1:])[:2])
            if isinstance(module, nn.ReLU | nn.ReLU6):
                relus[name] += 1
                is_map = output.ndim == 4 and output[0, 0].numel() > 1
                if len(output) == REFERENCE_SHAPE[0] and (is_map or output.ndim == 2):
                    maps.add(name)

        return seen

    for name, module in model.named_modules():
        module.register_forward_hook(look(name))
    model.eval()(torch.empty(REFERENCE_SHAPE, device="meta"))
    inner = [name for name in names[1:-1] if name in sizes] or names[1:]
    tail = min(inner, key=lambda name: sizes.get(name, 0))
    return tail, tuple(name for name in relus if relus[name] == 1 and name in maps)


@cache
def _check_images(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raise UsageError for images that a model cannot take."""

    def forward() -> None:
        with torch.device("meta"):
            _model(name, 2).eval()(torch.empty(1, *image_shape))

    try:
        _unseen(forward)
    except Exception as error:
        shape = " x ".join(map(str, image_shape))
        raise UsageError(
            f"network 'torchvision:{name}' cannot take images of {shape} ({blame(error)}); give a stream of larger "
            "images, or another network"
        ) from error


def _architecture(name: str) -> Architecture:
    def build(*, num_classes: int, width: int, image_shape: tuple[int, int, int]) -> TorchvisionNetwork:
        _check_images(name, image_shape)
        return TorchvisionNetwork(_model(name, num_classes), _chain(name))

    return Architecture(f"torchvision's {name}", build, _chain(name).stages, scales=False, side_step=32)


MODELS = Family(
    "a classification model of torchvision that is a chain of stages, without dropout",
    _names,
    _architecture,
)
