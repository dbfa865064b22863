"""What kernels take beside what they return: oneDNN's blocked copies on the CPU, cuDNN's workspaces on CUDA.

Each rule yields, for one operation, the sizes that come (+) and go (-), and where its results are allocated.

What cuDNN takes depends on the card, on its release and torch's way of asking, and on the shape. The rules are those of
the one card whose allocator's history we have (`tests/harness/memory/recorded`): ResNet-18 at 224 x 224, batch 8, with
float32 values. There an unstrided 3x3 convolution takes what Winograd's algorithms need (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016): the transformed weight alone, in 3x3 tiles, for the output
and for the gradient of the input; the transforms of weight and both maps, in 4x4 tiles, for the gradient of the weight.
All others take a copy of their weight for the output and for its gradient, and nothing for the gradient of the input.

In that history these are within 2 % from 1 MiB on, and exact for the gradients of unstrided weights; tables of up to 75
KiB are left out, and three small strided ones do without. What it does not have is a guess: unstrided 1x1 convolutions,
3x3 ones of three channels, other batches, float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from clmem.harness.memory.predicting.cards import Card
from clmem.harness.results.environment import vectors as vectors_here

aten = torch.ops.aten
Size = int | Literal["results", "first"]
"""Bytes that come or go; or the results are allocated here, all that are left of them or the first."""
RESULTS: Literal["results"] = "results"
FIRST: Literal["first"] = "first"
NARROW = 8
"""Channels in a block of oneDNN's where a vector of the processor holds no more, or its kernels want no more."""
STEM_CHANNELS = 4
"""For the gradient of a weight, images of fewer channels are read without a blocked copy."""
MANY_IMAGES = 16
"""From as many on an unstrided convolution of 1x1 is oneDNN's; below, it is a product of matrices, without copies."""
SMALL_IMAGE = 20480
"""A single image of up to as many values is unfolded into columns instead (torch's `use_mkldnn`)."""
ALIGNED = 128
"""Bytes on top of a buffer of oneDNN's, to align it."""
_assumed: ContextVar[tuple[str | None] | None] = ContextVar("assumed", default=None)
"""The vectors that are assumed instead of this machine's; a processor that is none of x86 has None."""
_card: ContextVar[Card | None] = ContextVar("card", default=None)
"""The card whose choices of algorithms are predicted."""
FUSED_TILE, TILE = 3, 4
"""Sides of Winograd's tiles of the output in cuDNN's fused kernels, and in those that keep every transform."""


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], *rest: Any
) -> Iterator[Size]:  # rest: dilation, transposed, output padding, groups
    """Blocked copies of input, weight and output, as oneDNN has them; the plain output is made of the blocked one.

    Channels are blocked by what a vector of the processor holds, and padded to whole blocks; an input with fewer is
    read as it is.
    """
    sizes = zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    out = prod((size + 2 * pad - kernel) // step + 1 for size, pad, kernel, step in sizes)
    if rest[-1] > 1:
        result = len(x) * _padded(weight.shape[0], _group_block(weight)) * out * x.element_size()
        yield from (*_grouped(x, weight, out, result), RESULTS, -result)
        return
    if _is_product(x, weight, stride, padding):
        yield RESULTS
        return
    if _unfolds(x, weight):
        columns = prod(weight.shape[1:]) * out * x.element_size()
        yield from (columns, RESULTS, -columns)
        return
    block = vector_width()
    pointwise = set(weight.shape[2:]) == {1}
    blocks_input = pointwise or x.shape[1] >= block
    copies = [_gathered(x, out, block)] if pointwise and set(stride) != {1} else []
    copies += [_blocked(x, block, 1)] if blocks_input else []
    copies.append(_blocked(weight, block, 0, *([1] if blocks_input else [])))
    result = len(x) * _padded(weight.shape[0], block) * out * x.element_size()
    yield from (*copies, result, *(-size for size in copies))
    yield RESULTS
    yield -result


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: list[int], padding: list[int], *rest: Any
) -> Iterator[Size]:
    """Blocked copies again: first for the gradient of the input, which then stays, then for that of the weight."""
    need_x, need_weight, _ = rest[-1]
    if rest[-2] > 1:
        yield from _grouped_backward(grad, x, weight, stride, rest[-2], need_x, need_weight)
        return
    if _is_product(x, weight, stride, padding):
        yield RESULTS
        return
    if _unfolds(x, weight):
        columns = prod(weight.shape[1:]) * prod(grad.shape[2:]) * x.element_size()
        yield from (RESULTS, columns, -columns)
        return
    block = vector_width()
    if need_x and set(stride) == {1}:
        copies, result = [_blocked(grad, block, 1), _blocked(weight, block, 0, 1)], _blocked(x, block, 1)
        yield from (*copies, result, *(-size for size in copies), x.nbytes, -result)
    elif need_x:  # by another kernel, whose result is copied twice
        yield from _copied_twice(grad, x, _blocked(weight, block, 1))
    if need_weight:
        pointwise = set(weight.shape[2:]) == {1}
        stem = not pointwise and x.shape[1] < STEM_CHANNELS
        block = block if stem or pointwise or x.shape[1] >= block else NARROW
        copies = [_blocked(grad, block, 1)] + ([] if stem else [_blocked(x, block, 1)])
        found = _blocked(weight, block, 0, *([] if stem else [1]))
        gathered = [_gathered(x, prod(grad.shape[2:]), block)] if pointwise and set(stride) != {1} else []
        yield from (*copies, found, *gathered, *(-size for size in gathered), *(-size for size in copies))
    if need_x:
        yield -x.nbytes
    yield RESULTS
    if need_weight:
        yield -found


