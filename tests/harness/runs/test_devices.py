"""Devices that are not there, or not free: one sentence each, and nothing is touched."""

from __future__ import annotations

import os
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clmem.harness.errors import UsageError
from clmem.harness.memory.system import gpu, nvml
from clmem.harness.memory.watching import device_process
from clmem.harness.runs import devices, limits
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.targets import allocator_of, device_of


@pytest.mark.parametrize(
    ("target", "device", "allocator"),
    [
        ("cpu", "cpu", "cpu"),
        ("cuda", "cuda:0", "cuda"),
        ("cuda:3", "cuda:3", "cuda"),
        ("jetson", "cuda:0", "cuda"),
    ],
)
def test_a_target_names_a_device_and_its_allocator(target: str, device: str, allocator: str) -> None:
    assert (device_of(target), allocator_of(target), allocator_of(f"predicted-{target}")) == (
        device,
        allocator,
        allocator,
    )


@pytest.mark.parametrize("target", ["gpu", "cuda:", "cuda:x", "cpu:1", "jetson:0", ""])
def test_a_target_that_does_not_exist_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="there is no target"):
        device_of(target)


class Cuda:
    """Stands for what torch says of CUDA on a machine. A driver that is too old only warns, and finds nothing."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int = 0, warning: str = "", error: str = "") -> None:
        def available() -> bool:
            if warning:
                warnings.warn(warning, stacklevel=1)
            return count > 0

        def init() -> None:
            raise RuntimeError(error)

        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch.cuda, "is_available", available)
        patch.setattr(torch.cuda, "device_count", lambda: count)
        patch.setattr(torch.cuda, "init", init)


def test_on_the_cpu_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch, error="asked")
    devices.check_device("cpu")
    assert gpu.describe("cpu", with_services=True) == {}


def test_a_build_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="is built without it; install a CUDA build"):
        devices.check_device("cuda")


def test_a_machine_without_a_driver_is_told_torch_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch, error="Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")
    with pytest.raises(UsageError, match=r"finds no device: Found no NVIDIA driver on your system; use --target cpu"):
        devices.check_device("cuda")


def test_a_driver_that_is_too_old_is_told_torch_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update"
    Cuda(monkeypatch, warning=said)
    with pytest.raises(UsageError, match=r"is too old \(found version 11040\); use"):
        devices.check_device("cuda")


def test_a_device_that_does_not_exist_is_told_which_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch, count=2)
    devices.check_device("cuda:1")
    with pytest.raises(UsageError, match="there is no device cuda:2: this machine has cuda:0, cuda:1"):
        devices.check_device("cuda:2")


def test_a_desktop_is_no_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch, count=1)
    monkeypatch.setattr(devices.jetson, "is_jetson", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(is_integrated=1))
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    with pytest.raises(UsageError, match="does not say that it is a Jetson board"):
        devices.check_device("jetson")


def test_a_gpu_that_others_fill_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "identity", lambda target: "GPU-1")
    monkeypatch.setattr(nvml, "others", lambda uuid: [(77, "train.py", 5 << 30), (78, "Xorg", 1 << 20)])
    with pytest.raises(UsageError, match=r"the largest: train.py, pid 77, 5,368,709,120 B.*allow them with --others"):
        devices.check_others("cuda", 64 << 20)
    devices.check_others("cuda", 6 << 30)
    devices.check_others("cpu", 0)


def test_on_cuda_a_budget_is_a_share_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *both: asked.append(both))
    limits.limit_reserved(RunSpec(method="sgd", target="cuda", budget="2GiB"))
    (fraction, device), *_ = asked
    assert (device, fraction) == (torch.device("cuda:0"), pytest.approx(0.25))
    with pytest.raises(UsageError, match="allows 9,663,676,416 B but cuda:0 has 8,589,934,592 B"):
        limits.limit_reserved(RunSpec(method="sgd", target="cuda", budget="9GiB"))


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_torch_makes_the_very_budget_of_the_share(budget_mib: int, rest_mib: int) -> None:
    """torch multiplies the share with the device's bytes and cuts off what is behind the point."""
    allowed, total = budget_mib << 20, (budget_mib + rest_mib) << 20
    asked: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: asked.append(share))
        limits.limit_reserved(RunSpec(method="sgd", target="cuda", budget=str(allowed)))
    assert int(asked[0] * total) == allowed


