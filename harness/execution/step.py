"""How a step is carried out: forward every term, the backward, the optimizer, and no gradient left behind.

A method says what a batch is learnt by; nothing outside of this folder calls `backward` or an optimizer.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Monitor
from clmem.harness.execution.watch import Watch, rows_of
from clmem.harness.specs.techniques import PLAIN
from clmem.harness.techniques.parts.batch_norm import running_statistics_untouched
from clmem.harness.techniques.parts.in_backward import InBackward
from clmem.harness.techniques.parts.offload import Offload
from clmem.harness.techniques.parts.segments import run_segmented
from clmem.harness.techniques.parts.slices import in_slices
from clmem.harness.techniques.parts.stored import OpenWeight, RoundedWeight, round_trunk, store_open
from clmem.harness.techniques.registry import Techniques
from clmem.methods.base import Batch, Method, Network, Outputs, Step, Term


class StepRunner:
    """Carries out a method's steps on its network. `attach` it to the method before the first step.

    techniques: what of lean execution is in use. kept: the channels that stay when others are removed, where the method
    cannot tell from weights without values.
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
        """Take the method whose steps are carried out, and its network.

        Raises ValueError, saying why, for a technique that would change what this method computes.
        """
        self.method = method
        own, none = ((cls.adjust_gradient, cls.adjust_gradients) for cls in (type(method), Method))
        self.adjusts = own != none
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

    def _follow_method(self) -> None:
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
        self._follow_method()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def describe(self) -> dict[str, object]:
        """Return the settings that results record."""
        changed = self.techniques.changed()
        exact = {} if self.techniques.is_exact else {"exact": False}
        return {"name": "changed" if changed else PLAIN, "optimizer": "sgd", "foreach": False, **exact, **changed}

    def learn(self, batch: Batch) -> Tensor:
        """Learn one batch; return the loss of its last step (scalar, detached).

        Raises ClmemError when the method yields no terms.
        """
        self._follow_method()
        outputs: list[Outputs] = []
        loss: Tensor | None = None
        for terms in self.method.terms(batch):
            self.monitor.scan()  # what the method's own code keeps from here on, such as a reference gradient
            with Offload() if self.techniques.offload else nullcontext():
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
        size = self.techniques.micro_batch
        groups = [[term] for term in terms] if size or self.techniques.backward == "termwise" else [terms]
        total: Tensor | None = None
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            if size and len(group[0].images) > size:
                loss = self._learn_in_slices(group[0], size, outputs, last)
            else:
                loss = self._forward(group, outputs)
                self._backward([loss], [None], last)
            total = loss.detach() if total is None else total + loss.detach()
            del loss
        assert total is not None
        self._apply_gradients()
        return total

    def _backward(self, tensors: list[Tensor], gradients: Sequence[Tensor | None], last: bool) -> None:
        """Let gradients arrive; last: they are whole then."""
        arriving = (
            nullcontext() if self.in_backward is None else self.in_backward.arrive("whole" if last else "partial")
        )
        with arriving:
            torch.autograd.backward(tensors, gradients)
        self.monitor.scan()

    def _learn_in_slices(self, term: Term, size: int, outputs: list[Outputs], last: bool) -> Tensor:
        """Bring a term's gradients with the activations of `size` images at a time; return its loss, detached.

        Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021):
        a forward without a graph gives the outputs, the loss their gradients, and each slice is run again with a graph.
        """
        self.monitor.inputs(term.images, *term.targets)
        with torch.no_grad(), running_statistics_untouched(self.network):
            seen = [self._outputs(part, term.watch) for part in torch.split(term.images, size)]
        names = ("", *term.watch)
        whole = {name: torch.cat([part[name] for part in seen]).requires_grad_() for name in names}
        del seen
        loss = term.loss(Outputs(whole[""], {name: whole[name] for name in term.watch}), *term.targets)
        self._backward([loss], [None], last=False)
        outputs.append(Outputs(whole[""].detach()))
        arrived = {name: tensor.grad for name, tensor in whole.items() if tensor.grad is not None}
        loss = loss.detach()
        del whole
        for start in range(0, len(term.images), size):
            part = slice(start, start + size)
            found = self._outputs(term.images[part], term.watch)
            tensors, gradients = [found[name] for name in arrived], [gradient[part] for gradient in arrived.values()]
            del found
            self._backward(tensors, gradients, last and part.stop >= len(term.images))
            del tensors
        return loss

    def _outputs(self, images: Tensor, watch: tuple[str, ...]) -> dict[str, Tensor]:
        """Return {"": logits} and the watched maps of some images that are learnt."""
        self._set_modes(self.network, training=True)
        with self._watch(self.network, watch) as maps:
            logits = self._run(self.network, [images])
        return {"": logits, **maps}

    def _apply_gradients(self) -> None:
        if self.in_backward is not None:
            self.in_backward.finish()
            self.monitor.scan()
            return
        if self.adjusts:
            parameters = self.network.named_parameters()
            self.method.adjust_gradients({name: value for name, value in parameters if value.grad is not None})
            self.monitor.scan()
        for optimizer in self.optimizers.values():
            optimizer.step()
            self.monitor.scan()
            optimizer.zero_grad(set_to_none=True)

    def _forward(self, terms: Sequence[Term], outputs: list[Outputs]) -> Tensor:
        """Return the sum of the terms' losses with its graph; add their detached outputs to `outputs`."""
        if self.techniques.grouped_bn and len(terms) > 1:
            return self._forward_as_one(terms, outputs)
        losses: list[Tensor] = []
        for term in terms:
            self._set_modes(self.network, training=True)
            loss, logits = self._term(term)
            losses.append(loss)
            outputs.append(Outputs(logits))
        return sum(losses[1:], start=losses[0])

    def _forward_as_one(self, terms: Sequence[Term], outputs: list[Outputs]) -> Tensor:
        sizes = [len(term.images) for term in terms]
        watched = tuple(dict.fromkeys(name for term in terms for name in term.watch))
        self._set_modes(self.network, training=True)
        for term in terms:
            self.monitor.inputs(term.images, *term.targets)
        with self._watch(self.network, watched) as maps:
            logits = self._run(self.network, [term.images for term in terms])
        losses: list[Tensor] = []
        end = 0
        for term, part in zip(terms, torch.split(logits, sizes), strict=True):
            start, end = end, end + len(part)
            seen = {name: rows_of(maps[name], slice(start, end)) for name in term.watch}
            losses.append(term.loss(Outputs(part, seen), *term.targets))
            outputs.append(Outputs(part.detach()))
        maps.clear()
        if watched:  # a gradient reaches every map, so that those of its rows are taken along
            losses.append(logits[:0].sum())
        return sum(losses[1:], start=losses[0])

    def _term(self, term: Term) -> tuple[Tensor, Tensor]:
        """Return (loss with its graph, detached logits) of one term, in the modes that are set."""
        self.monitor.inputs(term.images, *term.targets)
        with self._watch(self.network, term.watch) as maps:
            logits = self._run(self.network, [term.images])
        loss = term.loss(Outputs(logits, maps), *term.targets)
        maps.clear()  # from here on only the graph keeps them
        return loss, logits.detach()

    def _run(self, network: Network, images: Sequence[Tensor]) -> Tensor:
        """Return the float32 logits of some images, one behind the other, in the modes that are set."""
        if self.techniques.autocast == "none":
            return self._run_as_it_is(network, images)
        with torch.autocast(images[0].device.type, getattr(torch, self.techniques.autocast)):
            return self._run_as_it_is(network, images).float()

    def _run_as_it_is(self, network: Network, images: Sequence[Tensor]) -> Tensor:
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
        self._follow_method()
        network = network or self.method.network
        self._set_modes(network, training=bn == "train")
        size = self.techniques.trunk_chunk
        sliced = bool(size) and bn == "eval" and not graph
        parts: list[Outputs] = []
        with torch.set_grad_enabled(graph), running_statistics_untouched(network):
            for part in torch.split(images, size) if sliced else (images,):
                with self._watch(network, watch) as maps:
                    logits = self._run(network, [part])
                parts.append(Outputs(logits, maps))
        if len(parts) == 1:
            return parts[0]
        together = {name: torch.cat([part.maps[name] for part in parts]) for name in watch}
        return Outputs(torch.cat([part.logits for part in parts]), together)

    def gradients(self, term: Term, *, bn: Literal["eval", "train"] = "eval") -> dict[str, Tensor]:
        """Run one term forward and backward without a step; see `clmem.methods.base.Runner`."""
        self._follow_method()
        network = self.network
        self._set_modes(network, training=bn == "train")
        with running_statistics_untouched(network):
            loss, _ = self._term(term)
        loss.backward()  # type: ignore[no-untyped-call]
        self.monitor.scan()
        gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
        network.zero_grad(set_to_none=True)
        return gradients

    def _watch(self, network: Network, names: tuple[str, ...]) -> Watch:
        return Watch(network, names, overwritten=self.techniques.inplace_relu or self.techniques.inplace_sum)

    def _set_modes(self, network: Network, training: bool) -> None:
        network.train(training)
        trunk = self.method.trunk
        if trunk is not None:
            for module in network.stage_modules(trunk.boundary):
                module.train(training and trunk.bn == "train")
