"""Weights come in under the names people use, all or nothing, and no file ever gets to run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clmem.harness.errors import UsageError
from clmem.harness.memory.watching.recorder import LogRecorder
from clmem.harness.networks.registry import build_network
from clmem.harness.networks.resnet18 import ResNet18
from clmem.harness.networks.weights import load_weights, save_weights
from clmem.harness.specs.run import weights_label
from clmem.methods.base import Network

State = dict[str, Tensor]


def network(seed: int = 0, name: str = "resnet18", classes: int = 10, width: int = 2) -> ResNet18:
    return build_network(name, num_classes=classes, width=width, seed=seed)


def state(**options: Any) -> State:
    """Return the values of a network that no test loads into, as if it had been trained."""
    return dict(used(network(seed=1, **options)).state_dict())


def used(source: ResNet18) -> ResNet18:
    """Give the batch norms running statistics that no fresh network has."""
    for name, buffer in source.named_buffers():
        buffer.fill_(len(name))
    return source


def saved(folder: Path, content: object, **options: Any) -> Path:
    path = folder / "weights.pt"
    torch.save(content, path, **options)
    return path


def assert_holds(loaded: nn.Module, expected: Mapping[str, Tensor]) -> None:
    actual = loaded.state_dict()
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def refusal(path: Path, into: Network | None = None) -> str:
    """Return the sentence with which the file is refused, having changed nothing."""
    into = into if into is not None else network()
    before = {name: tensor.clone() for name, tensor in into.state_dict().items()}
    with pytest.raises(UsageError) as refused:
        load_weights(into, path)
    if not next(into.parameters()).is_meta:
        assert_holds(into, before)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def as_lightcl(values: State) -> State:
    renamed = {}
    for name, tensor in values.items():
        name = re.sub(r"^layer4\.(\d)\.", lambda match: f"layer4_{int(match[1]) + 1}.0.", name)
        renamed[name.replace("fc.", "linear.").replace(".downsample.", ".shortcut.")] = tensor
    return renamed


def as_cifar(values: State) -> State:
    return {name.replace("fc.", "linear.").replace(".downsample.", ".shortcut."): t for name, t in values.items()}


def as_split_everywhere(values: State) -> State:
    def split(match: re.Match[str]) -> str:
        return f"layer{match[1]}_{int(match[2]) + 1}.0."

    return {re.sub(r"^layer(\d)\.(\d)\.", split, name): tensor for name, tensor in values.items()}


@pytest.mark.parametrize(
    "rename",
    [
        dict,
        as_lightcl,
        as_cifar,
        as_split_everywhere,
        lambda values: {f"module.{name}": tensor for name, tensor in values.items()},
        lambda values: {f"module.{name}": tensor for name, tensor in as_lightcl(values).items()},
    ],
    ids=["torchvision", "lightcl", "cifar", "split-everywhere", "data-parallel", "data-parallel-lightcl"],
)
def test_every_naming_scheme_fills_the_whole_network(rename: Callable[[State], State], tmp_path: Path) -> None:
    values, into = state(), network()
    renamed = rename(values)
    assert len(renamed) == len(values)
    loaded = load_weights(into, saved(tmp_path, renamed))
    assert_holds(into, values)
    assert loaded.names == tuple(values)
    assert not loaded.left_out
    assert not loaded.converted


@pytest.mark.parametrize(
    "wrap",
    [
        lambda values: {"state_dict": values, "epoch": 3, "best_accuracy": 0.5},
        lambda values: {"model": values},
        lambda values: {"net": values, "acc": 91.0},
        lambda values: {"model": {"state_dict": values}},
    ],
    ids=["state_dict", "model", "net", "nested"],
)
def test_a_state_dict_is_found_among_what_training_scripts_save(
    wrap: Callable[[State], object], tmp_path: Path
) -> None:
    values, into = state(), network()
    load_weights(into, saved(tmp_path, wrap(values)))
    assert_holds(into, values)


def test_the_format_from_before_zip_files_is_read(tmp_path: Path) -> None:
    values, into = state(), network()
    load_weights(into, saved(tmp_path, values, _use_new_zipfile_serialization=False))
    assert_holds(into, values)


def test_torchvisions_names_are_ours_and_its_weights_load_fully(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = build_network("resnet18-imagenet", num_classes=1000, width=64, seed=0).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert sum(parameter.numel() for parameter in ours.parameters()) == 11_689_512
    loaded = load_weights(ours, saved(tmp_path, theirs.state_dict()))
    assert not loaded.left_out
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_the_imagenet_stem_survives_small_images_and_is_part_of_the_trunk() -> None:
    small = network(name="resnet18-imagenet").eval()
    images = torch.randn(2, 3, 32, 32)
    whole = small(images)
    assert whole.shape == (2, 10)
    torch.testing.assert_close(small.run(small.run(images, stop="layer2"), start="layer2"), whole, rtol=0, atol=0)
    assert small.maxpool in small.stage_modules("layer1")
    assert small.stage_modules("stem") == []


class Mischief:
    """Pickles as a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "protocol 0", "tar", "named safetensors"])
