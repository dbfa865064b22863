"""A directory of results: it belongs to one suite, and the same command completes what is missing in it.

Its `suite.json` says which suite. A run whose result file is there, made by the code of today, is done; everything else
is run again, so what was interrupted at any moment is completed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from clmem.harness.errors import UsageError
from clmem.harness.files import read_text, remove_unfinished, write_json
from clmem.harness.results.environment import DECIDES_BYTES_ON_CUDA, allocator_settings, decides_bytes, environment
from clmem.harness.results.record import RunResult, load_result, save_result
from clmem.harness.results.source import measuring_digest
from clmem.harness.runs.inherited import COUNTING_THREADS, worker_environment
from clmem.harness.runs.job import Job
from clmem.harness.runs.measurement import passes
from clmem.harness.runs.runner import Present, Watcher, checkpoint_path, run_specs
from clmem.harness.specs.run import NOWHERE, RunSpec, Sources, weights_label
from clmem.harness.specs.suite import Suite
from clmem.harness.specs.techniques import techniques
from clmem.harness.techniques.registry import Techniques

AGAIN = ("crashed", "timeout")
"""Endings of runs that are tried again if that is asked for."""

MANIFEST = "suite.json"
LOCK = ".lock"
MADE_OF_RESULTS = {"report.md", "plots", "predictions.json"}
"""What commands write beside results."""

Reuse = Literal["unchanged", "all", "none"]
"""Which results stand that are there already: those that today's code made in today's surroundings, all, or none."""


def run_suite(
    suite: Suite,
    directory: Path,
    *,
    jobs: int | None = None,
    sources: Sources = NOWHERE,
    retry: bool = False,
    reuse: Reuse = "unchanged",
    watcher: Watcher | None = None,
) -> list[RunResult]:
    """Fill a directory with the results of a suite and return all of them, in the order of the specs.

    retry: run again what ended as crashed or timeout. reuse: which results that are there already stand. Accuracy runs
    that were interrupted go on where they were. Raises UsageError when the directory cannot be written, holds another
    suite's results, or is being filled by another process; nothing in it is touched then.
    """
    specs = suite.specs()
    with _claimed(directory, suite):
        results = fill(
            specs,
            directory,
            timeout_s=suite.timeout_s,
            jobs=jobs,
            sources=sources.model_copy(update={"weights": suite.weights}),
            retry=retry,
            reuse=reuse,
            watcher=watcher,
        )
    return [results[spec.run_id] for spec in specs]


def fill(
    specs: list[RunSpec],
    directory: Path,
    *,
    timeout_s: float = 3600,
    jobs: int | None = None,
    sources: Sources = NOWHERE,
    retry: bool = False,
    reuse: Reuse = "unchanged",
    watcher: Watcher | None = None,
) -> dict[str, RunResult]:
    """Run what a directory lacks of some specs, and return all results by run id. Hold the directory meanwhile."""
    from clmem.harness.learning.checkpoint import seconds_between_savings  # imports torch, as running does

    watcher = watcher or Watcher()
    seconds_between_savings()  # a wrong variable would fail every run
    results = _present(specs, directory, retry, reuse, watcher)
    if reuse == "none":
        for spec in specs:
            checkpoint_path(directory, spec).unlink(missing_ok=True)

    def keep(result: RunResult) -> None:
        save_result(directory, result)
        results[result.run_id] = result

    missing = [spec for spec in specs if spec.run_id not in results]
    run_specs(missing, keep, timeout_s=timeout_s, jobs=jobs, sources=sources, checkpoints=directory, watcher=watcher)
    return results


def _present(
    specs: list[RunSpec], directory: Path, retry: bool, reuse: Reuse, watcher: Watcher
) -> dict[str, RunResult]:
    """Return the results in a directory that stand, by run id, and tell the watcher about them."""
    kept: dict[str, RunResult] = {}
    changed: list[str] = []
    failed = unwanted = ended_badly = other_code = elsewhere = undated = 0
    here = environment()
    for spec in specs:
        path = directory / f"{spec.run_id}.json"
        if not path.exists():
            continue
        if reuse == "none":
            unwanted += 1
            continue
        result = load_result(path)
        if retry and result.status in AGAIN:
            failed += 1
        elif not has_its_settings(result, spec) or (reuse == "unchanged" and _source_changed(result)):
            changed.append(spec.method)
        elif reuse == "unchanged" and result.code.get("measuring", measuring_digest()) != measuring_digest():
            other_code += 1
        elif reuse == "unchanged" and _measured_elsewhere(result, here):
            elsewhere += 1
        else:
            kept[spec.run_id] = result
            undated += not result.code
            ended_badly += result.status in AGAIN
    present = Present(
        total=len(specs),
        kept=len(kept),
        failed=failed,
        unwanted=unwanted,
        ended_badly=ended_badly,
        changed=tuple(dict.fromkeys(changed)),
        measuring_changed=other_code,
        elsewhere=elsewhere,
        undated=undated,
    )
    watcher.begins(present)
    return kept


def _source_changed(result: RunResult) -> bool:
    """Say whether the source of a method or a network differs from the one measured; older results do not tell."""
    from clmem.harness.learning.registry import source_digests

    asked = result.code.keys() & {"method", "network"}
    return bool(asked) and any(result.code.get(key) != digest for key, digest in source_digests(result.spec).items())


def _measured_elsewhere(result: RunResult, here: Mapping[str, Any]) -> bool:
    """Say whether a run's bytes were counted where other bytes are to be expected: by another torch, for example.

    here: the environment of this process. Older results lack some of what decides bytes, which is taken for equal. What
    only a device knows is not asked.
    """
    spec = result.spec
    if spec.measure == "accuracy":
        return False
    first = Job(spec=spec, what=passes(spec)[0])
    today = {
        **here,
        "allocator": allocator_settings(worker_environment(first, COUNTING_THREADS, os.environ)),
        "threads": COUNTING_THREADS,
    }
    keys = decides_bytes(spec.target, of_a_process=result.process is not None)
    asked = [key for key in keys if key not in DECIDES_BYTES_ON_CUDA and key in result.environment]
    return any(result.environment[key] != today[key] for key in asked)


def has_its_settings(result: RunResult, spec: RunSpec) -> bool:
    """Say whether a stored run had the hyper-parameters and the techniques that its spec means today.

    Values tuned since then differ, and so does a lean preset that was changed.
    """
    from clmem.harness.learning.registry import method_class, method_config

    today = method_config(spec).model_dump(mode="json")
    if any(today[key] != value for key, value in result.method_config.items() if key in today):
        return False
    used = {key: value for key, value in result.execution.items() if key in Techniques.model_fields}
    return not result.execution or used == techniques(spec.execution, method_class(spec.method).lean).changed()


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Make a directory and hold it against every other process. Raises UsageError where somebody else holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"another process is filling {directory}; wait for it or choose another --out") from error
    except OSError as error:
        raise UsageError(f"cannot write results to {directory}: {error.strerror}; choose another --out") from error
    with lock:
        remove_unfinished(directory)
        yield


@contextmanager
def _claimed(directory: Path, suite: Suite) -> Iterator[None]:
    """Hold a directory that is this suite's, or becomes it."""
    _check_free(directory, suite)
    with held(directory):
        _check_free(directory, suite)  # somebody may have come first
        _write_manifest(directory / MANIFEST, suite)
        yield


