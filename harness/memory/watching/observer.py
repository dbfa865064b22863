"""Records which role each tensor has, by plain hooks: no dispatch mode, so what is measured is what runs.

`PhaseMarker` brackets phases and touches nothing (truth pass). `Observer` also looks at tensors (attribution pass):
gradients as they are accumulated, tensors as autograd saves and releases them, and the declared state at scans.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Held
from clmem.harness.memory.ledger.claims import KEPT_ROLES, rank
from clmem.harness.memory.ledger.join import Observation, PhaseSpan, Records, Saved
from clmem.methods.base import Method


class Recorder(Protocol):
    """Sets marks in an allocator's log."""

    def mark(self) -> int:
        """Set a mark and return its number."""
        ...


PATIENCE_S = 60.0


def collect() -> None:
    """Collect cyclic garbage, for certain: `gc.collect` does nothing while another thread is in the middle of it.

    Raises ClmemError when that other thread does not come to an end, as one whose finalizer waits for ever.
    """
    me, done, patience = threading.get_ident(), False, time.monotonic() + PATIENCE_S

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal done
        done = done or (phase == "stop" and threading.get_ident() == me)

    gc.callbacks.append(note)
    try:
        while not done:
            gc.collect()
            if not done and time.monotonic() > patience:
                raise ClmemError(
                    f"another thread has been collecting garbage for {PATIENCE_S:g} s; memory would differ"
                )
            if not done:
                time.sleep(0.001)
    finally:
        gc.callbacks.remove(note)


