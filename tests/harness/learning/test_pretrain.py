"""Weights made here and loaded there: pretraining goes on after a stop, and what it saves freezes a trunk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from clmem.harness.errors import UsageError
from clmem.harness.execution.monitor import Unwatched
from clmem.harness.learning.build import build
from clmem.harness.learning.pretrain import Pretrained, pretrain
from clmem.harness.learning.registry import method_class, method_config
from clmem.harness.learning.training import Progress
from clmem.harness.specs.run import RunSpec, Sources, weights_label


class Stopped(Exception):
    pass


def spec(**changes: object) -> RunSpec:
    values: dict[str, object] = {
        "method": "joint",
        "width": 1,
        "batch_size": 50,
        "steps_per_task": 2,
        "measure": "accuracy",
    }
    return RunSpec(**{**values, **changes})


def pretrained(out: Path, stop_after: int | None = None, folder: Path | None = None, **changes: object) -> Pretrained:
    def report(progress: Progress, total: int) -> None:
        assert progress.steps <= total
        if progress.steps == stop_after:
            raise Stopped

    return pretrain(spec(**changes), out, folder=folder, every_s=0, report=report)


def test_pretraining_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    straight, out = pretrained(tmp_path / "straight.safetensors"), tmp_path / "stopped.safetensors"
    with pytest.raises(Stopped):
        pretrained(out, stop_after=4)
    assert not out.exists(), "no file before it is done"
    done = pretrained(out)
    assert (done.resumed_at, done.steps, straight.steps) == ([4], 10, 10)
    assert done.accuracy == straight.accuracy is not None
    one, other = load_file(straight.path), load_file(out)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.safetensors", "straight.safetensors"]


def test_the_file_says_what_it_was_trained_on(tmp_path: Path) -> None:
    path = pretrained(tmp_path / "trunk.safetensors").path
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["trained_on"] == "split-fashion-mini"
    assert about["network"] == "resnet18 of width 1"
    assert about["steps"] == "10 of batch 50, lr 0.06, seed 0"
    assert 0 < float(about["test_accuracy"]) <= 1


def test_pretrained_weights_freeze_the_trunk_from_the_start_and_keep_a_fresh_head(tmp_path: Path) -> None:
    path = pretrained(tmp_path / "trunk.safetensors").path
    sources, label = Sources(weights=str(path)), weights_label(str(path))
    loaded = build(RunSpec(method="tail-sgd", width=1, weights=label), Unwatched(), sources)
    assert loaded.method.trunk is not None
    assert loaded.weights is not None
    assert torch.equal(loaded.method.network.conv1.weight, load_file(path)["conv1.weight"])  # type: ignore[union-attr]
    drawn = build(RunSpec(method="tail-sgd", width=1), Unwatched())
    assert drawn.method.trunk is None
    heads = (loaded.method.network.fc.weight, drawn.method.network.fc.weight)  # type: ignore[union-attr]
    assert torch.equal(*heads), "the file's has learnt the stream's classes all at once"
    other_head = RunSpec(method="tail-sgd", width=1, weights=label, stream="synthetic-cifar100")
    assert "fc.weight" in str(build(other_head, Unwatched(), sources).weights)


def test_a_run_never_starts_from_a_file_that_changed(tmp_path: Path) -> None:
    path = pretrained(tmp_path / "trunk.safetensors").path
    run = RunSpec(method="tail-sgd", width=1, weights=weights_label(str(path)))
    with pytest.raises(UsageError, match="--weights FILE"):
        build(run, Unwatched())
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match=r"trunk\.safetensors@\w+' but the run starts from 'trunk\.safetensors@"):
        build(run, Unwatched(), Sources(weights=str(path)))


def test_a_folder_of_images_makes_a_trunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs", "eels"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
        (tmp_path / "photos" / name / "20.webp").touch()
    done = pretrained(tmp_path / "trunk.safetensors", folder=tmp_path / "photos", batch_size=18, epochs=2)
    assert done.steps == 6
    said = capsys.readouterr().err
    assert f"clmem: {tmp_path / 'photos'}: 54 + 6 images of 3 classes, one task; left out 3 files" in said
    assert "3 .webp (such as cats/20.webp)" in said
    assert load_file(done.path)["fc.weight"].shape == (3, 8)
    default = method_class("joint").Config().lr
    assert method_config(spec()).lr != default, "tuned on another data set"
    with safe_open(done.path, "pt") as file:
        assert f"lr {default}," in file.metadata()["steps"]


def test_weights_that_could_not_be_written_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clmem.harness.learning.pretrain.build", lambda *_: pytest.fail("the work began"))
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="is no file, so the weights cannot take its place"):
            pretrained(out)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "trunk.safetensors", Path("/proc/clmem/trunk.safetensors"), tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=r"cannot write weights to .*; give another path"):
            pretrained(out)


def test_a_tilde_in_the_path_of_weights_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained(Path("~/trunk.safetensors"), steps_per_task=1).path == tmp_path / "trunk.safetensors"
    assert (tmp_path / "trunk.safetensors").is_file()