def test_what_a_result_says_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"name": "NVIDIA X", "total_memory": 8 << 30, "major": 9, "minor": 0, "is_integrated": 0, "uuid": "1-2"}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**known))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    Library(monkeypatch)
    assert gpu.identity("cuda") == "GPU-1-2"
    found = gpu.describe("cuda", with_services=True)
    assert (found["device"], found["capability"], found["integrated"]) == ("NVIDIA X", "9.0", False)
    assert (found["cudnn"], found["driver"], found["device_bytes"]) == (91002, "580.0", 8 << 30)
    monkeypatch.setattr(gpu.jetson, "jtop_says", lambda: {"power_mode": "MAXN"})
    assert gpu.describe("jetson", with_services=True)["jetson_stats"] == {"power_mode": "MAXN"}
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.benchmark = True
        limits.pin("cuda")
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_a_board_in_a_container_is_known_by_its_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch, count=1)
    monkeypatch.setattr(devices.jetson, "is_jetson", lambda: False)
    monkeypatch.setattr(devices.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(is_integrated=1))
    devices.check_device("jetson")


class Library:
    """Stands for NVML with three processes on one GPU: this one, its parent's other child, and a stranger."""

    def __init__(self, patch: pytest.MonkeyPatch, **answers: Any) -> None:
        patch.setattr(nvml, "ENDING_S", 0)
        held = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=600), SimpleNamespace(pid=1, usedGpuMemory=900)]
        for name, answer in {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: held,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda handle: [SimpleNamespace(pid=1, usedGpuMemory=None)],
            "nvmlSystemGetDriverVersion": lambda: "580.0",
            **answers,
        }.items():
            patch.setattr(nvml.pynvml, name, answer)


def test_nvml_tells_one_process_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    Library(monkeypatch)
    monkeypatch.delenv("CLMEM_PARENT", raising=False)
    assert nvml.process_bytes("GPU-1") == 600
    assert [(pid, size) for pid, _, size in nvml.others("GPU-1") or []] == [(1, 900)]
    assert nvml.driver_version() == "580.0"


def test_a_process_of_the_same_suite_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Library(monkeypatch)
    monkeypatch.setenv("CLMEM_PARENT", "1")
    assert nvml.others("GPU-1") == []


def test_without_nvml_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise nvml.pynvml.NVMLError(nvml.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    Library(monkeypatch, nvmlInit=missing)
    assert (nvml.process_bytes("GPU-1"), nvml.others("GPU-1"), nvml.driver_version()) == (None, None, None)


def test_a_process_that_has_just_ended_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = iter([[SimpleNamespace(pid=2**30, usedGpuMemory=500)], []])
    Library(
        monkeypatch,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: next(listed),
        nvmlDeviceGetGraphicsRunningProcesses=lambda handle: [],
    )
    assert nvml.others("GPU-1") == []


def test_that_others_could_not_be_told_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "identity", lambda target: "GPU-1")
    monkeypatch.delenv("CLMEM_PARENT", raising=False)
    Library(monkeypatch)
    assert devices.check_others("cuda", 1 << 20)
    unknown = [SimpleNamespace(pid=1, usedGpuMemory=None)]
    Library(monkeypatch, nvmlDeviceGetComputeRunningProcesses=lambda handle: unknown)
    assert not devices.check_others("cuda", 0)


def test_a_board_whose_nvml_knows_no_memory_is_not_taken_for_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: object) -> None:
        raise nvml.pynvml.NVMLError(nvml.pynvml.NVML_ERROR_NOT_SUPPORTED)

    Library(monkeypatch, nvmlDeviceGetComputeRunningProcesses=unsupported)
    assert nvml.process_bytes("GPU-1") is None


def test_what_a_process_holds_is_asked_after_each_phase_but_steady_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([100, 300, 200])
    monkeypatch.setattr(device_process, "identity", lambda target: "GPU-1")
    monkeypatch.setattr(nvml, "process_bytes", lambda uuid: next(answers))
    watched = device_process.DeviceProcess("cuda")
    for name in ("before_task", "first_step", "step", "after_task"):
        with watched.phase(name, 0):
            pass
    assert watched.peak_bytes == 300
