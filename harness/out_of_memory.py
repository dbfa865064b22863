"""Tells that memory ran out from other failures, whichever library notices first and however it says so."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator

ALWAYS = re.compile(
    r"out of memory"
    r"|DefaultCPUAllocator: can't allocate memory"
    r"|Cannot allocate memory"  # the C library: mmap, fork, loading a library
    r"|bad_alloc"  # C++
    r"|Unable to allocate [\d.]+ \w+ for an array"  # numpy
    r"|_STATUS_ALLOC_FAILED|_ALLOCATION_FAILED"  # cuBLAS, cuDNN
    r"|NVML_SUCCESS == r.*CUDACachingAllocator"  # on Jetson, inside the caching allocator
    r"|insufficient memory",
    re.IGNORECASE,
)
"""What means that memory ran out, whoever says it."""

UNDER_A_LIMIT = re.compile(
    r"could not (?:create|execute|initialize) (?:a|an|the) (?:primitive|memory|engine|stream|descriptor)"  # oneDNN
    r"|can't start new thread"
    r"|(?:Thread creation failed|pthread_create failed).*Resource temporarily unavailable"  # libgomp, OpenBLAS
    r"|Cannot create thread"  # Intel's OpenMP
    r"|failed to map segment",  # the loader
    re.IGNORECASE,
)
"""What has other causes too, and means memory where a process is held to a limit."""


def is_limited() -> bool:
    """Say whether this process is held to a limit of memory, by a budget or by its shell."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def says_out_of_memory(text: str, *, limited: bool) -> bool:
    """Say whether a library's words mean that memory ran out. limited: whether the process was held to a limit."""
    return bool(ALWAYS.search(text) or (limited and UNDER_A_LIMIT.search(text)))


def means_out_of_memory(error: BaseException, *, limited: bool) -> bool:
    """Say whether an exception, or one that it was raised from, means that memory ran out.

    Texts count for the types that libraries raise; a ValueError that quotes them is somebody's own.
    """
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return True
        if isinstance(one, OSError) and one.errno == errno.ENOMEM:
            return True
        if isinstance(one, RuntimeError | OSError | ImportError) and says_out_of_memory(str(one), limited=limited):
            return True
    return False


ASKED_FOR = re.compile(r"to allocate ([\d.]+ (?:bytes|[KMGT]iB))", re.IGNORECASE)
"""How torch, its CPU allocator and numpy say how much they could not have."""


def shortage(error: BaseException) -> str:
    """Return as one clause what could not be had, for an error that means that memory ran out.

    Torch tells a paragraph about the device, with other processes on it; a result keeps none of that.
    """
    name, said = type(error).__name__, str(error)
    asked = ASKED_FOR.search(said)
    if asked is not None:
        return f"{name}: {asked[1]} more could not be allocated"
    first = re.split(r"(?<=[a-z])[.;] |\n", said.strip(), maxsplit=1)[0].rstrip(".")
    return f"{name}: {first}" if first else name


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
