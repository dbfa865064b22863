"""Memory that runs out is told from other failures, whoever notices first."""

from __future__ import annotations

import errno
import resource

import numpy as np
import pytest
import torch

from clmem.harness.out_of_memory import is_limited, means_out_of_memory, says_out_of_memory, shortage

ALWAYS = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:838"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libx.so: failed to map segment from shared object: Cannot allocate memory"),
]
LIMITED = [
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("could not execute a primitive"),
    RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
    RuntimeError("can't start new thread"),
]
NEVER = [
    RuntimeError("shape mismatch"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    ValueError("out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", ALWAYS, ids=str)
def test_every_librarys_way_of_saying_it_is_known(error: Exception) -> None:
    assert means_out_of_memory(error, limited=False)


@pytest.mark.parametrize("error", LIMITED, ids=str)
def test_a_failed_primitive_means_memory_only_under_a_limit(error: Exception) -> None:
    assert means_out_of_memory(error, limited=True)
    assert not means_out_of_memory(error, limited=False)


@pytest.mark.parametrize("error", NEVER, ids=str)
def test_other_failures_are_other_failures(error: Exception) -> None:
    assert not means_out_of_memory(error, limited=True)


def test_numpys_own_error_is_known_as_text_too() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, np.uint8)
    assert says_out_of_memory(str(caught.value), limited=False)


def test_an_error_raised_from_another_keeps_its_cause() -> None:
    wrapped = ValueError("the step failed")
    wrapped.__cause__ = MemoryError()
    assert means_out_of_memory(wrapped, limited=False)
    wrapped.__cause__.__cause__ = wrapped  # a circle ends
    assert means_out_of_memory(wrapped, limited=False)


def test_a_limit_of_the_shell_counts_as_a_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    assert is_limited() == (soft != resource.RLIM_INFINITY or resource.getrlimit(resource.RLIMIT_AS)[0] != -1)
    resource.setrlimit(resource.RLIMIT_DATA, (2**45, hard))
    try:
        assert is_limited()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which "
                "1.56 MiB is free. Process 1234 has 70.00 GiB memory in use. Of the allocated memory 8.00 GiB is ..."
            ),
            "OutOfMemoryError: 20.00 MiB more could not be allocated",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 262144 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "RuntimeError: 262144 bytes more could not be allocated",
        ),
        (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000, 1000)"),
         "MemoryError: 7.45 GiB more could not be allocated"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
         "RuntimeError: CUDA error: out of memory"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("std::bad_alloc"), "RuntimeError: std::bad_alloc"),
    ],
)  # fmt: skip
def test_what_could_not_be_had_is_one_clause(error: BaseException, clause: str) -> None:
    assert shortage(error) == clause
