"""Pretrained weights: read into a network without ever unpickling, written whole or not at all.

A file is a safetensors file or what torch.save wrote of plain tensors. Unpickling anything else would run whatever code
the file brings, so it is refused. Names may be torchvision's (our own), those of the published LightCL checkpoint
(`layer4_2.0` is our `layer4.1`, `linear` our `fc`) or of the usual CIFAR ResNet (`shortcut` is our `downsample`).
"""

from __future__ import annotations

import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from harness.errors import UsageError
from harness.files import write_bytes

HEAD = "fc."
"""Where the names of the classifier begin."""

SHOWN = 8
"""Names that a message lists; more are counted."""

CONTAINERS = ("state_dict", "model", "net")
"""Under which keys training scripts put the state dict beside other things."""

_RESAVE = "save it again as a plain state dict, torch.save(network.state_dict(), file), or as safetensors"


@dataclass(frozen=True)
class Loaded:
    """What a network took from a weights file; names are the network's.

    names: parameters and buffers that took the file's values. left_out: those that kept their own, each with the
    reason. converted: those that the file stores in another dtype than the network, with the file's dtype.
    metadata: what the file says about itself, empty unless it is safetensors.
    """

    names: tuple[str, ...]
    left_out: Mapping[str, str]
    converted: Mapping[str, str]
    metadata: Mapping[str, str]

    def describe(self) -> str:
        """Return one line about how much was loaded, what was converted and what was left out."""
        parts = [f"{len(self.names)} tensors loaded"]
        for dtype, names in _grouped(self.converted).items():
            parts.append(f"{len(names)} converted from {dtype}")
        for reason, names in _grouped(self.left_out).items():
            parts.append(f"left out {_some(names)} ({reason})")
        return "; ".join(parts)


def load_weights(network: nn.Module, path: str | Path, head: bool = True) -> Loaded:
    """Copy the file's values into the network's parameters and buffers, all that fit or none.

    A head of another number of classes keeps its own values, and without `head` any does, or is missing in the file;
    `num_batches_tracked` may be missing too, and other dtypes are converted. A network on the meta device is checked in
    the same way and nothing is copied. Raises UsageError for a file that is unreadable or needs unpickling, missing or
    further names, other shapes, and values that are not finite.
    """
    path = Path(path).expanduser()
    # Whoever checks settings builds under torch.device("meta"), which would leave the file's tensors without values.
    with torch.device("cpu"):
        tensors, metadata = _read(path)
    own = network.state_dict()
    found = _by_our_names(path, tensors, own, optional=() if head else (HEAD,))
    left_out = {name: "not in the file" for name in own if name not in found}
    left_out.update(_other_head(found, own))
    if not head:
        left_out.update((name, "a method begins with a head of its own") for name in found if name.startswith(HEAD))
    taken = {name: tensor for name, tensor in found.items() if name not in left_out}
    for name, tensor in taken.items():
        _check_shape(path, name, tensor, own[name])
    for name, tensor in taken.items():
        _check_values(path, name, tensor, own[name])
    for name, tensor in taken.items():
        if not own[name].is_meta:
            own[name].copy_(tensor)
    converted = {name: _plain(tensor.dtype) for name, tensor in taken.items() if tensor.dtype != own[name].dtype}
    return Loaded(tuple(taken), left_out, converted, metadata)


