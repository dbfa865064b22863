"""Progressive columns: a network that listens, layer by layer, to older ones that it never moves.

A layer is all stages of one name before the dot: `layer2.0` and `layer2.1` are the layer `layer2`. Every layer between
the stem and the head must end in a ReLU that gives its maps, and every such stage be a submodule of its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby, zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clmem.methods.base import Network, layer_of

FIRST_LATERAL = 2
"""Index of the first layer that hears of older columns; the stem is layer 0."""


class Column(Network):
    """Maps images [n, 3, H, W] to logits [n, all classes], by a network of its own and all that older columns know.

        h_i = ReLU(W_i h_{i-1} + U_i ReLU(V_i alpha_i h_{i-1}^{<t} + b_i))     no last ReLU in the head

    W: the layers of `body`. U: those of `adapter`, of which only the ones with laterals are kept; both lose the last
    ReLU of these layers. h^{<t}: the older columns' outputs of the layer before, concatenated over channels, for the
    head averaged over pixels. The older columns must be in eval mode, and stay in it: they are no submodules.
    """

    def __init__(self, older: Sequence[Network], body: Network, adapter: Network) -> None:
        super().__init__()
        self.older = tuple(older)  # which torch does not look into, as it would into a ModuleList
        self.body, self.adapter = body, adapter
        check_layers(body)
        starts = layer_starts(body)
        self.spans = list(zip_longest(starts, starts[1:]))
        _forget(adapter, adapter.stage_modules(starts[FIRST_LATERAL]))
        for network in (body, adapter):
            _forget(network, (_last_relu(network, stop) for _, stop in self.spans[FIRST_LATERAL:] if stop))
        self.laterals = nn.ModuleList(
            Lateral(len(self.older), _channels_in(body, start)) for start in starts[FIRST_LATERAL:]
        )

    @property
    def tail_stage(self) -> str:
        """The one stage there is."""
        return "column"

    def relus_in_place(self) -> None:
        """Let those of its own two networks overwrite their inputs."""
        for network in (self.body, self.adapter):
            network.relus_in_place()

    def sums_in_place(self) -> None:
        """Let those of its own two networks overwrite a term."""
        for network in (self.body, self.adapter):
            network.sums_in_place()

    @property
    def boundaries(self) -> list[str]:
        """One stage: the columns run side by side, so there is nothing to split."""
        return ["column"]

    def stage_modules(self, boundary: str) -> list[nn.Module]:
        """Raise ValueError: a column has no trunk."""
        raise ValueError(f"a progressive column cannot be split at {boundary!r}: it runs side by side with older ones")

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run all columns side by side, layer by layer. Raises ValueError for any `start` or `stop`.

        Of an older column one layer's output lives at a time, and while this column learns also what V is learnt from.
        """
        if start is not None or stop is not None:
            self.stage_modules(str(start or stop))
        return self.run_parts("column", x, _at_once)

    forward = run

    def is_divisible(self, stage: str) -> bool:
        """Return True: its parts are the stages of body and adapter, and the laterals."""
        return True

    def run_parts(self, stage: str, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Run all columns side by side; what learns runs part by part, by `run(function, *inputs)`."""
        maps = [x] * len(self.older)
        *layers, head = range(len(self.spans))
        for index in layers:
            x = self.layer(index, x, maps, run)
            with torch.no_grad():
                for number in reversed(range(len(maps))):  # the oldest last: younger ones need what it overwrites
                    maps[number] = self._older_layer(number, index, maps)
        return self.layer(head, x, maps, run)

    def layer(self, index: int, x: Tensor, older: Sequence[Tensor], run: Callable[..., Tensor] | None = None) -> Tensor:
        """Return this column's output of a layer; x and older: its own and the older columns' of the layer before."""
        run = run or _at_once
        own = _stage_by_stage(self.body, *self.spans[index], x, run)
        if index < FIRST_LATERAL:
            return own
        heard = run(self.laterals[index - FIRST_LATERAL], *older)
        own = own + _stage_by_stage(self.adapter, *self.spans[index], heard, run)
        return own if self.spans[index][1] is None else F.relu(own)

    def _older_layer(self, number: int, index: int, maps: Sequence[Tensor]) -> Tensor:
        """Return an older column's output of a layer, averaged over pixels when the head is next."""
        column, x = self.older[number], maps[number]
        x = column.layer(index, x, maps[:number]) if isinstance(column, Column) else column.run(x, *self.spans[index])
        return x if index + 2 < len(self.spans) else F.adaptive_avg_pool2d(x, 1)


class Lateral(nn.Module):
    """ReLU(V alpha h + b): from older columns' maps, each [n, C, h, w], to one map of as many channels as each has.

    alpha: a scalar, uniform in [0, .1] at first. It scales V, and V takes the maps one by one: the same as scaling and
    concatenating them, but what is saved for the backward are the maps themselves, not two copies.
    """

    def __init__(self, older: int, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(0.1 * torch.rand(()))
        self.reduce = nn.Conv2d(older * channels, channels, 1)

    def forward(self, *maps: Tensor) -> Tensor:
        """Map older columns' maps to what the adapter takes."""
        weights = torch.split(self.alpha * self.reduce.weight, self.reduce.out_channels, dim=1)
        total = F.conv2d(maps[0], weights[0], self.reduce.bias)
        for h, weight in zip(maps[1:], weights[1:], strict=True):
            total += F.conv2d(h, weight)
        return F.relu(total)


def _at_once(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


def _stage_by_stage(network: Network, start: str, stop: str | None, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
    """Run the stages of a layer, from `start` to before `stop`, each by `run(function, x)`."""
    names = network.boundaries
    stages = names[names.index(start) : None if stop is None else names.index(stop)]
    for name, following in zip_longest(stages, stages[1:], fillvalue=stop):
        x = run(partial(network.run, start=name, stop=following), x)
    return x


def layer_starts(network: Network) -> list[str]:
    """Return the first stage of each layer, in order."""
    return [next(stages) for _, stages in groupby(network.boundaries, key=layer_of)]


def check_layers(network: Network) -> None:
    """Raise ValueError for a network whose layers cannot listen to those of another."""
    starts = layer_starts(network)
    ends = [network.boundaries[network.stage_index(start) - 1] for start in starts[FIRST_LATERAL:]]
    silent = [stage for stage in ends if network.closing_relu(stage) is None]
    if not ends or silent:
        where = f"stage {silent[0]!r}" if silent else f"a network of {len(starts)} layers"
        raise ValueError(
            f"a progressive column joins what older ones know before the ReLU that gives a layer's maps, and {where} "
            "has none; use a network of such layers, such as resnet18"
        )


def _last_relu(network: Network, boundary: str) -> nn.Module:
    """Return the last ReLU before a boundary, whose layer must contain one."""
    name = network.closing_relu(network.boundaries[network.stage_index(boundary) - 1])
    assert name is not None, boundary
    return network.get_submodule(name)


def _channels_in(network: Network, stage: str) -> int:
    """Return how many channels a stage takes."""
    modules = network.get_submodule(stage).modules()
    return next(module.weight.shape[1] for module in modules if isinstance(module, nn.Conv2d | nn.Linear))


def _forget(network: Network, modules: Iterable[nn.Module]) -> None:
    """Put the identity in the place of these modules, so that the network neither runs nor holds them."""
    gone = {id(module) for module in modules}
    for name, module in list(network.named_modules()):
        if id(module) in gone:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