def _copied_twice(grad: Tensor, x: Tensor, blocked_weight: int) -> Iterator[Size]:
    """A strided gradient of the input by oneDNN's kernel for it, whose result is copied twice and then stays."""
    copies = [grad.nbytes, blocked_weight]
    yield from (*copies, x.nbytes, *(-size for size in copies), x.nbytes, x.nbytes, -x.nbytes, -x.nbytes)


def _grouped(read: Tensor, weight: Tensor, out: int, result: int) -> Iterator[Size]:
    """Blocked copies for the output of groups of channels or for the gradient of their input, which then stays.

    read: what is blocked beside the weight. out: pixels of the output. result: bytes of what stays.
    """
    if weight.shape[1] % NARROW and not _is_depthwise(weight) and vector_width() == NARROW:
        columns = _columns(weight, out) + ALIGNED
        yield from (result, columns, -columns)
        return
    block = _group_block(weight)
    copies = [_blocked(read, block, 1), _blocked(weight, block, 0)]
    yield from (*copies, result, *(-size for size in reversed(copies)))


def _grouped_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], groups: int, need_x: bool, need_weight: bool
) -> Iterator[Size]:
    """As without groups; kernels of blocks do depthwise weights of 3x3 alone, and groups of whole blocks.

    Other gradients of weights are products of matrices: beside the columns four copies of the weight, as one thread
    needs them. Strided groups that no vector holds have buffers of up to 70 KB more, which are left out.
    """
    block, out, width = _group_block(weight), prod(grad.shape[2:]), vector_width()
    found = 0
    if need_x and set(stride) != {1} and max(weight.shape[0] // groups, weight.shape[1]) > width:
        yield from _copied_twice(grad, x, _blocked(weight, width, 1))
    elif need_x:
        result = _blocked(x, block, 1)
        yield from (*_grouped(grad, weight, out, result), x.nbytes, -result)
    if need_weight and (weight.shape[2:] == (3, 3) if _is_depthwise(weight) else weight.shape[1] % NARROW == 0):
        copies, found = [_blocked(grad, block, 1), _blocked(x, block, 1)], _blocked(weight, block, 0)
        yield from (*copies, found, *(-size for size in reversed(copies)))
    elif need_weight:
        found = weight.nbytes
        columns = 4 * weight.nbytes + _columns(weight, out) + 2 * ALIGNED
        yield from (found, columns, -columns)
    if need_x:
        yield -x.nbytes
    yield RESULTS
    if found:
        yield -found


def _is_depthwise(weight: Tensor) -> bool:
    """Tell whether each group of channels is a single one."""
    return weight.shape[1] == 1


def _group_block(weight: Tensor) -> int:
    """Return how many channels of grouped maps are padded to a whole: those of a vector, if groups are single ones."""
    return vector_width() if _is_depthwise(weight) else 1


def _columns(weight: Tensor, out: int) -> int:
    """Return the bytes of the columns that one group of an image's channels is unfolded into."""
    return prod(weight.shape[1:]) * out * weight.element_size()


@contextmanager
def assuming_vectors(vectors: str | None) -> Iterator[None]:
    """Predict for a processor with these vectors, as `environment.vectors` names them, instead of for this machine."""
    token = _assumed.set((vectors,))
    try:
        yield
    finally:
        _assumed.reset(token)


@contextmanager
def assuming_card(card: Card | None) -> Iterator[None]:
    """Predict for a card whose choices are known, shape by shape; by rules where they are not, or for None."""
    token = _card.set(card)
    try:
        yield
    finally:
        _card.reset(token)


def vector_width() -> int:
    """Return how many float32 a vector of the processor holds, as oneDNN is allowed to use it."""
    assumed = _assumed.get()
    vectors = vectors_here() if assumed is None else assumed[0]
    return 16 if vectors == "AVX512" else NARROW


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block


def _blocked(tensor: Tensor, block: int, *dimensions: int) -> int:
    """Return a tensor's bytes with some dimensions padded to whole blocks."""
    sizes = (_padded(size, block) if number in dimensions else size for number, size in enumerate(tensor.shape))
    return prod(sizes) * tensor.element_size()


def _batch_norm_backward_scratch(grad: Tensor, x: Tensor, *rest: Any) -> Iterator[Size]:
    """One more map beside the gradient of the input, where both maps are contiguous."""
    yield RESULTS
    if rest[-1][0] and grad.is_contiguous() and x.is_contiguous():
        yield from (x.nbytes, -x.nbytes)


def _unfolds(x: Tensor, weight: Tensor) -> bool:
    return len(x) == 1 and x.numel() <= SMALL_IMAGE and max(weight.shape[2:]) <= 3


def _gathered(x: Tensor, out: int, block: int) -> int:
    """Return what a strided convolution of 1x1 gathers the pixels of an image into."""
    return _padded(x.shape[1], block) * out * x.element_size() + ALIGNED


def _is_product(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> bool:
    """Tell whether a convolution of 1x1 is a product of matrices, an image being its own columns."""
    return len(x) < MANY_IMAGES and set(weight.shape[2:]) == {1} == set(stride) and not any(padding)


def _cudnn_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Iterator[Size]:
    taken = _taken(x, weight, *how)
    yield from (RESULTS, *_comes_and_goes(_by_rule(x, weight, *how)[0] if taken is None else taken[0]))


def _cudnn_convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *how: Any) -> Iterator[Size]:
    """First the gradient of the input, then that of the weight, each with its own workspace."""
    need_x, need_weight, _ = how[-1]
    _, of_x, of_weight = _taken(x, weight, *how) or _by_rule(x, weight, *how, out=grad.shape[2:])
    if need_x:
        yield FIRST
        yield from _comes_and_goes(of_x)
    yield RESULTS
    if need_weight:
        yield from _comes_and_goes(of_weight)


def _comes_and_goes(workspace: int) -> Iterator[Size]:
    if workspace:
        yield from (workspace, -workspace)


def _taken(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], transposed: bool,
    output_padding: Any, groups: int, *rest: Any,
) -> tuple[int, int, int] | None:  # fmt: skip
    """Return what the assumed card took for a convolution of this shape, None where nobody has seen that."""
    card, kernel = _card.get(), weight.shape[2]
    known = card is not None and groups == 1 and not transposed and set(dilation) == {1}
    squares = (x.shape[2:], weight.shape[2:], stride, padding)
    if not known or any(len(set(sides)) > 1 for sides in squares) or padding[0] != kernel // 2:
        return None
    assert card is not None
    kind = str(x.dtype).removeprefix("torch.")
    return card.workspaces.get((len(x), x.shape[1], len(weight), kernel, stride[0], x.shape[2], kind))