def save_weights(network: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write parameters and buffers as safetensors, whole or not at all, and return the path.

    Equal values and metadata give equal bytes. Raises UsageError when the file cannot be written.
    """
    path = Path(path).expanduser()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_bytes(path, _in_order(save(tensors, dict(metadata))))
    except OSError as error:
        raise UsageError(f"cannot write the weights file {path}: {error.strerror}; give another path") from error


def _in_order(content: bytes) -> bytes:
    """Sort the metadata in a safetensors file, which the package writes in an order that differs from call to call."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors by its own names, and its metadata."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UsageError(f"cannot read the weights file {path}: {error.strerror}; give the path of a file") from error
    if path.suffix == ".safetensors" or start[8:] == b"{":
        try:
            # Not the default, memory-mapped: torch enters mapped files in its allocator's log with a wrong total.
            with safe_open(path, framework="pt", device="cpu", backend="pread") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        except SafetensorError as error:
            raise _broken(path, error) from error
    return _state_dict(path, _read_torch(path, start)), {}


def _read_torch(path: Path, start: bytes) -> object:
    """Return what torch.save wrote, if it is made of tensors, numbers, text and containers of those."""
    # These two never reach torch.load, which before 2.6 hands them to readers that weights_only does not bind.
    if start.startswith(b"PK\x03\x04"):
        if _is_torchscript(path):
            raise UsageError(f"{path} holds a TorchScript program, which clmem does not run: {_RESAVE}")
    elif tarfile.is_tarfile(path):
        raise UsageError(f"{path} has torch's oldest format, a tar of pickles, which clmem does not open: {_RESAVE}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        known = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds Python objects ({known[1]})" if known else "is damaged or holds Python objects"
        raise UsageError(
            f"{path} {what} and not only tensors; reading those would run whatever code the file brings, "
            f"so clmem refuses: {_RESAVE}"
        ) from error
    except Exception as error:  # the reader raises whatever the bytes make it stumble over
        raise _broken(path, error) from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UsageError:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return UsageError(
        f"{path} is no whole weights file, neither safetensors nor torch.save's ({reason}); copy or download it again"
    )


def _state_dict(path: Path, value: Any) -> dict[str, Tensor]:
    """Return the tensors by name, unwrapped from what training scripts save around them."""
    for _ in range(1 + len(CONTAINERS)):
        if not isinstance(value, Mapping):
            break
        if value and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
            return {name: tensor.detach() for name, tensor in value.items()}
        inner = [value[key] for key in CONTAINERS if isinstance(value.get(key), Mapping)]
        if not inner:
            break
        value = inner[0]
    what = f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        what += f" with the keys {_some([str(key) for key in value])}" if value else " with nothing in it"
    raise UsageError(f"{path} holds no state dict of named tensors, but {what}: {_RESAVE}")


def _our_name(name: str) -> str:
    """Translate a name of another ResNet-18 into torchvision's."""
    name = re.sub(r"^layer(\d+)_(\d+)\.0\.", lambda match: f"layer{match[1]}.{int(match[2]) - 1}.", name)
    return re.sub(r"^linear\.", HEAD, name).replace(".shortcut.", ".downsample.")


def _by_our_names(
    path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], optional: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the file's tensors by the network's names, in the network's order.

    optional: how the names begin of what may be missing.
    """
    origins: dict[str, str] = {}
    for theirs in tensors:
        bare = theirs.removeprefix("module.")
        ours = bare if bare in own else _our_name(bare)
        if ours in origins:
            raise UsageError(
                f"{path} holds {ours} twice, as {origins[ours]} and as {theirs}; keep one of them: {_RESAVE}"
            )
        origins[ours] = theirs
    needed = (name for name in own if not name.startswith(optional) and not name.endswith(".num_batches_tracked"))
    missing = [name for name in needed if name not in origins]
    extra = [theirs for ours, theirs in origins.items() if ours not in own]
    faults = [
        f"{verb} {len(names)} {'name' if len(names) == 1 else 'names'} ({_some(names)})"
        for verb, names in (("lacks", missing), ("has further", extra))
        if names
    ]
    if faults:
        raise UsageError(
            f"{path} is not of this network: it {' and '.join(faults)}; "
            "choose the --network that it was saved from, or other weights"
        )
    return {name: tensors[origins[name]] for name in own if name in origins}


def _other_head(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of a head that differs in nothing but its number of classes, with the reason to leave it out."""
    name = f"{HEAD}weight"
    if name not in found:
        return {}
    theirs, ours = found[name].shape, own[name].shape
    if theirs == ours or theirs[1:] != ours[1:]:
        return {}
    reason = f"the file's head has {theirs[0]} classes, this network's {ours[0]}"
    return {name: reason for name in found if name.startswith(HEAD)}


def _check_shape(path: Path, name: str, theirs: Tensor, ours: Tensor) -> None:
    if theirs.shape == ours.shape:
        return
    advice = "choose the --network and --width that it was saved from, or other weights"
    if name == "conv1.weight" and theirs.ndim == 4:
        stems = {7: "resnet18-imagenet", 3: "resnet18"}
        if theirs.shape[2:] != ours.shape[2:] and theirs.shape[2] in stems:
            advice = f"its stem is that of --network {stems[theirs.shape[2]]}"
        elif theirs.shape[1:] == ours.shape[1:]:
            advice = f"it was saved with --width {theirs.shape[0]}"
    raise UsageError(f"{name} is {_size(theirs)} in {path}, but {_size(ours)} in this network; {advice}")


def _check_values(path: Path, name: str, theirs: Tensor, ours: Tensor) -> None:
    wrong_kind = ours.is_floating_point() and not theirs.is_floating_point()
    if wrong_kind or theirs.is_meta or theirs.layout is not torch.strided:
        kind = "without values" if theirs.is_meta else f"as {_plain(theirs.layout)} {_plain(theirs.dtype)}"
        raise UsageError(f"{path} stores {name} {kind}, but {_plain(ours.dtype)} values are expected: {_RESAVE}")
    bad = int((~torch.isfinite(theirs.to(ours.dtype))).sum())
    if bad:
        raise UsageError(
            f"{name} in {path} has {bad} of {theirs.numel()} values that are NaN or infinite in {_plain(ours.dtype)}; "
            "give weights of a training that did not diverge"
        )


def _grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return groups


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _plain(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")
