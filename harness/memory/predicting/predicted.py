"""Predicts a device's allocations without it: operations on tensors that have shapes and no values.

Every operation is seen as torch dispatches it, on the meta device. What it returns is allocated; what a kernel takes
beside that is in `scratch`, and what torch keeps for cuBLAS in `cublas`. The log has the form of a real allocator's, so
it is joined with roles by the same ledger.

Two things differ from a real run, and are put right here. While operations are watched autograd adds gradients out of
place, which it does in place otherwise. And what is read from a tensor's values must be guessed.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from clmem.harness.memory.ledger.cublas import cublas_workspace_bytes, multiplies
from clmem.harness.memory.ledger.libraries import CUBLAS, CUDNN
from clmem.harness.memory.ledger.log import AllocationLog, Event
from clmem.harness.memory.predicting.scratch import BY_CUDNN, BY_ONEDNN, FIRST, RESULTS, is_guessed
from clmem.harness.memory.watching.observer import address_of

aten = torch.ops.aten
META = torch.device("meta")
HARNESS = f"{Path(__file__).parents[2]}/"
BELOW = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/")
"""Where the files lie that a value is read through: torch's, and those that count memory."""


class ShapeRecorder(TorchDispatchMode):
    """Records what would be allocated on a CPU or on CUDA.

    share_open: what share of a mask's elements is guessed to be open. guessed: lines of a method or network that read a
    number, or compared one, and got a guess. channels_last: whether a convolution read maps laid out so, whose copies
    are not known. unseen: shapes of convolutions, forward and backward, that the assumed card was never seen to do.
    """

    def __init__(self, kind: Literal["cpu", "cuda"] = "cpu", share_open: float = 0.5) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share_open = share_open
        self.guessed: dict[str, None] = {}
        self.channels_last = False
        self.unseen: set[tuple[tuple[int, ...], ...]] = set()
        self._cuda = kind == "cuda"
        self._multiplied: set[bool] = set()
        self._events: list[Event] = []
        self._marks: dict[int, int] = {}
        self._live: dict[int, int] = {}
        self._scratch: list[tuple[int, int]] = []
        self._total = self._scratches = 0
        self._running = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and shielding from the compiler would import it: seconds

    def start(self) -> None:
        """Begin recording."""
        self._running = True
        self._resize: Any = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resized()  # type: ignore[method-assign,assignment]
        self.__enter__()  # type: ignore[no-untyped-call]

    def mark(self) -> int:
        """Set a mark and return its number. After `stop` it lies at the end of the log."""
        number = len(self._marks)
        if self._running:
            self._marks[number] = len(self._events)
        return number

    def stop(self) -> AllocationLog:
        """End recording and return the log."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        self._running = False
        self._marks[len(self._marks)] = len(self._events)
        return AllocationLog(self._events, self._marks)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation on shapes, and log what it would allocate and release."""
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        on_meta = any(isinstance(argument, Tensor) and argument.device == META for argument in args)
        if func is aten.add.Tensor and _adds_in_place(*args[:2]):
            return args[0]
        if func in DRAWS and (on_meta or isinstance(args[0], Parameter)):
            return args[0]
        known = RULES.get(func) if on_meta else None
        result = func(*args, **kwargs) if known is None else known(self, *args, **kwargs)
        if func is aten._to_copy.default and not self._cuda and _stays(args[0], result):
            self._freed(address_of(args[0].untyped_storage()))  # on a CPU it is there already
        if func is aten.convolution.default and on_meta and not args[0].is_contiguous():
            self.channels_last = self.channels_last or args[0].is_contiguous(memory_format=torch.channels_last)
        scratch = BY_CUDNN if self._cuda else BY_ONEDNN
        for size in scratch[func](*args, **kwargs) if on_meta and func in scratch else (RESULTS,):
            if isinstance(size, int):
                self._change(CUDNN if self._cuda else name, size)
            else:
                self._returned(name, (args, kwargs), result[0] if size == FIRST else result)
        if self._cuda and on_meta and is_guessed(func, args):
            self.unseen.add(tuple(tuple(tensor.shape) for tensor in _tensors(args)))
        if self._cuda and on_meta and multiplies(name):
            self._multiplies()
        return result

    def _multiplies(self) -> None:
        """Log a cuBLAS workspace at the first product of each thread: a backward on CUDA has a thread of its own."""
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward not in self._multiplied:
            self._multiplied.add(in_backward)
            self._change(CUBLAS, cublas_workspace_bytes())

    def _returned(self, name: str, arguments: Any, result: Any) -> None:
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.device == META or (not self._cuda and not _is_among(storage, arguments)):
                self._born(storage, name)

    def _change(self, name: str, size: int) -> None:
        """Log scratch: allocated (+) or, of that size, released (-)."""
        if size > 0:
            self._scratches += 1
            self._scratch.append((-self._scratches, size))
            self._log(-self._scratches, size, name)
        else:
            address = next(address for address, held in self._scratch if held == -size)
            self._scratch.remove((address, -size))
            self._log(address, size, name)

    def _born(self, storage: torch.UntypedStorage, name: str) -> None:
        key = address_of(storage)
        if key not in self._live and storage.nbytes():
            self._live[key] = storage.nbytes()
            self._log(key, storage.nbytes(), name)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        size = self._live.pop(key, 0)
        if size and self._running:
            self._log(key, -size, "")

    def _log(self, address: int, size: int, name: str) -> None:
        self._total += size
        self._events.append(Event(len(self._events), address, size, self._total, name))

    def _resized(self) -> Callable[[torch.UntypedStorage, int], Any]:
        """Return a storage's `resize_` that is logged: torch does not dispatch it."""
        original = self._resize

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            self._freed(address_of(storage))
            result = original(storage, size)
            self._born(storage, "resize_")
            return result

        return resize


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _stays(tensor: Tensor, moved: Tensor) -> bool:
    """Say whether a tensor would not be copied if the device that stands for the CPU were the CPU."""
    return tensor.device.type == "cpu" and moved.device == META and tensor.dtype == moved.dtype


