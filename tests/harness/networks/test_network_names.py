"""Networks by name: those of other packages too, of which the broken ones harm nobody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from clmem.harness.errors import UsageError
from clmem.harness.learning.registry import method_config
from clmem.harness.networks.registry import (
    OWN,
    architecture,
    build_network,
    network_descriptions,
    network_digests,
)
from clmem.harness.results.source import modules_digest
from clmem.harness.runs.checks import check_spec
from clmem.harness.specs.run import RunSpec

Install = Callable[..., None]
NAMES = [*(name for name in OWN if name != "torchvision"), "torchvision:mobilenet_v3_small", "torchvision:resnet18"]
GOOD = (
    "from clmem.harness.networks.mlp import PERCEPTRON\nfrom clmem.harness.networks.architecture import Family\n"
    "FAMILY = Family('several', lambda: ['small', 'large'], lambda model: PERCEPTRON)\n"
)


def refusal(name: str, width: int = 64, side: int = 32) -> str:
    with pytest.raises(UsageError) as refused:
        build_network(name, num_classes=4, width=width, seed=0, image_shape=(3, side, side))
    said = str(refused.value)
    assert "\n" not in said
    return said


def width_of(name: str) -> int:
    return architecture(name).narrowest(2)


@pytest.mark.parametrize("name", NAMES)
def test_any_network_can_be_split_at_every_boundary(name: str) -> None:
    network = build_network(name, num_classes=4, width=width_of(name), seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    whole = network(images)
    for boundary in network.boundaries[1:]:
        halves = network.run(network.run(images, stop=boundary), start=boundary)
        torch.testing.assert_close(halves, whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_trunk_and_tail_hold_every_parameter_once(name: str) -> None:
    network = build_network(name, num_classes=4, width=width_of(name), seed=0)
    assert tuple(network.boundaries) == architecture(name).stages.names
    for boundary in network.boundaries:
        trunk = {id(p) for module in network.stage_modules(boundary) for p in module.parameters()}
        x = network.eval().run(torch.randn(2, 3, 32, 32), stop=boundary).detach()
        network.zero_grad(set_to_none=True)
        network.run(x, start=boundary).sum().backward()
        learns = {id(p) for p in network.parameters() if p.grad is not None}
        assert not trunk & learns
        assert trunk | learns == {id(p) for p in network.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_module_that_makes_the_logits(name: str) -> None:
    network = build_network(name, num_classes=4, width=width_of(name), seed=0)
    assert network.get_submodule(network.head_stage).weight.shape[0] == 4  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    "model", ["mobilenet_v3_small", "resnet18", "densenet121", "squeezenet1_1", "swin_t", "regnet_y_400mf"]
)
def test_a_torchvision_model_computes_what_it_did(model: str) -> None:
    theirs = torchvision.models.get_model(model, weights=None, num_classes=4).eval()
    ours = build_network(f"torchvision:{model}", num_classes=4, width=64, seed=0, image_shape=(3, 64, 64)).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_mobilenet_v2_takes_torchvisions_weights() -> None:
    theirs = torchvision.models.mobilenet_v2(weights=None, num_classes=10)
    ours = build_network("mobilenet-v2", num_classes=10, width=64, seed=0)
    ours.load_state_dict(theirs.state_dict())
    assert sum(parameter.numel() for parameter in ours.parameters()) == 2_236_682


def test_an_mlp_on_digits_is_784_100_100() -> None:
    network = build_network("mlp", num_classes=10, width=64, seed=0, image_shape=(1, 28, 28))
    assert sum(parameter.numel() for parameter in network.parameters()) == 784 * 100 + 100 + 100 * 100 + 100 + 1010


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet81", "there is no network 'resnet81': did you mean 'resnet18'"),
        ("torchvision", "models; name one of them, such as --network torchvision:alexnet"),
        ("torchvision:mobilenet_v9", "has no model 'mobilenet_v9': did you mean 'mobilenet_v"),
        ("torchvision:vit_b_16", "is no chain of stages"),
        ("torchvision:swin_v2_t", "cannot be split into stages"),
        ("torchvision:alexnet", "cannot take images of 3 x 32 x 32"),
        ("resnet18:small", "stands for itself and has no models"),
        ("\x1b[2J", "there is no network"),
    ],
)
def test_an_unusable_name_is_one_sentence(name: str, said: str) -> None:
    assert said in refusal(name)


def test_a_network_of_one_width_refuses_another() -> None:
    assert "has one width, which is called 64, but width 16 was asked for" in refusal("torchvision:resnet18", width=16)


def test_a_run_of_a_models_name_has_a_safe_file_name() -> None:
    spec = RunSpec(method="sgd", network="torchvision:mobilenet_v3_small", stream="synthetic-32px", batch_size=4)
    check_spec(spec)
    assert ":" not in spec.run_id
    assert "/" not in RunSpec(method="sgd", network="../up").run_id


@pytest.mark.parametrize(
    ("network", "stages"),
    [
        ("resnet18", ("layer4", "fc", "layer3.1")),
        ("resnet18-imagenet", ("layer4", "fc", "layer3.1")),
        ("mobilenet-v2", ("features.14", "classifier.1", "features.13")),
        ("mlp", ("hidden2", "head", "hidden1")),
        ("torchvision:mobilenet_v3_small", ("features.9", "classifier.3", "features.8")),
    ],
)
def test_default_boundaries_are_the_networks_own(network: str, stages: tuple[str, ...]) -> None:
    asked = (("lightcl", "boundary"), ("head-only", "boundary"), ("lightcl-sparse", "first_boundary"))
    assert (
        tuple(method_config(RunSpec(method=name, network=network)).model_dump()[key] for name, key in asked) == stages
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise SystemExit(3)", "network 'bad' cannot be imported from 'bad_net:NET' (SystemExit: 3"),
        ("NET = 3", "is neither an Architecture nor a Family"),
        (f"{GOOD}from dataclasses import replace\nNET = replace(PERCEPTRON, build=lambda **_: 1 / 0)", "ZeroDivision"),
        (f"{GOOD}from dataclasses import replace\nNET = replace(PERCEPTRON, build=lambda **_: 1)", "of type int"),
    ],
)
def test_a_broken_network_is_one_sentence_and_others_work(source: str, said: str, install: Install) -> None:
    install({"bad_net.py": source, "good_net.py": GOOD}, {"bad": "bad_net:NET", "good": "good_net:FAMILY"}, "nets",
            "clmem.networks")  # fmt: skip
    assert said in refusal("bad")
    assert {"bad", "good:<model>", "resnet18"} <= set(network_descriptions())
    assert build_network("good:small", num_classes=2, width=64, seed=0).boundaries == ["hidden1", "hidden2", "head"]
    assert "'good' has no model 'huge': known are large, small" in refusal("good:huge")


OWN = """
from dataclasses import replace
from torch import nn
from clmem.harness.networks.architecture import Architecture
from clmem.harness.networks.staged import Stages
from clmem.methods.base import Network

