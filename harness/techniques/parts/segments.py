"""Activation checkpointing: a segment forgets what lies inside it and computes it again when its backward comes.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv 1604.06174). Running statistics of batch norms
are updated by the forward alone. Nothing random happens inside a network, so no generator's state is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clmem.harness.techniques.parts.batch_norm import grouped, running_statistics_untouched
from clmem.harness.techniques.steps import Segments
from clmem.methods.base import Network, layer_of

Span = tuple[str | None, str | None]
"""A stage and the one before which a segment ends; None is the beginning or the end of the network."""


LEVELS: dict[Segments, tuple[str, ...]] = {
    "none": (),
    "block": ("block",),
    "stage": ("stage",),
    "nested": ("stage", "block"),
    "convolution": ("block", "convolution"),
    "deep": ("stage", "block", "convolution"),
}
"""What is forgotten, from the outside in: a segment of an inner level lies within one of the level before it."""


def run_segmented(network: Network, x: Tensor, start: str | None, segments: Segments, groups: Sequence[int]) -> Tensor:
    """Run a network from a boundary to its end, [n, ...] to logits, keeping only what lies between segments.

    groups: how many of the n samples belong to each term, where batch norms take statistics of each term's own. A
    network of one stage is run part by part.
    """
    spans: list[Span] = [(start, None)] if segments == "none" else _spans(network, start)
    return _run(network, x, spans, LEVELS[segments], groups)


def _spans(network: Network, start: str | None) -> list[Span]:
    names = network.boundaries
    if start is not None:
        names = names[network.stage_index(start) :]
    return list(zip(names, [*names[1:], None], strict=True))


def _run(network: Network, x: Tensor, spans: list[Span], levels: tuple[str, ...], groups: Sequence[int]) -> Tensor:
    """Run some stages, the segments of the first level forgetting what lies inside them."""
    if not levels:
        # entered here, so that a segment that is computed again is grouped again
        with grouped(network, groups):
            return network.run(x, start=spans[0][0], stop=spans[-1][1])
    only = network.boundaries[0]
    if len(network.boundaries) == 1 and network.is_divisible(only):  # whichever segments are asked for
        return network.run_parts(only, x, partial(_forgetting, network, groups))
    level, *inner = levels
    if level == "convolution":
        with_groups = partial(_forgetting, network, groups)
        return network.run_parts(str(spans[0][0]), x, with_groups)
    parts = [[span] for span in spans]
    if level == "stage":
        parts = [list(layer) for _, layer in groupby(spans, key=lambda span: layer_of(str(span[0])))]
    for part in parts:
        # a part that the next level would not divide is forgotten once, not twice
        deeper = (
            tuple(inner) if len(part) > 1 or ("convolution" in inner and network.is_divisible(str(part[0][0]))) else ()
        )
        x = _forgetting(network, (), partial(_run, network, spans=part, levels=deeper, groups=groups), x)
    return x


def _forgetting(network: Network, groups: Sequence[int], function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_untouched(network)

    def run(*inputs: Tensor) -> Tensor:
        with grouped(network, groups):
            return function(*inputs)

    result: Tensor = checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)
    return result