def assumed_card() -> Card | None:
    """Return the card whose choices of algorithms are predicted."""
    return _card.get()


def is_guessed(func: Any, args: Any) -> bool:
    """Say whether an operation is a convolution of which the assumed card was never seen to do the like."""
    if _card.get() is None or func not in BY_CUDNN:
        return False
    at = 0 if func is aten.convolution.default else 1
    return _taken(args[at], args[at + 1], *args[at + 3 :]) is None


def _by_rule(x: Tensor, weight: Tensor, *how: Any, out: Sequence[int] = ()) -> tuple[int, int, int]:
    """Return what the rules say of the forward, of the gradient of the input, and of that of the weight.

    out: sides of the output, for the last one.
    """
    if not _is_winograd(weight, *how):
        return weight.nbytes, 0, weight.nbytes
    tiles = len(x) * prod(-(-size // TILE) for size in out)
    maps = (x.shape[1] + len(weight)) * tiles * (TILE + 2) ** 2 * x.element_size()
    transformed = _transformed(weight, FUSED_TILE)
    return transformed, transformed, _transformed(weight, TILE) + maps


def _is_winograd(
    weight: Tensor, stride: list[int], padding: Any, dilation: list[int], transposed: bool, output_padding: Any,
    groups: int, *rest: Any,
) -> bool:  # fmt: skip
    plain = set(stride) == {1} == set(dilation) and not transposed and groups == 1
    return plain and tuple(weight.shape[2:]) == (3, 3) and weight.dtype == torch.float32


def _transformed(weight: Tensor, tile: int) -> int:
    """Return the bytes of a 3x3 weight transformed for tiles of the output."""
    return prod(weight.shape[:2]) * (tile + 2) ** 2 * weight.element_size()


BY_ONEDNN: dict[Any, Callable[..., Iterable[Size]]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.native_batch_norm_backward.default: _batch_norm_backward_scratch,
}
BY_CUDNN: dict[Any, Callable[..., Iterable[Size]]] = {
    aten.convolution.default: _cudnn_convolution,
    aten.convolution_backward.default: _cudnn_convolution_backward,
}
"""By library, the operations whose kernels take more than they return."""
