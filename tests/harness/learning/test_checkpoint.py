"""A run that was stopped goes on in a fresh process as if nothing had happened, bit for bit."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clmem.harness.errors import ClmemError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning import checkpoint as checkpoint_module
from clmem.harness.learning.build import Run, build
from clmem.harness.learning.checkpoint import DIGEST_BYTES, Checkpoint, UnusableCheckpointError
from clmem.harness.learning.registry import method_names
from clmem.harness.learning.training import Progress, Schedule, train
from clmem.harness.results.record import Accuracy
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.techniques import LEAN, PLAIN
from clmem.methods.sgd import SGD

STEPS = (2, 3, 2)
KEY = {"run": "this one"}


class Stopped(Exception):
    pass


def fresh(method: str, execution: str = PLAIN, **changes: Any) -> Run:
    config = {"fisher_samples": 4} if method == "ewc" else {}
    values = {"width": 1, "batch_size": 16, "buffer_size": 12, "replay_size": 4, "steps_per_task": 3, "epochs": 2}
    return build(RunSpec(method=method, execution=execution, config=config, **{**values, **changes}), Unwatched())


def go(run: Run, checkpoint: Checkpoint | None = None, stop_after: int | None = None) -> Accuracy:
    def report(progress: Progress) -> None:
        if progress.steps == stop_after:
            raise Stopped

    steps = (sum(STEPS),) if run.method.joint else STEPS
    schedule = Schedule(steps, evaluation_batches=1)
    return train(run, schedule, Unwatched(), Progress(), report, checkpoint)


def everything(run: Run) -> dict[str, Any]:
    """Return all that a run has become, as plain values."""
    roles = run.method.memory_roles()
    return {
        "network": list(run.method.network.state_dict().values()),
        "declared": [tensor for role in sorted(roles) for tensor in roles[role]],
        "rng": run.method.context.rng.bit_generator.state,
        "fingerprint": run.stream.fingerprint,
    }


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", method_names())
def test_a_stopped_run_that_goes_on_equals_the_straight_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight = fresh(name)
    expected = go(straight)
    path = tmp_path / "checkpoint"
    for stop_after in (1, 4):  # in the first task; in the middle of the second, in a third process
        with pytest.raises(Stopped):
            go(fresh(name), Checkpoint(path, KEY, every_s=0), stop_after)
    last, checkpoint = fresh(name), Checkpoint(path, KEY, every_s=0)
    accuracy = go(last, checkpoint)

    assert checkpoint.resumed_at == [1, 4]
    assert accuracy == expected
    assert_equal(everything(last), everything(straight))


@pytest.mark.parametrize(
    ("name", "stop_after"), [("sparcl-derpp", 1), ("lightcl-sparse", 4), ("pnn", 4), ("tail-sgd", 1)]
)
def test_a_lean_run_goes_on_too(name: str, stop_after: int, tmp_path: Path) -> None:
    """Stopped within task 0, or within task 1, where LightCL holds what it remembers, and PNN has a second column."""
    execution = "lean,frozen_weights=int8" if name == "tail-sgd" else LEAN
    # SparCL opens weights at the first of 16 steps, so that a fresh run holds fewer
    build_one = partial(fresh, name, execution, width=4, steps_per_task=16, epochs=1)
    straight = build_one()
    steps = (3, 2)
    train(straight, Schedule(steps, 1), Unwatched(), Progress())
    path = tmp_path / "checkpoint"

    def report(progress: Progress) -> None:
        if progress.steps == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        train(build_one(), Schedule(steps, 1), Unwatched(), Progress(), report, Checkpoint(path, KEY, every_s=0))
    last = build_one()
    train(last, Schedule(steps, 1), Unwatched(), Progress(), checkpoint=Checkpoint(path, KEY, every_s=0))
    assert_equal(everything(last), everything(straight))


def stopped(tmp_path: Path, name: str = "er") -> Path:
    path = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        go(fresh(name), Checkpoint(path, KEY, every_s=0), 4)
    return path


@pytest.mark.parametrize("damage", ["another key", "other code", "another method", "half a file", "no file"])
def test_a_checkpoint_that_is_of_no_use_is_ignored_and_the_run_begins_anew(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = stopped(tmp_path), KEY
    if damage == "another key":
        key = {"run": "another"}
    elif damage == "other code":
        monkeypatch.setattr(checkpoint_module, "measuring_digest", lambda: "0123")
    elif damage == "another method":
        monkeypatch.setattr(checkpoint_module, "method_digest", lambda cls: "0123")
    elif damage == "half a file":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    checkpoint, run = Checkpoint(path, key, every_s=1e9), fresh("er")
    assert checkpoint.restore(run).steps == 0
    assert checkpoint.resumed_at == []
    straight = fresh("er")
    assert_equal(everything(run), everything(straight))


def test_a_flipped_bit_anywhere_is_noticed_and_the_run_begins_anew(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    whole = path.read_bytes()
    run = fresh("er")
    for place in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        checkpoint = Checkpoint(path, KEY)
        assert checkpoint.restore(run).steps == 0, place
        assert "damaged" in checkpoint.notes[0]
    path.write_bytes(whole)
    assert Checkpoint(path, KEY).restore(run).steps == 4


def forge(path: Path, state: dict[str, Any]) -> None:
    """Write a state as `Checkpoint` would, with the right digest."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    checkpoint = Checkpoint(tmp_path / "checkpoint", KEY)
    forge(checkpoint.path, {"key": checkpoint.key, "method": Malicious()})
    assert checkpoint.restore(fresh("sgd")).steps == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("part", "value"),
    [("course", {"task": "third"}), ("network", {}), ("rng", "{}"), ("trunk", [1, 2, 3]), ("resumed_at", None)],
)
def test_a_forged_checkpoint_that_does_not_fit_is_removed(tmp_path: Path, part: str, value: object) -> None:
    path = stopped(tmp_path)
    state = torch.load(path, weights_only=True)
    forge(path, {**state, part: value})
    with pytest.raises(UnusableCheckpointError, match="does not fit its run"):
        Checkpoint(path, KEY).restore(fresh("er"))
    assert not path.exists()