class Small(Network):
    tail_stage = "head"
    boundaries = ["body", "HEAD"]
    feature_relus = ["RELU"]

    def __init__(self, classes):
        super().__init__()
        self.body, self.relu, self.head = nn.Flatten(), nn.ReLU(), nn.Linear(3072, classes)

    def run(self, x, start=None, stop=None):
        x = self.relu(self.body(x)) if start is None else x
        return self.head(x) if stop is None else x

NET = Architecture("small", lambda *, num_classes, **_: Small(num_classes), Stages(("body", "STAGE"), tail="STAGE"))
"""


@pytest.mark.parametrize(
    ("head", "stage", "relu", "said"),
    [
        ("head", "fc", "relu", "with the stages body, fc, but has the boundaries body, head; give both the same ones"),
        ("fc", "fc", "relu", "has no module 'fc', which its last stage names"),
        ("head", "head", "relu9", "has no module 'relu9', which feature_relus names"),
        ("head", "head", "relu", ""),
    ],
)
def test_what_a_network_says_of_itself_is_compared(
    head: str, stage: str, relu: str, said: str, install: Install
) -> None:
    source = OWN.replace("HEAD", head).replace("STAGE", stage).replace("RELU", relu)
    install({"own_net.py": source}, {"own": "own_net:NET"}, "own", "clmem.networks")
    if said:
        assert said in refusal("own")
    else:
        network = build_network("own", num_classes=2, width=64, seed=0)
        assert network(torch.zeros(4, 3, 32, 32)).shape == (4, 2), "forward is run unless a network has its own"


def test_looking_a_name_up_imports_no_other_network() -> None:
    code = (
        "import sys\nfrom clmem.harness.networks.registry import NETWORKS, architecture\n"
        "NETWORKS.names()\nassert 'torch' not in sys.modules\narchitecture('mlp')\n"
        "assert 'clmem.harness.networks.torchvision_models' not in sys.modules\n"
        "assert 'clmem.harness.networks.resnet18' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_source_of_anothers_network_has_a_digest(install: Install, tmp_path: Path) -> None:
    install({"their_net.py": GOOD}, {"theirs": "their_net:FAMILY"}, "theirs", "clmem.networks")

    def after_writing(source: str) -> dict[str, str]:
        (tmp_path / "theirs" / "their_net.py").write_text(source)
        architecture.cache_clear()
        modules_digest.cache_clear()
        return network_digests("theirs:small")

    first = after_writing(GOOD)
    assert set(first) == {"network"}
    assert after_writing(GOOD) == first
    assert after_writing(f"{GOOD}# another\n") != first
    assert network_digests("mlp") == network_digests("torchvision:resnet18") == {}
