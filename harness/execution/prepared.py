"""A method's network as techniques need it, with its optimizers and storage, and how it runs without learning."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Monitor
from clmem.harness.execution.watch import Watch
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.techniques.parts.batch_norm import running_statistics_untouched
from clmem.harness.techniques.parts.in_backward import InBackward
from clmem.harness.techniques.parts.segments import run_segmented
from clmem.harness.techniques.parts.slices import in_slices
from clmem.harness.techniques.parts.stored import OpenWeight, RoundedWeight, round_trunk, store_open
from clmem.harness.techniques.registry import Techniques
from clmem.methods.base import Method, Network, Outputs, Term


class PreparedNetwork:
    """The network of a method, prepared for the techniques in use. It is the `Runner` that the method is given.

    `attach` it to the method before the first step. kept: the channels that stay when others are removed, where the
    method cannot tell from weights without values.
    """

    def __init__(
        self, monitor: Monitor, techniques: Techniques | None = None, kept: Mapping[str, Tensor] | None = None
    ) -> None:
        self.monitor, self.kept = monitor, kept
        self.techniques = techniques or Techniques()
        self.method: Method
        self.network: Network
        self.optimizers: dict[str, torch.optim.Optimizer]
        self.in_backward: InBackward | None = None
        self.open: dict[str, OpenWeight] = {}
        self.rounded: dict[nn.Module, RoundedWeight] = {}

    def attach(self, method: Method) -> None:
        """Take a method and its network.

        Raises ValueError, saying why, for a technique that would change what this method computes.
        """
        self.method = method
        self.trunk = method.trunk
        self.techniques.refuse(method)
        if self.techniques.storage == "compact":
            self._remove_channels()
        self._take_network()

    def _remove_channels(self) -> None:
        from clmem.harness.techniques.parts.compact import remove_channels

        kept = self.kept or self.method.kept_channels()
        if not kept:
            raise ValueError(
                "storage=compact removes channels that are pruned in all summed branches alike and whose masks are not "
                "held; this method has none"
            )
        remove_channels(self.method.network, kept, self.method.context.image_shape)
        self.method.channels_removed()
        gc.collect()  # the dependency graph and the dense weights lie in cycles, and would stay for a while
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def follow_method(self) -> None:
        """Take the method's network where it has put another one in its place."""
        if self.network is not self.method.network:
            self._take_network()
        if self.trunk is not self.method.trunk:
            self.trunk = self.method.trunk
            self.techniques.refuse(self.method)
            self._round_trunk()

    def _round_trunk(self) -> None:
        """Store the weights of what is frozen now in fewer bits."""
        name = self.techniques.frozen_weights
        if name != "float32":
            boundary = None if self.trunk is None else self.trunk.boundary
            round_trunk(self.rounded, self.network, boundary, getattr(torch, name), self.techniques.conv_slice)

    def _take_network(self) -> None:
        """Make the optimizer of the method's present network: plain SGD, per-parameter updates."""
        if self.in_backward is not None:
            self.in_backward.remove()
        self.network = self.method.network
        self.techniques.prepare(self.network)
        if self.techniques.storage == "sparse":
            method, size = self.method, self.techniques.conv_slice
            self.open = store_open(self.network, method.open_weights(), method.usable_gradient, size)
        self.rounded = {}
        self._round_trunk()
        lr = self.method.config.lr
        if self.techniques.optimizer_in_backward:
            self.optimizers = {
                name: torch.optim.SGD([parameter], lr=lr, foreach=False)
                for name, parameter in self.network.named_parameters()
            }
            self.in_backward = InBackward(self.network, self.optimizers, self.method.adjust_gradient, self.open)
        else:
            self.optimizers = {"": torch.optim.SGD(self.network.parameters(), lr=lr, foreach=False)}
        self.monitor.attach(self.method, list(self.optimizers.values()), self._held)

    def _held(self) -> dict[str, list[Tensor]]:
        """Return what lies in place of whole weights and of whole gradients, by role."""
        stored = [*self.open.values(), *self.rounded.values()]
        pending = [weight.pending for weight in self.open.values() if weight.pending is not None]
        return {"parameters": [tensor for weight in stored for tensor in weight.tensors()], "gradients": pending}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the execution."""
        return {"optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another process's execution, once the method has its own."""
        self.follow_method()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def describe(self) -> dict[str, object]:
        """Return the settings that results record."""
        changed = self.techniques.changed()
        exact = {} if self.techniques.is_exact else {"exact": False}
        return {"name": "changed" if changed else PLAIN, "optimizer": "sgd", "foreach": False, **exact, **changed}

    def forward(
        self,
        images: Tensor,
        *,
        watch: tuple[str, ...] = (),
        bn: Literal["eval", "train"] = "eval",
        network: Network | None = None,
        graph: bool = False,
    ) -> Outputs:
        """Run the network without learning; see `Runner` in `clmem.methods.base`.

        A trunk frozen in eval mode stays in it.
        """
        self.follow_method()
        network = network or self.network
        size = self.techniques.trunk_chunk
        sliced = bool(size) and bn == "eval" and not graph
        parts: list[Outputs] = []
        with torch.set_grad_enabled(graph), running_statistics_untouched(network):
            for part in torch.split(images, size) if sliced else (images,):
                parts.append(Outputs(*self.run([part], watch, training=bn == "train", network=network)))
        if len(parts) == 1:
            return parts[0]
        together = {name: torch.cat([part.maps[name] for part in parts]) for name in watch}
        return Outputs(torch.cat([part.logits for part in parts]), together)

    def gradients(self, term: Term, *, bn: Literal["eval", "train"] = "eval") -> dict[str, Tensor]:
        """Run one term forward and backward without a step; see `clmem.methods.base.Runner`."""
        self.follow_method()
        network = self.network
        with self._gradients_aside(), running_statistics_untouched(network):
            loss, _ = self.run_term(term, training=bn == "train")
            loss.backward()  # type: ignore[no-untyped-call]
            self.monitor.scan()
            return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}

    @contextmanager
    def _gradients_aside(self) -> Iterator[None]:
        """Let a backward add to no gradient that is there already. A step may be under way, which takes it from there.

        Raises ClmemError where a step has moved some parameters already.
        """
        if self.in_backward is not None and self.in_backward.arriving is not None:
            raise ClmemError(
                f"method {self.method.name!r} takes gradients while optimizer_in_backward applies those of a step, so "
                "some parameters have moved and some have not; let its needs_whole_gradients be true"
            )
        kept = [(parameter, parameter.grad) for parameter in self.network.parameters()]
        self.network.zero_grad(set_to_none=True)
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient

    def run_term(self, term: Term, *, training: bool) -> tuple[Tensor, Tensor]:
        """Return (loss with its graph, detached logits) of one term; training: as in `run`."""
        self.monitor.inputs(term.images, *term.targets)
        logits, maps = self.run([term.images], term.watch, training=training)
        loss = term.loss(Outputs(logits, maps), *term.targets)
        maps.clear()  # from here on only the graph keeps them
        return loss, logits.detach()

    def run(
        self, images: Sequence[Tensor], watch: tuple[str, ...], *, training: bool, network: Network | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the float32 logits of some images, one behind the other, and the outputs of the watched modules.

        training: whether the network is in train mode; a frozen trunk is so only where its own mode is. network:
        another one than the method's own.
        """
        network = network or self.network
        self._set_modes(network, training)
        with Watch(network, watch, overwritten=self.techniques.inplace_relu or self.techniques.inplace_sum) as maps:
            if self.techniques.autocast == "none":
                return self._logits(network, images), maps
            with torch.autocast(images[0].device.type, getattr(torch, self.techniques.autocast)):
                return self._logits(network, images).float(), maps

    def _logits(self, network: Network, images: Sequence[Tensor]) -> Tensor:
        trunk = self.method.trunk
        boundary = None if trunk is None else trunk.boundary
        if boundary is None:
            x = images[0] if len(images) == 1 else torch.cat(list(images))
        else:
            with torch.no_grad():
                x = in_slices(lambda part: network.run(part, stop=boundary), images, self.techniques.trunk_chunk)
        if not torch.is_grad_enabled():
            return network.run(x, start=boundary)
        return run_segmented(network, x, boundary, self.techniques.checkpoint, [len(part) for part in images])

    def _set_modes(self, network: Network, training: bool) -> None:
        network.train(training)
        trunk = self.method.trunk
        if trunk is not None:
            for module in network.stage_modules(trunk.boundary):
                module.train(training and trunk.bn == "train")