def _is_among(storage: torch.UntypedStorage, arguments: Any) -> bool:
    """Say whether a storage was handed in: what came from numpy was not allocated by torch, and is met first so."""
    return any(tensor.untyped_storage()._cdata == storage._cdata for tensor in _tensors(arguments))


def _adds_in_place(one: Any, other: Any) -> bool:
    """Tell whether autograd adds one gradient to another in place: no derivative here adds two equal shapes itself.

    A view holds its base, so autograd does not write into it: the first two gradients of a linear weight, which come
    transposed, are added out of place.
    """
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.shape == other.shape
        and not one._is_view()
        and torch._C._current_graph_task_id() != -1
        and not torch.is_grad_enabled()
    )


def _number(recorder: ShapeRecorder, tensor: Tensor) -> bool | float | int:
    line = _line_that_reads()
    if line is not None:
        recorder.guessed[line] = None
    return True if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


def _line_that_reads() -> str | None:
    """Return "file:line" of what reads a value, unless it is clmem's harness."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(BELOW):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or frame.f_code.co_filename.startswith(HARNESS):
        return None
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _positions(recorder: ShapeRecorder, tensor: Tensor) -> Tensor:
    return torch.empty((round(tensor.numel() * recorder.share_open), tensor.ndim), dtype=torch.int64, device=META)


def _selected(recorder: ShapeRecorder, tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.new_empty(round(tensor.numel() * recorder.share_open))


def _batch_norm(
    recorder: ShapeRecorder, x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any
) -> tuple[Tensor, ...]:
    channels = x.shape[1] if training else 0
    return torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)


def _batch_norm_backward(
    recorder: ShapeRecorder, grad: Tensor, x: Tensor, weight: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    wanted = rest[-1]
    sizes = (x.shape, (x.shape[1],), (x.shape[1],))
    return tuple(x.new_empty(size) if want else None for size, want in zip(sizes, wanted, strict=True))


def _like_first(recorder: ShapeRecorder, x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _in_place(func: Any) -> Callable[..., Tensor]:
    """Return a rule for an operation that changes its first argument: torch still refuses shapes that do not fit."""

    def rule(recorder: ShapeRecorder, x: Tensor, other: Any) -> Tensor:
        fits = not isinstance(other, Tensor) or other.shape == x.shape
        return x if fits else func(x, other)

    return rule


DRAWS = {aten.uniform_.default, aten.normal_.default}
"""Left out: torch takes longer for them than for all else, and initial weights need no values, on the host neither."""
RULES: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _number,
    aten.nonzero.default: _positions,
    aten.masked_select.default: _selected,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.relu.default: _like_first,
    aten.threshold_backward.default: _like_first,
    aten.abs.default: _like_first,
    aten.__lshift__.Scalar: _like_first,
    aten.__rshift__.Scalar: _like_first,
    aten.bitwise_and_.Scalar: _in_place(aten.bitwise_and_.Scalar),
    aten.bitwise_or_.Tensor: _in_place(aten.bitwise_or_.Tensor),
}
"""What is taken for the result of operations that read values, and of those that torch takes long to find it out for:
half of a prediction was their formulas in Python."""