def test_a_file_that_brings_code_is_refused_and_the_code_does_not_run(kind: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / ("weights.safetensors" if kind == "named safetensors" else "weights.pt")
    content = {**state(), "extra": Mischief(trace)}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        plain = pickle.dumps(Mischief(trace), protocol=0 if kind == "protocol 0" else 2)
        path.write_bytes(tar_of(plain) if kind == "tar" else plain)
    message = refusal(path)
    assert not trace.exists()
    if kind in ("zip", "legacy"):
        assert "posix.mkdir" in message
        assert "state_dict()" in message
    # The same bytes do run code when unpickled, so that it is the refusal that prevented it.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_network_is_refused_with_its_class_and_what_to_do(zipped: bool, tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, network(), _use_new_zipfile_serialization=zipped))
    assert "clmem.harness.networks.resnet18.ResNet18" in message
    assert "torch.save(network.state_dict(), file), or as safetensors" in message


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, which is why such files will be old ones
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    assert "TorchScript" in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02garbage", b"PK\x03\x04garbage"])
def test_a_file_of_something_else_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search("no whole weights file|is damaged or holds", refusal(tmp_path / name))


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(state(), path)
    else:
        save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "download it again" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(1)], "a list"),
        ({"epoch": 3}, "a dict with the keys epoch"),
        ({"model": {}}, "a dict with nothing in it"),
    ],
)
def test_a_file_without_a_state_dict_is_refused_with_what_it_holds(content: object, said: str, tmp_path: Path) -> None:
    assert said in refusal(saved(tmp_path, content))


def test_missing_and_further_names_are_named_and_counted(tmp_path: Path) -> None:
    values = state()
    for name in ("layer2.0.conv1.weight", "layer3.0.bn1.bias", "layer4.0.bn1.bias", "layer4.1.bn2.weight"):
        del values[name]
    values["layer9.extra"] = torch.ones(1)
    message = refusal(saved(tmp_path, {f"module.{name}": tensor for name, tensor in values.items()}))
    assert "lacks 4 names (layer2.0.conv1.weight, layer3.0.bn1.bias, layer4.0.bn1.bias, layer4.1.bn2.weight)" in message
    assert "has further 1 name (module.layer9.extra)" in message


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    values = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
    assert "lacks 2 names (fc.weight, fc.bias)" in refusal(saved(tmp_path, values))
    assert re.search(
        r"lacks \d+ names \(conv1.weight, (\S+, ){6}\S+ and \d+ more\)",
        refusal(saved(tmp_path, {"fc.bias": torch.zeros(10)})),
    )


def test_a_trunk_alone_is_enough_where_the_head_stays_fresh_anyway(tmp_path: Path) -> None:
    values = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
    into, fresh = network(), network()
    loaded = load_weights(into, saved(tmp_path, values), head=False)
    assert_holds(into, {**values, "fc.weight": fresh.fc.weight, "fc.bias": fresh.fc.bias})
    assert loaded.left_out == {"fc.weight": "not in the file", "fc.bias": "not in the file"}


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    values = state()
    values["linear.weight"] = values["fc.weight"]
    assert "fc.weight twice, as fc.weight and as linear.weight" in refusal(saved(tmp_path, values))


def test_counts_of_batches_may_be_missing(tmp_path: Path) -> None:
    values = {name: tensor for name, tensor in state().items() if not name.endswith("num_batches_tracked")}
    into = network()
    loaded = load_weights(into, saved(tmp_path, values))
    assert set(loaded.names) == set(values)
    assert {name.rsplit(".", 1)[1] for name in loaded.left_out} == {"num_batches_tracked"}
    assert set(loaded.left_out.values()) == {"not in the file"}
    assert torch.equal(into.bn1.weight, values["bn1.weight"])


