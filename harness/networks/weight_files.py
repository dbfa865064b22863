"""Files of pretrained weights of others, read without ever unpickling: their tensors by the names in the file.

A file is a safetensors file or what torch.save wrote of plain tensors. Unpickling anything else would run whatever code
the file brings, so it is refused.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from clmem.harness.errors import UsageError
from clmem.harness.files import regular
from clmem.harness.text import clean, some

CONTAINERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module", "backbone", "encoder",
    "ema", "ema_state_dict", "model_ema", "params_ema", "state_dict_ema", "student", "teacher",
)  # fmt: skip
"""Under which keys training scripts put the state dict beside other things."""

DEEPEST = 4
"""Such keys within one another."""

RESAVE = "save it again as a plain state dict, torch.save(network.state_dict(), file), or as safetensors"


def read_tensors(
    path: Path, largest_bytes: int, fits: Callable[[Mapping[str, Tensor]], bool]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors by its own names, and its metadata, which is empty unless it is safetensors.

    fits: whether a state dict is of the network, which decides between several. Raises UsageError for a file that holds
    more than `largest_bytes`, is unreadable, damaged or no regular file, needs unpickling, or holds no state dict or
    several that could be meant.
    """
    _check_size(path, regular(path, "the weights file"), largest_bytes)
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
        except Exception as error:  # a type of number that this torch lacks raises as it likes
            raise _broken(path, error) from error
    return _state_dict(path, _read_torch(path, start, largest_bytes), fits), {}


def _check_size(path: Path, size: int, largest_bytes: int) -> None:
    if size > largest_bytes:
        raise UsageError(
            f"{path} holds {size:,} B, more than weights of this network can be ({largest_bytes:,} B); "
            "choose the --network and --width that it was saved from, or other weights"
        )


def _read_torch(path: Path, start: bytes, largest_bytes: int) -> object:
    """Return what torch.save wrote, if it is made of tensors, numbers, text and containers of those."""
    # These two never reach torch.load, which before 2.6 hands them to readers that weights_only does not bind.
    if start.startswith(b"PK\x03\x04"):
        _check_archive(path, largest_bytes)
    elif tarfile.is_tarfile(path):
        raise UsageError(f"{path} has torch's oldest format, a tar of pickles, which clmem does not open: {RESAVE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own, about how old or odd a file is
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        known = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds Python objects ({known[1]})" if known else "is damaged or holds Python objects"
        raise UsageError(
            f"{path} {what} and not only tensors; reading those would run whatever code the file brings, "
            f"so clmem refuses: {RESAVE}"
        ) from error
    except Exception as error:  # the reader raises whatever the bytes make it stumble over
        raise _broken(path, error) from error


def _check_archive(path: Path, largest_bytes: int) -> None:
    """Refuse what torch's reader of archives would take: a program, a small file of much content, and damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.filename.split("/")[-1] == "constants.pkl" for member in members):
                raise UsageError(f"{path} holds a TorchScript program, which clmem does not run: {RESAVE}")
            _check_size(path, sum(member.file_size for member in members), largest_bytes)
            for member in members:
                if member.CRC:  # torch.serialization.set_crc32_options(False) leaves it 0
                    with archive.open(member) as content:
                        while content.read(2**20):
                            pass
    except UsageError:
        raise
    except Exception as error:  # the reader raises whatever the bytes make it stumble over
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UsageError:
    reason = clean(str(error) or type(error).__name__, 200).rstrip(".")
    return UsageError(
        f"{path} is no whole weights file, neither safetensors nor torch.save's ({reason}); copy or download it again"
    )


def _state_dict(path: Path, value: Any, fits: Callable[[Mapping[str, Tensor]], bool]) -> dict[str, Tensor]:
    """Return the tensors by name, unwrapped from what training scripts save around them."""
    every = _state_dicts(value)
    found = {keys: tensors for keys, tensors in every.items() if fits(tensors)} or every
    if len(found) == 1:
        return {name: tensor.detach() for name, tensor in next(iter(found.values())).items()}
    if found:
        raise UsageError(
            f"{path} holds {len(found)} state dicts ({some(list(found))}); save the one that is meant alone"
        )
    for _ in range(DEEPEST):
        inner = [value[key] for key in CONTAINERS if key in value] if isinstance(value, Mapping) else []
        value = inner[0] if len(inner) == 1 else value
    what = f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        what += f" with the keys {some([clean(str(key), 80) for key in value])}" if value else " with nothing in it"
    raise UsageError(f"{path} holds no state dict of named tensors, but {what}: {RESAVE}")


def _state_dicts(whole: Any) -> dict[str, Mapping[str, Tensor]]:
    """Return every state dict by the keys that lead to it. Each is there once, though a file may name it twice."""
    found: dict[str, Mapping[str, Tensor]] = {}
    seen: set[int] = set()  # a file may hold a dict that holds itself
    level: list[tuple[str, Any]] = [("", whole)]
    for _ in range(DEEPEST):
        here, level = level, []
        for keys, value in here:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            if value and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
                found[keys] = value
            else:
                level += [(f"{keys}.{key}".lstrip("."), value[key]) for key in CONTAINERS if key in value]
    return found
