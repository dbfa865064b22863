"""How a step is carried out: forward every term, one backward, the optimizer, and no gradient left behind.

A method says what a batch is learnt by; this file is the only one that calls `backward` or an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from harness.errors import ClmemError
from harness.networks import ResNet18
from methods.base import Batch, Method, Outputs, Step


class Monitor(Protocol):
    """What looks on while a method learns. `Unwatched` does nothing; the memory passes record."""

    def phase(self, name: str, task: int) -> AbstractContextManager[None]:
        """Bracket one phase of one task."""
        ...

    def attach(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        """Tell whose memory it is, once everything is built."""
        ...

    def inputs(self, *tensors: Tensor) -> None:
        """Tell that these tensors are the current batch."""
        ...

    def scan(self) -> None:
        """Look at parameters, gradients, optimizer state and declared state as they are now."""
        ...


class Unwatched:
    """The monitor of an ordinary run."""

    def phase(self, name: str, task: int) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def attach(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing."""

    def inputs(self, *tensors: Tensor) -> None:
        """Do nothing."""

    def scan(self) -> None:
        """Do nothing."""


class Execution:
    """Carries out a method's steps on a network. `attach` it to the method before the first step."""

    def __init__(self, network: ResNet18, monitor: Monitor) -> None:
        self.network = network
        self.monitor = monitor
        self.method: Method
        self.optimizer: torch.optim.Optimizer

    def attach(self, method: Method) -> None:
        """Take the method whose steps are carried out, and make its optimizer: plain SGD, per-parameter updates."""
        self.method = method
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=method.config.lr, foreach=False)
        self.adjusts = type(method).adjust_gradient is not Method.adjust_gradient
        self.monitor.attach(method, self.optimizer)

    def describe(self) -> dict[str, object]:
        """Return the settings that results record."""
        return {"name": "plain", "optimizer": "sgd", "foreach": False}

    def learn(self, batch: Batch) -> Tensor:
        """Learn one batch; return the loss of its last step (scalar, detached).

        Raises ClmemError when the method yields no terms.
        """
        outputs: list[Outputs] = []
        loss: Tensor | None = None
        for terms in self.method.terms(batch):
            loss = self._step(terms, outputs)
            terms.clear()  # the method's generator may still hold the list: its tensors must not outlive the step
        if loss is None:
            raise ClmemError(
                f"method {self.method.name!r} yielded no terms for a batch; terms(batch) must yield at least one"
            )
        self.method.after_step(batch, outputs)
        self.monitor.scan()
        return loss

    def _step(self, terms: Step, outputs: list[Outputs]) -> Tensor:
        losses: list[Tensor] = []
        for term in terms:
            self.monitor.inputs(term.images, *term.targets)
            with Watch(self.network, term.watch) as maps:
                logits = self._training_forward(term.images)
            losses.append(term.loss(Outputs(logits, maps), *term.targets))
            outputs.append(Outputs(logits.detach()))
            maps.clear()  # from here on only the graph keeps them
        total = sum(losses[1:], start=losses[0])
        total.backward()  # type: ignore[no-untyped-call]
        self.monitor.scan()
        if self.adjusts:
            for name, parameter in self.network.named_parameters():
                if parameter.grad is not None:
                    self.method.adjust_gradient(name, parameter)
            self.monitor.scan()
        self.optimizer.step()
        self.monitor.scan()
        self.optimizer.zero_grad(set_to_none=True)
        return total.detach()

    def _training_forward(self, images: Tensor) -> Tensor:
        self._set_modes(training=True)
        trunk = self.method.trunk
        if trunk is None:
            return self.network.run(images)
        with torch.no_grad():
            features = self.network.run(images, stop=trunk.boundary)
        return self.network.run(features, start=trunk.boundary)

    @torch.no_grad()
    def forward(self, images: Tensor, *, watch: tuple[str, ...] = (), bn: Literal["eval", "train"] = "eval") -> Outputs:
        """Run the network without learning; see `methods.base.Executor`. A trunk frozen in eval mode stays in it."""
        self._set_modes(training=bn == "train")
        with Watch(self.network, watch) as maps, _running_statistics_untouched(self.network):
            logits = self.network.run(images)
        return Outputs(logits, maps)

    def _set_modes(self, training: bool) -> None:
        self.network.train(training)
        trunk = self.method.trunk
        if trunk is not None:
            for module in self.network.stage_modules(trunk.boundary):
                module.train(training and trunk.bn == "train")


class Watch:
    """Collects the outputs of the named modules while it is entered: {module name: tensor}."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        self.network, self.names = network, names

    def __enter__(self) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda module, inputs, output: maps.__setitem__(name, output)

        self.handles = [self.network.get_submodule(name).register_forward_hook(keep(name)) for name in self.names]
        return maps

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()


@contextmanager
def _running_statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Let batch norms in train mode normalise by the batch without updating their running statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = norm.track_running_stats and not norm.training
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = norm.running_mean is not None