def _check_free(directory: Path, suite: Suite) -> None:
    """Raise UsageError for a folder without a manifest, unless it is empty or holds results of this suite alone.

    Hidden files and what is made of results do no harm.
    """
    if (directory / MANIFEST).exists() or not directory.is_dir():
        return
    found = {path.name for path in directory.iterdir() if not path.name.startswith(".")} - MADE_OF_RESULTS
    if found - {f"{spec.run_id}.json" for spec in suite.specs()}:
        raise UsageError(f"{directory} is not empty and no results directory of this suite; choose another --out")


def _write_manifest(manifest: Path, suite: Suite) -> None:
    """Write what a directory's results are of, or check that it is this suite. Weights are named by their content."""
    wanted = suite.model_copy(update={"weights": suite.weights and weights_label(suite.weights)})
    if not manifest.exists():
        write_json(manifest, wanted.model_dump(mode="json", exclude={"timeout_s"}))
        return
    try:
        found = Suite.model_validate_json(read_text(manifest, "the manifest"))
    except ValidationError as error:
        raise UsageError(
            f"{manifest} is not whole, or of another version; delete it, and the same command goes on with the results "
            "beside it, or choose another --out"
        ) from error
    changed = [
        key
        for key in Suite.model_fields
        if key != "timeout_s" and getattr(found, key) != getattr(wanted, key) and not _same_weights(key, found, suite)
    ]
    if changed:
        raise UsageError(
            f"{manifest.parent} already holds results of another suite (different {', '.join(changed)}); "
            "choose another --out or delete it"
        )


def _same_weights(key: str, found: Suite, suite: Suite) -> bool:
    """Say whether a manifest of an older version, which has the path of the weights, means this suite's."""
    return key == "weights" and None not in (found.weights, suite.weights) and found.weights == suite.weights