class PhaseMarker:
    """Marks where phases begin and end, and collects garbage between them so that passes do not differ by chance."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.records = Records()
        gc.collect()
        gc.freeze()  # what the imports made is never garbage: later collections need not look at it

    @contextmanager
    def phase(self, name: str, task: int) -> Iterator[None]:
        """Bracket one phase of one task. Cyclic garbage is collected before it, never inside it."""
        collect()
        gc.disable()
        start = self.recorder.mark()
        self._phase_begins()
        try:
            yield
        finally:
            gc.enable()
            self.records.phases.append(PhaseSpan(task, name, start, self.recorder.mark()))

    def finish(self) -> None:
        """Look once more at what the last phase left behind."""
        collect()
        self.records.end = self.recorder.mark()
        self._phase_begins()

    def _phase_begins(self) -> None:
        """Look at what lives between phases."""

    def attach(self, method: Method, optimizers: list[torch.optim.Optimizer], held: Held) -> None:
        """Do nothing."""

    def inputs(self, *tensors: Tensor) -> None:
        """Do nothing."""

    def scan(self) -> None:
        """Do nothing."""


class Observer(PhaseMarker):
    """Records roles. Use it for the attribution pass, with `watching()` around the whole run.

    device: the type of device whose memory is counted; declared tensors elsewhere are summed up in `records.elsewhere`.
    None counts all of them. annotate: is told of every tensor and its role.
    """

    def __init__(
        self, recorder: Recorder, device: str | None = None, annotate: Callable[[Tensor, str], None] | None = None
    ) -> None:
        super().__init__(recorder)
        self._device = device
        self._activations_elsewhere = 0
        self._annotate = annotate
        self._state: Held = dict
        self._hooked: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._in_forward = False

    def attach(self, method: Method, optimizers: list[torch.optim.Optimizer], held: Held) -> None:
        """Read parameters, buffers, optimizer state, declared state and what execution holds from now on."""
        self.attach_state(lambda: _method_state(method, optimizers, held))

    def attach_state(self, state: Held) -> None:
        """Read {role: tensors} from this function at every scan."""
        self._state = state

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe everything autograd saves, also through pairs of hooks that others push (checkpointing, offload)."""
        with _others_report_too(self), saved_tensors_hooks(self._pack, _Handle.unpack):
            yield

    def inputs(self, *tensors: Tensor) -> None:
        """Record the current batch (or a drawn replay batch)."""
        self._observe((("input", tensor) for tensor in tensors), self.recorder.mark())

    def scan(self) -> None:
        """Record every tensor that has a role now, gradients included."""
        self._scan({role: list(tensors) for role, tensors in self._state().items()})

    def _scan(self, state: Mapping[str, list[Tensor]]) -> None:
        for parameter in state.get("parameters", ()):
            if parameter.requires_grad and parameter not in self._hooked:
                self._hooked[parameter] = True
                _hook_first(parameter, self._gradient_ready)
        mark = self.recorder.mark()
        self._observe(((role, tensor) for role, tensors in state.items() for tensor in tensors), mark)
        gradients = (p.grad for p in state.get("parameters", ()) if p.grad is not None)
        self._observe((("gradients", gradient) for gradient in gradients), mark)

    def _phase_begins(self) -> None:
        state = {role: list(tensors) for role, tensors in self._state().items()}
        self._scan(state)
        here: dict[int, tuple[str, int]] = {}
        elsewhere: dict[int, tuple[str, int]] = {}
        for role, tensors in state.items():
            for storage in _storages(tensors):
                sizes = here if self._counts(storage) else elsewhere
                known = sizes.get(address_of(storage))
                if known is None or rank(role) < rank(known[0]):
                    sizes[address_of(storage)] = (role, storage.nbytes())
        declared = dict.fromkeys(KEPT_ROLES, 0)
        for role, nbytes in here.values():
            declared[role] += nbytes
        self.records.declared.append((self.recorder.mark(), declared))
        for role in {role for role, _ in elsewhere.values()}:
            nbytes = sum(size for known, size in elsewhere.values() if known == role)
            self.records.elsewhere[role] = max(nbytes, self.records.elsewhere.get(role, 0))

    def _saved_elsewhere(self, tensor: Tensor) -> None:
        """Follow what autograd's hooks moved to another device, until they let go of it."""
        nbytes = sum(storage.nbytes() for storage in _storages((tensor,)) if not self._counts(storage))
        if nbytes:
            self._activations_elsewhere += nbytes
            known = self.records.elsewhere.get("activations", 0)
            self.records.elsewhere["activations"] = max(known, self._activations_elsewhere)
            weakref.finalize(tensor, self._released_elsewhere, nbytes)

    def _released_elsewhere(self, nbytes: int) -> None:
        self._activations_elsewhere -= nbytes

    def _counts(self, storage: torch.UntypedStorage) -> bool:
        return self._device is None or storage.device.type == self._device

    def _observe(self, claims: Iterable[tuple[str, Tensor]], mark: int) -> None:
        for role, tensor in claims:
            for storage in filter(self._counts, _storages((tensor,))):
                self.records.observations.append(Observation(mark, address_of(storage), storage.nbytes(), role))
                if self._annotate is not None:
                    self._annotate(tensor, role)

    def _gradient_ready(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._observe((("gradients", parameter.grad),), self.recorder.mark())

    def _pack(self, tensor: Tensor) -> _Handle:
        self._in_forward = True
        return _Handle(self, tensor)

    def reads_saved(self) -> None:
        """Record that autograd reads what it saved: the first time after it saved anything, a backward began."""
        if self._in_forward:
            self._in_forward = False
            self.records.backwards.append(self.recorder.mark())

    def saves(self, *tensors: Tensor) -> list[Saved]:
        """Record tensors that are kept for backward from now on, until they are freed; return the new records."""
        mark = self.recorder.mark()
        records = [
            Saved(mark, None, address_of(storage), storage.nbytes())
            for storage in filter(self._counts, _storages(tensors))
        ]
        for tensor in tensors:
            self._saved_elsewhere(tensor)
        self.records.saved += records
        return records


class _Handle:
    """Holds a saved tensor for autograd; its own end is the instant at which autograd lets go of the tensor."""

    __slots__ = ("_observer", "_records", "_tensor")

    def __init__(self, observer: Observer, tensor: Tensor) -> None:
        self._observer = observer
        self._records = observer.saves(tensor)
        self._tensor = tensor.detach()

    def __del__(self) -> None:
        end = self._observer.recorder.mark()
        for record in self._records:
            record.end = end

    def unpack(self) -> Tensor:
        self._observer.reads_saved()
        return self._tensor


def _hook_first(parameter: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Register a post-accumulate hook before those already there: an optimizer's in backward drops the gradient."""
    handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    hooks = parameter._post_accumulate_grad_hooks
    others = {key: hooks[key] for key in hooks if key != handle.id}
    hooks.clear()  # torch calls them in the order of the dictionary itself, which move_to_end would not change
    hooks.update({handle.id: hook, **others})


def _owners_unknown(storage: Any) -> int:
    raise ClmemError(
        "this build of torch cannot tell who keeps a tensor that other saved-tensor hooks pack (checkpointing, "
        "save_on_cpu); use a newer torch to attribute a method that checkpoints"
    )


@contextmanager
def _others_report_too(observer: Observer) -> Iterator[None]:
    """Let every pair of saved-tensor hooks made by others report what it keeps.

    Only the innermost pair fires, so activations recomputed under checkpointing or moved by `save_on_cpu` would be
    invisible. A tensor counts as kept when packing it left one more owner of its storage behind, or returned it.
    """
    original = saved_tensors_hooks.__init__
    owners_of: Callable[[Any], int] = getattr(torch._C, "_storage_Use_Count", _owners_unknown)

    def init(self: saved_tensors_hooks, pack_hook: Callable[..., Any], unpack_hook: Callable[..., Any]) -> None:
        def pack(tensor: Tensor) -> Any:
            storage = tensor.untyped_storage()
            owners = owners_of(storage._cdata)
            packed = None
            try:
                packed = pack_hook(tensor)
            finally:  # checkpointing stops its recomputation by raising once it kept the last tensor
                kept = [tensor] if owners_of(storage._cdata) > owners else []
                observer.saves(*kept, *_tensors_in(packed))
            return packed

        ours = getattr(pack_hook, "__self__", None) is observer
        original(self, pack_hook if ours else pack, unpack_hook)

    saved_tensors_hooks.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        saved_tensors_hooks.__init__ = original  # type: ignore[method-assign]


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, tuple | list) else []


def _storages(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Yield each tensor's storage; views give the storage they look into."""
    for tensor in tensors:
        for part in _strided(tensor):
            storage = part.untyped_storage()
            if storage.nbytes():
                yield storage


def address_of(storage: torch.UntypedStorage) -> int:
    """Return where a storage lies; of one without values, a number that no other has while it lives."""
    return storage.data_ptr() or storage._cdata


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return what a tensor is stored in: itself, or the indices and values of a sparse one."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    return (tensor,)


def _method_state(method: Method, optimizers: list[torch.optim.Optimizer], held: Held) -> dict[str, list[Tensor]]:
    state: dict[str, list[Tensor]] = {
        "parameters": list(method.network.parameters()),
        "module_buffers": list(method.network.buffers()),
        "optimizer": [
            value
            for optimizer in optimizers
            for values in optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ],
    }
    for role, tensors in method.memory_roles().items():
        if role not in ("replay", "method_state"):
            raise ClmemError(
                f"memory_roles() of {method.name!r} names the role {role!r}; it may declare replay and method_state"
            )
        state[role] = list(tensors)
    for role, tensors in held().items():
        state[role] = [*state.get(role, ()), *tensors]
    return state
