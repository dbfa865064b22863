"""How a step is carried out: forward every term, one backward, the optimizer, and no gradient left behind.

A method says what a batch is learnt by; this file is the only one that calls `backward` or an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from harness.errors import ClmemError
from methods.base import Batch, Method, Network, Outputs, Step, Term


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
    """Carries out a method's steps on its network. `attach` it to the method before the first step."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.method: Method
        self.network: Network
        self.optimizer: torch.optim.Optimizer

    def attach(self, method: Method) -> None:
        """Take the method whose steps are carried out, and its network."""
        self.method = method
        hooks = ((cls.adjust_gradient, cls.adjust_gradients) for cls in (type(method), Method))
        self.adjusts = next(hooks) != next(hooks)
        self._take_network()

    def _follow_method(self) -> None:
        """Take the method's network where it has put another one in its place."""
        if self.network is not self.method.network:
            self._take_network()

    def _take_network(self) -> None:
        """Make the optimizer of the method's present network: plain SGD, per-parameter updates."""
        self.network = self.method.network
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=self.method.config.lr, foreach=False)
        self.monitor.attach(self.method, self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the execution."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another process's execution, once the method has its own."""
        self._follow_method()
        self.optimizer.load_state_dict(state["optimizer"])

    def describe(self) -> dict[str, object]:
        """Return the settings that results record."""
        return {"name": "plain", "optimizer": "sgd", "foreach": False}

    def learn(self, batch: Batch) -> Tensor:
        """Learn one batch; return the loss of its last step (scalar, detached).

        Raises ClmemError when the method yields no terms.
        """
        self._follow_method()
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
            self._set_modes(self.network, training=True)
            loss, logits = self._term(term)
            losses.append(loss)
            outputs.append(Outputs(logits))
        total = sum(losses[1:], start=losses[0])
        total.backward()  # type: ignore[no-untyped-call]
        self.monitor.scan()
        if self.adjusts:
            parameters = self.network.named_parameters()
            self.method.adjust_gradients({name: value for name, value in parameters if value.grad is not None})
            self.monitor.scan()
        self.optimizer.step()
        self.monitor.scan()
        self.optimizer.zero_grad(set_to_none=True)
        return total.detach()

    def _term(self, term: Term) -> tuple[Tensor, Tensor]:
        """Return (loss with its graph, detached logits) of one term, in the modes that are set."""
        self.monitor.inputs(term.images, *term.targets)
        with Watch(self.network, term.watch) as maps:
            logits = self._run(self.network, term.images)
        loss = term.loss(Outputs(logits, maps), *term.targets)
        maps.clear()  # from here on only the graph keeps them
        return loss, logits.detach()

    def _run(self, network: Network, images: Tensor) -> Tensor:
        trunk = self.method.trunk
        if trunk is None:
            return network.run(images)
        with torch.no_grad():
            features = network.run(images, stop=trunk.boundary)
        return network.run(features, start=trunk.boundary)

    def forward(
        self,
        images: Tensor,
        *,
        watch: tuple[str, ...] = (),
        bn: Literal["eval", "train"] = "eval",
        network: Network | None = None,
        graph: bool = False,
    ) -> Outputs:
        """Run the network without learning; see `methods.base.Executor`. A trunk frozen in eval mode stays in it."""
        network = network or self.method.network
        self._set_modes(network, training=bn == "train")
        untouched = _running_statistics_untouched(network)
        with torch.set_grad_enabled(graph), Watch(network, watch) as maps, untouched:
            logits = self._run(network, images)
        return Outputs(logits, maps)

    def gradients(self, term: Term, *, bn: Literal["eval", "train"] = "eval") -> dict[str, Tensor]:
        """Run one term forward and backward without a step; see `methods.base.Executor`."""
        self._follow_method()
        network = self.network
        self._set_modes(network, training=bn == "train")
        with _running_statistics_untouched(network):
            loss, _ = self._term(term)
        loss.backward()  # type: ignore[no-untyped-call]
        self.monitor.scan()
        gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
        network.zero_grad(set_to_none=True)
        return gradients

    def _set_modes(self, network: Network, training: bool) -> None:
        network.train(training)
        trunk = self.method.trunk
        if trunk is not None:
            for module in network.stage_modules(trunk.boundary):
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
