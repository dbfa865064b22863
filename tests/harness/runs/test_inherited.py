"""A measurement does not depend on the shell that it is started from."""

from __future__ import annotations

import pytest

from clmem.harness.results.environment import environment, vectors
from clmem.harness.runs.inherited import worker_environment
from clmem.harness.runs.job import Job, Pass
from clmem.harness.specs.run import RunSpec

CALM = {"PATH": "/usr/bin", "HOME": "/home/somebody", "PYTHONPATH": "/theirs", "CLMEM_CACHE": "/cache"}
STEERING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "7",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
    "OMP_NUM_THREADS": "7",
    "OMP_THREAD_LIMIT": "1",
    "MKL_NUM_THREADS": "7",
    "KMP_AFFINITY": "none",
    "PYTHONMALLOC": "malloc",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
}
LIBRARIES = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "SSE41", "LD_PRELOAD": "/usr/lib/libgomp.so.1"}


def given(what: Pass, inherited: dict[str, str], target: str = "cpu", threads: int = 4) -> dict[str, str]:
    return worker_environment(Job(spec=RunSpec(method="sgd", target=target), what=what), threads, inherited)


@pytest.mark.parametrize("what", ["truth", "attribution", "process", "accuracy"])
def test_settings_of_malloc_threads_and_python_reach_no_worker(what: Pass) -> None:
    assert given(what, {**CALM, **STEERING}) == given(what, CALM)


def test_what_users_and_libraries_need_is_passed_on() -> None:
    found = given("truth", {**CALM, **LIBRARIES})
    assert found.items() >= {**CALM, **LIBRARIES}.items()


def test_passes_that_count_have_one_thread_whatever_runs_beside() -> None:
    threads = {what: given(what, CALM)["OMP_NUM_THREADS"] for what in ("truth", "attribution", "process", "accuracy")}
    assert threads == {"truth": "1", "attribution": "1", "process": "1", "accuracy": "4"}


def test_an_accuracy_run_has_the_malloc_of_an_ordinary_process() -> None:
    assert not [name for name in given("accuracy", {**CALM, **STEERING}) if name.startswith("MALLOC_")]
    assert given("process", CALM)["MALLOC_TRIM_THRESHOLD_"] == "0"


def test_tf32_and_allocator_settings_reach_no_run_on_cuda() -> None:
    theirs = {"PYTORCH_ALLOC_CONF": "x", "NVIDIA_TF32_OVERRIDE": "1", "CUBLASLT_WORKSPACE_SIZE": "1"}
    assert given("truth", {**CALM, **theirs}, target="cuda") == given("truth", CALM, target="cuda")


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("cap", "expected"),
    [("AVX2", "AVX2"), ("avx2", "AVX2"), ("AVX2_VNNI", "AVX2"), ("AVX", "AVX"), ("SSE41", "SSE41"), ("ALL", "AVX512")],
)
def test_a_cap_under_either_name_is_a_fact_about_a_result(
    monkeypatch: pytest.MonkeyPatch, name: str, cap: str, expected: str
) -> None:
    for other in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(other, raising=False)
    flags = "avx2 avx512f avx512vl avx512bw avx512dq"
    monkeypatch.setattr("clmem.harness.results.environment._cpu_fields", lambda: {"flags": flags})
    monkeypatch.setenv(name, cap)
    found = environment()
    assert (found["vectors"], found["allocator"][name]) == (expected, cap)


def test_the_newer_name_of_a_cap_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "clmem.harness.results.environment._cpu_fields", lambda: {"flags": "avx2 avx512f avx512vl avx512bw avx512dq"}
    )
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert vectors() == "AVX512"


def test_a_preloaded_library_is_recorded_without_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/libjemalloc.so.2:/usr/lib/libgomp.so.1")
    assert environment()["allocator"]["LD_PRELOAD"] == "libjemalloc.so.2 libgomp.so.1"


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert environment()["cores"] == 1