@pytest.mark.parametrize("by", ["torch", "the digest", "the rename"])
def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def write(self, data: bytes) -> int:
            raise full

    @contextmanager
    def replacing(path: Path) -> Iterator[Any]:
        yield Full() if by == "torch" else io.BytesIO() if by == "the rename" else HalfFull()
        raise full

    class HalfFull(io.BytesIO):
        def write(self, data: Any) -> int:
            if len(data) == DIGEST_BYTES:
                raise full
            return super().write(data)

    monkeypatch.setattr(checkpoint_module, "replacing", replacing)
    straight, run, checkpoint = fresh("er"), fresh("er"), Checkpoint(path, KEY, every_s=0)
    assert go(run, checkpoint) == go(straight)
    assert_equal(everything(run), everything(straight))
    assert [note for note in checkpoint.notes if str(path) in note and "No space left" in note] == checkpoint.notes
    assert len(checkpoint.notes) == 1


def test_a_file_that_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint")
    assert Checkpoint(tmp_path / "checkpoint", KEY).restore(fresh("sgd")).steps == 0


def test_no_checkpoint_is_written_before_it_is_time(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    go(fresh("sgd"), Checkpoint(path, KEY, every_s=1e9))
    assert not path.exists()


class Forgetful(SGD):
    """Keeps a tensor that it declares but does not name in `checkpointed`."""

    def __init__(self, setting: Any, config: Any) -> None:
        super().__init__(setting, config)
        self.kept = torch.zeros(3)

    def memory_roles(self) -> dict[str, list[Tensor]]:
        return {"method_state": [self.kept]}


def test_declared_state_that_a_checkpoint_would_lose_fails_the_run_and_is_named(tmp_path: Path) -> None:
    run = fresh("sgd")
    method = Forgetful(run.method.context, SGD.Config())
    run.runner.prepared.attach(method)
    with pytest.raises(ClmemError, match=r"declares 12 B .* shape \(3,\) .* `checkpointed`"):
        go(Run(run.stream, method, run.runner), Checkpoint(tmp_path / "checkpoint", KEY, every_s=0))
    assert list(tmp_path.iterdir()) == []
