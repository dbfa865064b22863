"""Small training steps that have fooled memory tools, each recorded twice: nothing instrumented, and observed.

Run as a program: `python scenarios.py [NAME...]` prints one JSON object {name: recording}. The allocator's total counts
from the first profiled allocation of a process, so every pass is a process of its own: a fork of one that has imported
torch and has never profiled, run a parallel region or built a tensor. The ledger itself checks that this is valid: a
total that did not begin at zero contradicts the running sum and raises LedgerError.

`python scenarios.py resident` records nothing: it prints what the operating system saw of `resnet_standard`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the profiler imports it at its first start: once here instead of once in every child
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from clmem.harness.errors import LedgerError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.memory.ledger.join import join, phase_peaks
from clmem.harness.memory.system.process import high_water_bytes, reset_high_water, resident_bytes
from clmem.harness.memory.watching.observer import Observer, PhaseMarker
from clmem.harness.memory.watching.recorder import LogRecorder
from clmem.harness.networks.registry import build_network

BATCH, WIDTH = 96, 256
MAP = 4 * BATCH * WIDTH
"""Bytes of one feature map [BATCH, WIDTH]; different from every weight."""
WEIGHT = 4 * WIDTH * WIDTH
"""Bytes of one square weight."""


SCENARIOS: list[str] = []


def scenario(function: Callable[[Pass], None]) -> Callable[[Pass], None]:
    """Record this function by default."""
    SCENARIOS.append(function.__name__)
    return function


class Pass:
    """One pass over a scenario, observed or not.

    facts: numbers that the test wants beside the ledger. held: what a scenario keeps until the recording has ended.
    """

    def __init__(self, observed: bool, with_stacks: bool) -> None:
        self.recorder = LogRecorder(with_stacks=with_stacks)
        self.observer = Observer(self.recorder) if observed else None
        self.monitor: PhaseMarker = self.observer or PhaseMarker(self.recorder)
        self.facts: dict[str, Any] = {}
        self.held: Any = None

    def attach(self, state: Callable[[], Mapping[str, Iterable[Tensor]]]) -> None:
        if self.observer is not None:
            self.observer.attach_state(state)

    def step(self, name: str = "step", task: int = 0) -> AbstractContextManager[None]:
        return self.monitor.phase(name, task)

    def batch(self) -> Tensor:
        """Make a batch of one feature map and tell that it is the input."""
        images = torch.randn(BATCH, WIDTH)
        self.monitor.inputs(images)
        return images

    def run(self, function: Callable[[Pass], None]) -> dict[str, Any]:
        self.recorder.start()
        with self.observer.watching() if self.observer is not None else nullcontext():
            function(self)
            self.monitor.finish()
        log = self.recorder.stop()
        records = self.monitor.records
        self.held = None
        result: dict[str, Any] = {"facts": self.facts, "peaks": phase_peaks(log, records.phases)}
        if self.observer is not None:
            try:
                ledger = join(log, records)
            except LedgerError as error:
                return {**result, "error": str(error)}
            result["footprint"] = ledger.footprint.model_dump()
            result["undeclared"] = [
                {"phase": item.phase, "role": item.role, "bytes": item.block.size_bytes, "op": item.block.event.op}
                for item in ledger.undeclared
            ]
            result["held"] = list(ledger.footprint.held_into_backward.items())
        result["sites"] = sorted({event.site for event in log.events if event.site and event.size_bytes > 0})
        return result


def chain(layers: int, inplace: bool = False) -> nn.Sequential:
    """Make `layers` times (Linear without bias, ReLU). Each saves its ReLU's output; the next one saves the same."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(inplace)]
    return nn.Sequential(*modules)


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer | None = None, **more: Iterable[Tensor]) -> Any:
    """Return the function that an Observer reads."""

    def state() -> dict[str, Iterable[Tensor]]:
        slots = [] if optimizer is None else [v for s in optimizer.state.values() for v in s.values()]
        return {
            "parameters": list(network.parameters()),
            "module_buffers": list(network.buffers()),
            "optimizer": [value for value in slots if isinstance(value, Tensor)],
            **more,
        }

    return state