def test_a_head_of_another_number_of_classes_stays_fresh_and_both_numbers_are_said(tmp_path: Path) -> None:
    values, into, fresh = state(classes=100), network(), network()
    loaded = load_weights(into, saved(tmp_path, as_lightcl(values)))
    assert_holds(into, {**values, "fc.weight": fresh.fc.weight, "fc.bias": fresh.fc.bias})
    assert set(loaded.left_out) == {"fc.weight", "fc.bias"}
    assert loaded.left_out["fc.weight"] == "the file's head has 100 classes, this network's 10"
    assert loaded.describe() == f"{len(values) - 2} tensors loaded; left out fc.weight, fc.bias (" + (
        "the file's head has 100 classes, this network's 10)"
    )


def test_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    values = state()
    values["layer3.0.bn1.bias"] = torch.ones(9)
    assert "layer3.0.bn1.bias is 9 in" in (message := refusal(saved(tmp_path, values)))
    assert "but 8 in this network" in message


def test_imagenets_stem_points_to_the_network_that_has_it(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, state(name="resnet18-imagenet")))
    assert message.startswith("conv1.weight is 2 x 3 x 7 x 7 in ")
    assert "but 2 x 3 x 3 x 3 in this network" in message
    assert "--network resnet18-imagenet" in message


def test_the_small_stem_points_to_the_network_that_has_it(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path, state()), network(name="resnet18-imagenet")).endswith("--network resnet18")


def test_another_width_is_said(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path, state(width=3))).endswith("--width 3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    values = state()
    values["layer1.0.bn1.weight"] = torch.tensor([1.0, value])
    assert "layer1.0.bn1.weight" in (message := refusal(saved(tmp_path, values)))
    assert "1 of 2 values" in message


def test_values_too_large_for_the_network_are_refused(tmp_path: Path) -> None:
    values = state()
    values["bn1.bias"] = torch.tensor([1.0, 1e300], dtype=torch.float64)
    assert "infinite in float32" in refusal(saved(tmp_path, values))


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_quantised_and_valueless_weights_are_refused(tmp_path: Path) -> None:
    values = state()
    assert "int8" in refusal(saved(tmp_path, {**values, "bn1.bias": torch.ones(2, dtype=torch.int8)}))
    sparse = values["conv1.weight"].to_sparse()
    assert "sparse_coo" in refusal(saved(tmp_path, {**values, "conv1.weight": sparse}))
    assert "without values" in refusal(saved(tmp_path, {**values, "bn1.bias": torch.ones(2, device="meta")}))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_recorded(dtype: torch.dtype, safe: bool, tmp_path: Path) -> None:
    values = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state().items()}
    path = tmp_path / "weights"
    if safe:
        save_file(values, path)
    else:
        torch.save(values, path)
    into = network()
    loaded = load_weights(into, path)
    assert into.conv1.weight.dtype == torch.float32
    assert torch.equal(into.conv1.weight, values["conv1.weight"].float())
    assert loaded.converted["conv1.weight"] == str(dtype).removeprefix("torch.")
    assert "bn1.num_batches_tracked" not in loaded.converted


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "torch"])
def test_a_network_without_memory_is_checked_and_stays_without(safe: bool, tmp_path: Path) -> None:
    values = state(classes=20)
    path = tmp_path / "weights"
    if safe:
        save_file(values, path)
    else:
        torch.save(values, path)
    with torch.device("meta"):
        empty = network()
        loaded = load_weights(empty, path)
    assert loaded == load_weights(network(), path)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    del values["bn1.weight"]
    torch.save(values, path)
    with torch.device("meta"):
        assert "bn1.weight" in refusal(path, empty)


def test_loading_keeps_the_networks_memory(tmp_path: Path) -> None:
    into = network()
    before = {name: tensor.data_ptr() for name, tensor in into.state_dict().items()}
    load_weights(into, saved(tmp_path, state()))
    assert {name: tensor.data_ptr() for name, tensor in into.state_dict().items()} == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in into.parameters())


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "torch"])
def test_loading_leaves_the_allocators_log_in_order_and_no_memory_behind(safe: bool, tmp_path: Path) -> None:
    path = save_weights(network(), tmp_path / "weights", {}) if safe else saved(tmp_path, state())
    into, recorder = network(), LogRecorder()
    recorder.start()
    load_weights(into, path)
    log = recorder.stop()
    sizes = [event.size_bytes for event in log.events]
    totals = [event.total_bytes for event in log.events]
    assert sum(sizes) == 0
    assert max(sizes) > 0
    assert [after - before for before, after in pairwise(totals)] == sizes[1:]


