"""Pretrained weights: from a file into a network under the names that people use, and from a network into a file.

Names may be the network's own or others that it knows (`Network.own_name`), behind whatever wrappers put before them
(`module.`, `_orig_mod.`, `backbone.`). Files are written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from clmem.harness.errors import UsageError
from clmem.harness.files import expand, write_bytes
from clmem.harness.networks.weight_files import RESAVE, read_tensors
from clmem.harness.text import clean, some
from clmem.methods.base import Network

DEEPEST = 8
"""Parts of a name, counted from its end, among which the network's own name is looked for."""

MOST_TIMES = 16
"""Times the network's own bytes that a file may hold: float64, an average and an optimizer's moments beside them."""
SLACK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Loaded:
    """What a network took from a weights file; names are the network's.

    names: parameters and buffers that took the file's values. left_out: those that kept their own, each with the
    reason. converted: those that the file stores in another dtype than the network, with the file's dtype.
    metadata: what the file says about itself, empty unless it is safetensors. beside: names in the file that stand
    beside the network, such as those of a projection head.
    """

    names: tuple[str, ...]
    left_out: Mapping[str, str]
    converted: Mapping[str, str]
    metadata: Mapping[str, str]
    beside: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return one line about how much was loaded, what was converted and what was left out."""
        parts = [f"{len(self.names)} tensors loaded"]
        for dtype, names in _grouped(self.converted).items():
            parts.append(f"{len(names)} converted from {dtype}")
        for reason, names in _grouped(self.left_out).items():
            parts.append(f"left out {some(names)} ({reason})")
        if self.beside:
            parts.append(f"left out {some(self.beside)} (in the file, but not of this network)")
        return "; ".join(parts)


def load_weights(network: Network, path: str | Path, head: bool = True) -> Loaded:
    """Copy the file's values into the network's parameters and buffers, all that fit or none.

    A head of another number of classes keeps its own values, and without `head` any does, or is missing in the file;
    `num_batches_tracked` may be missing too, and other dtypes are converted. If the network has a prefix in the file,
    names without it are left out. A network on the meta device is checked in the same way and nothing is copied.
    Raises UsageError for a file that is unreadable or needs unpickling, a network that is there twice, missing or
    further names, other shapes, and values that are not finite.
    """
    path = expand(path)
    own = network.state_dict()
    largest = MOST_TIMES * sum(tensor.numel() * tensor.element_size() for tensor in own.values()) + SLACK_BYTES
    # Whoever checks settings builds under torch.device("meta"), which would leave the file's tensors without values.
    with torch.device("cpu"):
        tensors, metadata = read_tensors(path, largest, fits=lambda names: bool(_prefixes(names, own, network)))
    found, beside = _by_our_names(path, tensors, own, network, head)
    left_out = {name: "not in the file" for name in own if name not in found}
    left_out.update(_other_head(found, own, _head(network)))
    if not head:
        left_out.update(
            (name, "a method begins with a head of its own") for name in found if name.startswith(_head(network))
        )
    taken = {name: tensor for name, tensor in found.items() if name not in left_out}
    for name, tensor in taken.items():
        _check_shape(path, name, tensor, own[name], network)
    for name, tensor in taken.items():
        _check_values(path, name, tensor, own[name])
    for name, tensor in taken.items():
        if not own[name].is_meta:
            own[name].copy_(tensor)
    converted = {name: _plain(tensor.dtype) for name, tensor in taken.items() if tensor.dtype != own[name].dtype}
    return Loaded(tuple(taken), left_out, converted, metadata, beside)


def save_weights(network: Network, path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write parameters and buffers as safetensors, whole or not at all, and return the path.

    Equal values and metadata give equal bytes. Raises UsageError when the file cannot be written.
    """
    path = expand(path)
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


def _head(network: Network) -> str:
    """Return what the names of the classifier begin with."""
    return f"{network.head_stage}."