def drop_gradients(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = None


@scenario
def one_forward(this: Pass) -> None:
    network = chain(2)
    this.attach(state_of(network))
    with this.step():
        network(this.batch()).sum().backward()
        drop_gradients(network)


@scenario
def two_forwards(this: Pass) -> None:
    network = chain(2)
    this.attach(state_of(network))
    with this.step():
        (network(this.batch()).sum() + network(this.batch()).sum()).backward()
        drop_gradients(network)


@scenario
def teacher(this: Pass) -> None:
    network, old = chain(2), chain(2)
    this.attach(state_of(network, method_state=list(old.parameters())))
    with this.step():
        images = this.batch()
        with torch.no_grad():
            target = old(images)
        F.mse_loss(network(images), target).backward()
        drop_gradients(network)
        del images, target


@scenario
def replay_view(this: Pass) -> None:
    network, stored = chain(2), torch.randn(10 * BATCH, WIDTH)
    this.attach(state_of(network, replay=[stored]))
    with this.step():
        network(stored[BATCH : 2 * BATCH]).sum().backward()
        drop_gradients(network)


class Stash(torch.autograd.Function):
    """Keeps a tensor on `ctx` directly, where autograd's hooks cannot see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.doubled = x * 2
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.doubled


@scenario
def stashed_on_ctx(this: Pass) -> None:
    network = chain(2)
    this.attach(state_of(network))
    with this.step():
        Stash.apply(network(this.batch())).sum().backward()
        drop_gradients(network)


def _adam(this: Pass, foreach: bool) -> None:
    network = chain(4)
    optimizer = torch.optim.Adam(network.parameters(), foreach=foreach)
    this.attach(state_of(network, optimizer))
    for name in ("first_step", "step"):
        with this.step(name):
            images = torch.randn(1, WIDTH)
            this.monitor.inputs(images)
            network(images).sum().backward()
            optimizer.step()
            this.monitor.scan()
            optimizer.zero_grad()
            del images


@scenario
def adam_single(this: Pass) -> None:
    _adam(this, foreach=False)


@scenario
def adam_foreach(this: Pass) -> None:
    _adam(this, foreach=True)


def _convolutions(this: Pass, memory_format: torch.memory_format) -> None:
    network = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ).to(memory_format=memory_format)
    this.attach(state_of(network))
    with this.step():
        images = torch.randn(8, 16, 32, 32).to(memory_format=memory_format)
        this.monitor.inputs(images)
        network(images).sum().backward()
        drop_gradients(network)
        del images


@scenario
def convolutions(this: Pass) -> None:
    _convolutions(this, torch.contiguous_format)


@scenario
def convolutions_channels_last(this: Pass) -> None:
    _convolutions(this, torch.channels_last)


@scenario
def fan_out(this: Pass) -> None:
    trunk, branches = chain(1), nn.ModuleList(chain(1) for _ in range(4))
    network = nn.ModuleList([trunk, branches])
    this.attach(state_of(network))
    with this.step():
        shared = trunk(this.batch())
        loss = torch.stack([branch(shared).sum() for branch in branches]).sum()
        del shared
        loss.backward()
        drop_gradients(network)
        del loss


@scenario
def relu_in_place(this: Pass) -> None:
    network = chain(2, inplace=True)
    this.attach(state_of(network))
    with this.step():
        network(this.batch()).sum().backward()
        drop_gradients(network)


@scenario
def gradient_accumulation(this: Pass) -> None:
    network = chain(4)
    this.attach(state_of(network))
    with this.step():
        for _ in range(2):
            network(this.batch()).sum().backward()
            this.monitor.scan()
        drop_gradients(network)


def _blocks(this: Pass, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    blocks = nn.ModuleList(chain(3) for _ in range(3))
    this.attach(state_of(blocks))
    with this.step():
        x = this.batch()
        for block in blocks:
            x = forward(block, x)
        loss = x.sum()
        del x
        loss.backward()
        drop_gradients(blocks)
        del loss


@scenario
def not_checkpointed(this: Pass) -> None:
    _blocks(this, lambda block, x: block(x))


@scenario
def checkpointed(this: Pass) -> None:
    _blocks(this, lambda block, x: checkpoint(block, x, use_reentrant=False))


@scenario
def checkpointed_reentrant(this: Pass) -> None:
    _blocks(this, lambda block, x: checkpoint(block, x if x.requires_grad else x.requires_grad_(), use_reentrant=True))


@scenario
def saved_on_cpu(this: Pass) -> None:
    def forward(block: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return block(x)

    _blocks(this, forward)


@scenario
def frozen_trunk(this: Pass) -> None:
    trunk, tail = chain(4).requires_grad_(False), chain(2)
    network = nn.ModuleList([trunk, tail])
    this.attach(state_of(network))
    with this.step():
        with torch.no_grad():
            features = trunk(this.batch())
        loss = tail(features).sum()
        del features
        loss.backward()
        this.monitor.scan()
        drop_gradients(network)
        del loss


@scenario
def frozen_after_trainable(this: Pass) -> None:
    network = nn.Sequential(chain(1), *(nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False) for _ in range(3)))
    this.attach(state_of(network))
    with this.step():
        network(this.batch()).sum().backward()
        this.monitor.scan()
        drop_gradients(network)


class Masked(nn.Module):
    """A linear layer whose weight is multiplied by a mask held as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.register_buffer("mask", torch.ones(WIDTH, WIDTH, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask)


@scenario
def mask_buffer(this: Pass) -> None:
    network = Masked()
    this.attach(state_of(network))
    for name in ("first_step", "step"):
        with this.step(name):
            network(this.batch()).sum().backward()
            drop_gradients(network)


def _pruned(this: Pass, declare: bool) -> None:
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    prune.custom_from_mask(layer, "weight", torch.ones(WIDTH, WIDTH))
    held = (lambda: {"method_state": [layer.weight]}) if declare else dict
    this.attach(lambda: {**state_of(layer)(), **held()})
    for name in ("first_step", "step"):
        with this.step(name):
            layer(this.batch()).sum().backward()
            this.monitor.scan()
            drop_gradients(layer)


@scenario
def pruned(this: Pass) -> None:
    _pruned(this, declare=False)


@scenario
def pruned_declared(this: Pass) -> None:
    _pruned(this, declare=True)


@scenario
def optimizer_in_backward(this: Pass) -> None:
    network = chain(6)

    def apply(parameter: Tensor) -> None:
        with torch.no_grad():
            parameter.add_(parameter.grad, alpha=-0.1)  # type: ignore[arg-type]
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(apply)
    this.attach(state_of(network))
    with this.step():
        network(this.batch()).sum().backward()


@scenario
def gradient_by_hand(this: Pass) -> None:
    network = chain(2)
    this.attach(state_of(network))
    with this.step():
        network(this.batch()).sum().backward()
        for parameter in network.parameters():
            parameter.grad = parameter.grad * 0.5  # type: ignore[operator]
        this.monitor.scan()
        held = torch.zeros(64, WIDTH, WIDTH)  # makes this the peak, so that it is seen what the gradients are here
        del held
        drop_gradients(network)


@scenario
def gradients_of_gradients(this: Pass) -> None:
    network = chain(2)
    this.attach(state_of(network))
    with this.step():
        gradients = torch.autograd.grad(
            network(this.batch()).square().sum(), list(network.parameters()), create_graph=True
        )
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
        del gradients
        this.monitor.scan()
        drop_gradients(network)


@scenario
def gradients_assigned(this: Pass) -> None:
    network = chain(2)
    this.attach(state_of(network))
    with this.step():
        gradients = torch.autograd.grad(network(this.batch()).sum(), list(network.parameters()))
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        del gradients, gradient
        this.monitor.scan()
        held = torch.zeros(64, WIDTH, WIDTH)
        del held
        drop_gradients(network)


@scenario
def numpy_declared(this: Pass) -> None:
    network, stored = chain(1), torch.from_numpy(np.zeros((7, WIDTH), dtype=np.float32))
    this.attach(state_of(network, replay=[stored]))
    with this.step():
        network(this.batch())


@scenario
def undeclared_list(this: Pass) -> None:
    network = chain(1)
    kept: list[Tensor] = []
    this.attach(state_of(network))
    for _ in range(2):
        with this.step():
            kept.append(network(this.batch()).detach())
    this.held = kept


@scenario
def map_outlives_graph(this: Pass) -> None:
    first, second = chain(1), chain(1)
    network = nn.ModuleList([first, second])
    this.attach(state_of(network))
    with this.step():
        kept = first(this.batch())
        second(kept).sum().backward()
        kept = kept.detach()  # the tensor itself stays, autograd's claim to it is gone
        drop_gradients(network)
        held = torch.zeros(64, WIDTH, WIDTH)
        del held, kept


@scenario
def graph_outlives_recording(this: Pass) -> None:
    network = chain(3)
    this.attach(state_of(network))
    with this.step():
        this.held = network(this.batch()).sum()


@scenario
def sparse_gradient(this: Pass) -> None:
    table = nn.Embedding(100, WIDTH, sparse=True)
    this.attach(state_of(table))
    with this.step():
        rows = torch.arange(BATCH)
        this.monitor.inputs(rows)
        table(rows).sum().backward()
        this.monitor.scan()
        held = torch.zeros(64, WIDTH, WIDTH)
        del held, rows
        drop_gradients(table)


@scenario
def shared_storage(this: Pass) -> None:
    """Tied weights, and one buffer declared twice, through views and under two roles."""
    network = chain(2)
    network[2].weight = network[0].weight
    stored = torch.randn(5 * BATCH, WIDTH)
    this.attach(state_of(network, replay=[stored, stored[3:]], method_state=[stored.view(-1)[:7]]))
    with this.step():
        network(this.batch()).sum().backward()
        drop_gradients(network)


def allocates_here(network: nn.Module, images: Tensor) -> Tensor:
    kept = images * 3  # the line that the site must name
    return network(kept)  # type: ignore[no-any-return]


@scenario
def sites(this: Pass) -> None:
    network = chain(1)
    this.attach(state_of(network))
    this.facts["line"] = allocates_here.__code__.co_firstlineno + 1
    with this.step():
        allocates_here(network, this.batch()).sum().backward()
        drop_gradients(network)


def _resnet_step(this: Pass, threads: int, width: int = 16, batch: int = 16) -> None:
    torch.set_num_threads(threads)
    network = build_network("resnet18", num_classes=10, width=width, seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, foreach=False)
    this.attach(state_of(network, optimizer))
    with this.step():
        images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
        this.monitor.inputs(images, labels)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        del images, labels


@scenario
def resnet_one_thread(this: Pass) -> None:
    _resnet_step(this, 1)


@scenario
def resnet_two_threads(this: Pass) -> None:
    _resnet_step(this, 2)


@scenario
def resnet_one_thread_again(this: Pass) -> None:
    _resnet_step(this, 1)


def resnet_standard(this: Pass) -> None:
    _resnet_step(this, 1, width=64, batch=32)


class Unrecorded(Pass):
    """A pass that nobody looks at."""

    def __init__(self) -> None:
        self.observer, self.monitor, self.facts = None, Unwatched(), {}  # type: ignore[assignment]


def resident() -> dict[str, int]:
    """Return what resident memory grew by during `resnet_standard`, the least of three times.

    The first run loads the libraries and compiles oneDNN's kernels (about 26 MiB that stay); once its tensors are
    dropped, the high-water mark starts again and further runs add tensors only. What glibc's heap still holds of
    the compiling is given back between them, or tensors would lie in it and not be seen: up to 5 MiB where the kernels
    are those of AVX-512. Pages of libraries that are read late, or again after the system took them away, can only add
    to one of the runs.
    """
    resnet_standard(Unrecorded())
    grown = []
    for _ in range(3):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        reset_high_water()
        before = resident_bytes()
        resnet_standard(Unrecorded())
        grown.append(high_water_bytes() - before)
    return {"growth_bytes": min(grown)}


def in_a_child(work: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Fork; yield twice: nothing once the child runs, then what it returned. Two can therefore run at once."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException:
            answer = {"crash": traceback.format_exc()}
        with os.fdopen(writable, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writable)
    yield {}
    with os.fdopen(readable) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    yield json.loads(text) if text else {"crash": f"the child ended with status {status}"}


def record(name: str) -> dict[str, Any]:
    """Return {"truth": ..., "attribution": ...} of one scenario, its two passes side by side."""
    function = globals()[name]
    children = {
        level: in_a_child(lambda observed=observed: Pass(observed, with_stacks=name == "sites").run(function))
        for level, observed in (("truth", False), ("attribution", True))
    }
    for child in children.values():
        next(child)
    return {level: next(child) for level, child in children.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gc.freeze()  # the children collect garbage between phases: not torch's own objects, every time
    if sys.argv[1:] == ["resident"]:
        json.dump(resident(), sys.stdout)
    else:
        json.dump({name: record(name) for name in sys.argv[1:] or SCENARIOS}, sys.stdout)