def test_saved_weights_come_back_bit_by_bit_with_their_metadata(tmp_path: Path) -> None:
    source, into = used(network(seed=4)), network()
    metadata = {"stream": "image-folder", "accuracy": "0.91", "é": "ü"}
    path = save_weights(source, tmp_path / "new" / "weights.safetensors", metadata)
    loaded = load_weights(into, path)
    assert_holds(into, source.state_dict())
    assert loaded.metadata == metadata
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    metadata = {f"key {number}": str(number) for number in range(9)}
    first, second = (save_weights(network(), tmp_path / name, metadata) for name in "ab")
    other = save_weights(network(seed=1), tmp_path / "c", metadata)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights(network(), tmp_path / "weights.safetensors", {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"weights\.safetensors: No space left"):
        save_weights(network(seed=1), path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


WRAPPERS = [
    "_orig_mod.", "module.", "backbone.", "model.", "network.", "encoder.", "resnet.",
    "module._orig_mod.", "a.b.c.d.",
]  # fmt: skip


@pytest.mark.parametrize("rename", [dict, as_lightcl], ids=["torchvision", "lightcl"])
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_whatever_wraps_every_name_is_taken_off(prefix: str, rename: Callable[[State], State], tmp_path: Path) -> None:
    values, into = state(), network()
    load_weights(into, saved(tmp_path, {prefix + name: tensor for name, tensor in rename(values).items()}))
    assert_holds(into, values)


def test_a_head_beside_a_wrapped_trunk_is_taken_with_it(tmp_path: Path) -> None:
    values, into = state(), network()
    wrapped = {name if name.startswith("fc.") else f"backbone.{name}": tensor for name, tensor in values.items()}
    load_weights(into, saved(tmp_path, wrapped))
    assert_holds(into, values)


def test_a_network_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    values = state()
    twice = {f"encoder_{one}.{name}": tensor for one in "qk" for name, tensor in values.items()}
    shown = "holds the network twice, as encoder_q.conv1.weight and as encoder_k.conv1.weight"
    assert shown in refusal(saved(tmp_path, twice))
    averaged = {**values, **{f"average.{name}": tensor for name, tensor in values.items()}}
    assert "twice, as conv1.weight and as average.conv1.weight" in refusal(saved(tmp_path, averaged))


def test_a_trunk_that_is_there_twice_is_refused_whatever_the_heads(tmp_path: Path) -> None:
    values = state()
    trunk = {name: tensor for name, tensor in values.items() if not name.startswith("fc.")}
    both = {f"student.{name}": t for name, t in values.items()} | {f"teacher.{name}": t for name, t in trunk.items()}
    assert "as student.conv1.weight and as teacher.conv1.weight" in refusal(saved(tmp_path, both))


def test_a_projection_head_beside_the_network_is_left_out_by_name(tmp_path: Path) -> None:
    values, into = state(), network()
    beside = {"projector.0.weight": torch.ones(3, 3), "bn1.weight": torch.ones(5), "n_averaged": torch.tensor(7)}
    held = {f"module.{name}": tensor for name, tensor in values.items()} | beside
    loaded = load_weights(into, saved(tmp_path, held))
    assert_holds(into, values)
    assert loaded.beside == tuple(beside)
    assert "left out projector.0.weight, bn1.weight, n_averaged (in the file, but not" in loaded.describe()


def test_a_projection_head_excuses_no_missing_name(tmp_path: Path) -> None:
    held = {f"backbone.{name}": tensor for name, tensor in state().items() if name != "layer2.0.bn1.bias"}
    assert "lacks 1 name (layer2.0.bn1.bias)" in refusal(saved(tmp_path, {**held, "projector.bias": torch.ones(1)}))


def test_a_projection_head_in_the_heads_place_leaves_a_trunk(tmp_path: Path) -> None:
    values, into = state(), network()
    held = {f"backbone.{name}": tensor for name, tensor in values.items() if not name.startswith("fc.")}
    held |= {"backbone.fc.0.weight": torch.ones(3, 16), "backbone.fc.2.weight": torch.ones(2, 3)}
    path = saved(tmp_path, held)
    loaded = load_weights(into, path, head=False)
    assert torch.equal(into.conv1.weight, values["conv1.weight"])
    assert loaded.beside == ("backbone.fc.0.weight", "backbone.fc.2.weight")
    assert "lacks 2 names (fc.weight, fc.bias)" in refusal(path)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict_ema", "params", "network", "ema", "teacher"])
def test_every_usual_container_is_opened(key: str, tmp_path: Path) -> None:
    values, into = state(), network()
    load_weights(into, saved(tmp_path, {key: values, "epoch": 3, "optimizer": {"state": {}}}))
    assert_holds(into, values)


def test_two_state_dicts_in_one_file_are_refused_by_name(tmp_path: Path) -> None:
    both = {"state_dict": state(), "state_dict_ema": state(), "model": {"name": "resnet18"}}
    assert "holds 2 state dicts (state_dict, state_dict_ema)" in refusal(saved(tmp_path, both))


def test_of_several_state_dicts_the_one_of_the_network_counts(tmp_path: Path) -> None:
    values, into = state(), network()
    load_weights(into, saved(tmp_path, {"model": values, "ema": {"decay": torch.ones(1)}, "teacher": {}}))
    assert_holds(into, values)


@pytest.mark.parametrize("keys", [["model"], ["model", "net", "ema", "state_dict"]])
def test_a_container_that_holds_itself_is_refused(keys: list[str], tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless.update(dict.fromkeys(keys, endless))
    assert "holds no state dict of named tensors" in refusal(saved(tmp_path, endless))


def test_a_state_dict_under_two_keys_is_one(tmp_path: Path) -> None:
    values, into = state(), network()
    load_weights(into, saved(tmp_path, {"model": values, "state_dict": values}))
    assert_holds(into, values)


@pytest.mark.parametrize("shape", [[2**62], [2**40, 2**40], [-1], [0, 2**63], [2**31, 2]])
def test_a_safetensors_header_of_huge_shapes_is_refused(shape: list[int], tmp_path: Path) -> None:
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "no whole weights file" in refusal(path)


@pytest.mark.parametrize("length", [2**32, 2**63, 2**64 - 1])
def test_a_safetensors_header_of_huge_length_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(64))
    assert "no whole weights file" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_tensor_far_larger_than_its_data_is_refused(zipped: bool, tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**20, 2**20)  # four terabytes in four bytes
    values = {**state(), "conv1.weight": huge, "layer1.0.conv1.weight": huge}
    path = saved(tmp_path, values, _use_new_zipfile_serialization=zipped)
    assert "conv1.weight is 1048576 x 1048576 in" in refusal(path)


def test_a_home_folder_and_a_nul_in_a_path_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, into = state(), network()
    saved(tmp_path, values)
    monkeypatch.setenv("HOME", str(tmp_path))
    load_weights(into, "~/weights.pt")
    assert_holds(into, values)
    for wrong in ("~nobody-of-this-name/weights.pt", "a\0b.pt"):
        with pytest.raises(UsageError, match=r"home folder that this system|NUL character"):
            load_weights(into, wrong)


def test_a_damaged_tensor_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path, state())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda one: one.file_size)
        middle = member.header_offset + 200 + member.file_size // 2
    content[middle] ^= 1
    path.write_bytes(bytes(content))
    assert "Bad CRC-32" in refusal(path)


def test_a_small_file_of_much_content_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    plain = saved(tmp_path, {"x": torch.zeros(2**25)})
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for member in given.infolist():
            made.writestr(member.filename, given.read(member))
    assert packed.stat().st_size < 2**20
    assert "more than weights of this network can be" in refusal(packed)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_far_larger_than_the_network_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "holds 1,099,511,627,776 B, more than weights of this network can be" in refusal(path)


def test_weights_larger_than_any_are_not_hashed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match="has 1,099,511,627,776 B, more than the 17,179,869,184"):
        weights_label(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    assert "it is no regular file" in refusal(tmp_path / "weights.pt")


def test_names_from_a_file_make_one_short_line(tmp_path: Path) -> None:
    hostile = {f"\x1b[31m\n{number}" + "x" * 10_000: torch.ones(1) for number in range(50)}
    message = refusal(saved(tmp_path, hostile))
    assert "\x1b" not in message
    assert len(message) < 3000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["zip", "legacy", "safetensors"]))
def test_a_mutated_file_is_loaded_or_refused(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, min(len(content), 20_000)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path.write_bytes(bytes(content))
    with suppress(UsageError):
        load_weights(network(), path)