def _prefixes(names: Iterable[str], own: Mapping[str, Tensor], network: Network) -> dict[str, str]:
    """Return each prefix under which a file holds at least half of the network's names, and the first name there.

    A prefix is what stands before the network's names, such as `module._orig_mod.`; it is empty where nothing does.
    """
    examples: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for start in range(max(0, len(parts) - DEEPEST), len(parts)):
            if network.own_name(".".join(parts[start:])) in own:
                examples.setdefault("".join(f"{part}." for part in parts[:start]), []).append(name)
    return {prefix: found[0] for prefix, found in examples.items() if 2 * len(found) >= len(own)}


def _by_our_names(
    path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], network: Network, head: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the file's tensors by the network's names, in the network's order, and the names that stand beside it.

    head: whether the network's own head must be in the file; without it, any other may be.
    """
    prefixes, classifier = _prefixes(tensors, own, network), _head(network)
    if len(prefixes) > 1:
        shown = " and as ".join(clean(name, 80) for name in list(prefixes.values())[:2])
        raise UsageError(f"{path} holds the network twice, as {shown}; keep one of them: {RESAVE}")
    prefix = next(iter(prefixes), "")  # none for another network, whose names are told as they are
    origins: dict[str, str] = {}
    beside: list[str] = []
    for theirs in tensors:
        bare = theirs.removeprefix(prefix)
        ours = bare if bare in own else network.own_name(bare)
        # a head may stand outside of a wrapped trunk; a method with a head of its own needs none, of whatever shape
        is_beside = not theirs.startswith(prefix) and not (ours in own and ours.startswith(classifier))
        if is_beside or (not head and ours.startswith(classifier) and ours not in own):
            beside.append(clean(theirs, 80))
            continue
        if ours in origins:
            raise UsageError(
                f"{path} holds {ours} twice, as {origins[ours]} and as {theirs}; keep one of them: {RESAVE}"
            )
        origins[ours] = theirs
    optional = () if head else (classifier,)
    needed = (name for name in own if not name.startswith(optional) and not name.endswith(".num_batches_tracked"))
    missing = [name for name in needed if name not in origins]
    extra = [theirs for ours, theirs in origins.items() if ours not in own]
    faults = [
        f"{verb} {len(names)} {'name' if len(names) == 1 else 'names'} ({some([clean(name, 80) for name in names])})"
        for verb, names in (("lacks", missing), ("has further", extra))
        if names
    ]
    if faults:
        raise UsageError(
            f"{path} is not of this network: it {' and '.join(faults)}; "
            "choose the --network that it was saved from, or other weights"
        )
    return {name: tensors[origins[name]] for name in own if name in origins}, tuple(beside)


def _other_head(found: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> dict[str, str]:
    """Return the names of a head that differs in nothing but its number of classes, with the reason to leave it out."""
    name = f"{head}weight"
    if name not in found:
        return {}
    theirs, ours = found[name].shape, own[name].shape
    if theirs == ours or theirs[1:] != ours[1:]:
        return {}
    reason = f"the file's head has {theirs[0]} classes, this network's {ours[0]}"
    return {name: reason for name in found if name.startswith(head)}


def _check_shape(path: Path, name: str, theirs: Tensor, ours: Tensor, network: Network) -> None:
    if theirs.shape == ours.shape:
        return
    advice = network.advice_on(name, tuple(theirs.shape))
    advice = advice or "choose the --network and --width that it was saved from, or other weights"
    raise UsageError(f"{name} is {_size(theirs)} in {path}, but {_size(ours)} in this network; {advice}")


def _check_values(path: Path, name: str, theirs: Tensor, ours: Tensor) -> None:
    wrong_kind = ours.is_floating_point() and not theirs.is_floating_point()
    if wrong_kind or theirs.is_meta or theirs.layout is not torch.strided:
        kind = "without values" if theirs.is_meta else f"as {_plain(theirs.layout)} {_plain(theirs.dtype)}"
        raise UsageError(f"{path} stores {name} {kind}, but {_plain(ours.dtype)} values are expected: {RESAVE}")
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


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _plain(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")
