"""One learning step: forward every term, the backward, the optimizer, and no gradient left behind.

A method says what a batch is learnt by; nothing outside of this folder calls `backward` or an optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from clmem.harness.errors import ClmemError
from clmem.harness.execution.prepared import PreparedNetwork
from clmem.harness.execution.watch import rows_of
from clmem.harness.techniques.parts.batch_norm import running_statistics_untouched
from clmem.harness.techniques.parts.offload import Offload
from clmem.methods.base import Batch, Method, Outputs, Step, Term


class StepRunner:
    """Takes the learning steps of a method on its network."""

    def __init__(self, prepared: PreparedNetwork) -> None:
        self.prepared, self.monitor, self.techniques = prepared, prepared.monitor, prepared.techniques

    def learn(self, batch: Batch) -> Tensor:
        """Learn one batch; return the loss of its last step (scalar, detached).

        Raises ClmemError when the method yields no terms.
        """
        self.prepared.follow_method()
        method = self.prepared.method
        outputs: list[Outputs] = []
        loss: Tensor | None = None
        for terms in method.terms(batch):
            self.monitor.scan()  # what the method's own code keeps from here on, such as a reference gradient
            with Offload() if self.techniques.offload else nullcontext():
                loss = self._step(terms, outputs)
            terms.clear()  # the method's generator may still hold the list: its tensors must not outlive the step
        if loss is None:
            raise ClmemError(
                f"method {method.name!r} yielded no terms for a batch; terms(batch) must yield at least one"
            )
        method.after_step(batch, outputs)
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
        in_backward = self.prepared.in_backward
        with nullcontext() if in_backward is None else in_backward.arrive("whole" if last else "partial"):
            torch.autograd.backward(tensors, gradients)
        self.monitor.scan()

    def _learn_in_slices(self, term: Term, size: int, outputs: list[Outputs], last: bool) -> Tensor:
        """Bring a term's gradients with the activations of `size` images at a time; return its loss, detached.

        Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021):
        a forward without a graph gives the outputs, the loss their gradients, and each slice is run again with a graph.
        """
        self.monitor.inputs(term.images, *term.targets)
        with torch.no_grad(), running_statistics_untouched(self.prepared.network):
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
        logits, maps = self.prepared.run([images], watch, training=True)
        return {"": logits, **maps}

    def _apply_gradients(self) -> None:
        in_backward, method = self.prepared.in_backward, self.prepared.method
        if in_backward is not None:
            in_backward.finish()
            self.monitor.scan()
            return
        if _adjusts(method):
            parameters = self.prepared.network.named_parameters()
            method.adjust_gradients({name: value for name, value in parameters if value.grad is not None})
            self.monitor.scan()
        for optimizer in self.prepared.optimizers.values():
            optimizer.step()
            self.monitor.scan()
            optimizer.zero_grad(set_to_none=True)

    def _forward(self, terms: Sequence[Term], outputs: list[Outputs]) -> Tensor:
        """Return the sum of the terms' losses with its graph; add their detached outputs to `outputs`."""
        if self.techniques.grouped_bn and len(terms) > 1:
            return self._forward_as_one(terms, outputs)
        losses: list[Tensor] = []
        for term in terms:
            loss, logits = self.prepared.run_term(term, training=True)
            losses.append(loss)
            outputs.append(Outputs(logits))
        return sum(losses[1:], start=losses[0])

    def _forward_as_one(self, terms: Sequence[Term], outputs: list[Outputs]) -> Tensor:
        sizes = [len(term.images) for term in terms]
        watched = tuple(dict.fromkeys(name for term in terms for name in term.watch))
        for term in terms:
            self.monitor.inputs(term.images, *term.targets)
        logits, maps = self.prepared.run([term.images for term in terms], watched, training=True)
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


def _adjusts(method: Method) -> bool:
    own, none = ((cls.adjust_gradient, cls.adjust_gradients) for cls in (type(method), Method))
    return own != none
