"""Claim files: what they must hold, and the published cells recomputed from them."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from clmem.harness.errors import UsageError
from clmem.harness.networks.resnet18 import ResNet18
from clmem.methods.parts.columns import Column
from clmem.methods.parts.sparse_training import masked_weights
from clmem.reports.claims.claim import FOLDER, Claim, Fix, FormulaLedger, Quantity, claim_names, load_claim
from clmem.reports.claims.tables import headline_ratio, recomputed, within_tolerance

MIB = 2**20
CLAIMS = claim_names()


@pytest.fixture(scope="module")
def lightcl() -> Claim:
    return load_claim("lightcl")


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("quantity", get_args(Quantity))
def test_every_published_cell_is_recomputed_within_the_tolerance(name: str, quantity: Quantity) -> None:
    hit, known = within_tolerance(load_claim(name), quantity)
    assert hit == known > 0


def test_the_lightcl_table_is_there_in_full(lightcl: Claim) -> None:
    assert [within_tolerance(lightcl, quantity)[1] for quantity in get_args(Quantity)] == [22, 22]
    assert (lightcl.tolerance.memory, lightcl.tolerance.flops) == (0.05, 0.032)
    kinds = [row.memory.kind for row in lightcl.rows for _ in row.published]
    assert {kind: kinds.count(kind) for kind in "ABC"} == {"A": 16, "B": 4, "C": 2}
    accuracies = [cells.class_il for row in lightcl.rows for cells in row.published.values()]
    assert accuracies.count(None) == 2, "PNN has no class-IL accuracy"
    assert headline_ratio(lightcl) == pytest.approx(lightcl.headline.value, abs=0.01)


@pytest.mark.parametrize(
    ("fix", "row", "cifar", "tiny"),
    [
        ("ewc-two-copies", "ewc", 238.7, 443.1),
        ("pnn-columns", "pnn", 323.9, 741.5),
        ("fdr-two-passes", "fdr", 153.4, 357.9),
        ("lightcl-boundary", "lightcl", 82.4, 100.0),
        ("sparcl-dense", "sparcl-er", 267.2, 567.5),
        ("lightcl-trunk", "lightcl", 92.8, 187.5),
        ("lightcl-trunk", "lightcl-sparse", 25.0, 87.1),
    ],
)
def test_a_correction_moves_its_row(lightcl: Claim, fix: str, row: str, cifar: float, tiny: float) -> None:
    for dataset, expected in (("cifar10", cifar), ("tinyimagenet", tiny)):
        corrected = FormulaLedger(lightcl, dataset, (lightcl.fix(fix),))
        assert corrected.value(lightcl.row(row), "memory") == pytest.approx(expected, abs=0.06)
        assert corrected.value(lightcl.row("sgd"), "memory") == FormulaLedger(lightcl, dataset).value(
            lightcl.row("sgd"), "memory"
        )


def test_every_correction_changes_something_and_all_of_them_apply_together(lightcl: Claim) -> None:
    for fix in lightcl.fixes:
        moved = [
            abs(
                FormulaLedger(lightcl, name, (fix,)).value(row, "memory")
                - FormulaLedger(lightcl, name).value(row, "memory")
            )
            for name in lightcl.datasets
            for row in lightcl.rows
        ]
        assert max(moved) > 0.05, fix.id
    together = FormulaLedger(lightcl, "tinyimagenet", tuple(lightcl.fixes))
    dense, sparse = (together.value(lightcl.row(name), "memory") for name in ("lightcl", "lightcl-sparse"))
    assert dense - sparse == pytest.approx(0.75 * 42.997, abs=0.01), "masks of four bytes against masks of one"


def saved_per_sample(start: str | None, side: int) -> float:
    """Return the MiB per sample that autograd saves in ResNet-18 at width 64 from a stage on."""
    network, sizes = ResNet18(10, width=64), []
    known = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    for count in (2, 4):
        images = torch.zeros(count, 3, side, side)
        held: dict[int, Tensor] = {}
        with torch.no_grad():
            begin = images if start is None else network.run(images, stop=start)

        def keep(tensor: Tensor, held: dict[int, Tensor] = held) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in known:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            nn.functional.cross_entropy(network.run(begin, start=start), torch.zeros(count, dtype=torch.long))
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in held.values()))
    frozen = [] if start is None else [part for stage in network.stage_modules(start) for part in stage.modules()]
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d) and part not in frozen]
    statistics = 8 * sum(norm.num_features for norm in norms)  # mean and deviation of each channel
    assert 2 * sizes[0] - sizes[1] == statistics + 4, "and the sum of weights: no more is the same for every batch"
    return (sizes[1] - sizes[0]) / 2 / MIB


@pytest.mark.parametrize("dataset", ["cifar10", "tinyimagenet"])
@pytest.mark.parametrize(
    ("name", "start"), [("saved", None), ("saved_layer31", "layer3.1"), ("saved_layer4", "layer4")]
)
def test_saved_activations_are_those_of_our_network(lightcl: Claim, dataset: str, name: str, start: str | None) -> None:
    names = lightcl.datasets[dataset].names
    side = 32 if names["k"] == 1 else 64
    assert saved_per_sample(start, side) == pytest.approx(float(names[name]), abs=1e-4)
    if name == "saved":
        assert load_claim("sparcl").datasets[dataset].names[name] == names[name]


@pytest.mark.parametrize(("dataset", "classes", "tasks"), [("cifar10", 10, 5), ("tinyimagenet", 200, 10)])
def test_laterals_are_those_of_our_progressive_network(lightcl: Claim, dataset: str, classes: int, tasks: int) -> None:
    with torch.device("meta"):
        columns: list[ResNet18 | Column] = [ResNet18(classes, width=64)]
        sizes = []
        for _ in range(1, tasks):
            column = Column(columns, ResNet18(classes, width=64), ResNet18(classes, width=64))
            own = sum(parameter.numel() for parameter in column.body.parameters())
            sizes.append(4 * (sum(parameter.numel() for parameter in column.parameters()) - own) / MIB)
            columns.append(column)
    gradients = sizes[-1]
    assert sum(sizes) + gradients == pytest.approx(float(lightcl.datasets[dataset].names["laterals"]), abs=1e-3)


def test_weights_and_masked_weights_are_those_of_our_network(lightcl: Claim) -> None:
    with torch.device("meta"):
        networks = {"cifar10": ResNet18(10, width=64), "tinyimagenet": ResNet18(200, width=64)}
    masked = sum(weight.numel() for weight in masked_weights(networks["cifar10"]).values())
    assert str(masked) in str(lightcl.names["mask"])
    for dataset, network in networks.items():
        corrected = FormulaLedger(lightcl, dataset, (lightcl.fix("tiny-head"),))
        weights = 4 * sum(parameter.numel() for parameter in network.parameters()) / MIB
        ewc, sgd = (corrected.value(lightcl.row(name), "memory") for name in ("ewc", "sgd"))
        assert ewc - sgd == pytest.approx(weights, abs=1e-3)


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (FOLDER / "sparcl.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "other.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_a_claim_file_of_ones_own_needs_no_code(tmp_path: Path) -> None:
    claim = load_claim(str(changed(tmp_path, "memory = 185.4", "memory = 185.3")))
    assert claim.name == "other"
    assert recomputed(claim, claim.row("er"), "memory", "cifar10")[0] == 185.3


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('larger = "derpp"', 'larger = "derp"', "names a row 'derp' that does not exist: did you mean 'derpp'"),
        ('dataset = "cifar10"', 'dataset = "cifar"', "names a data set 'cifar' that does not exist"),
        ('class = "B"', 'class = "Z"', "names a class 'Z' that does not exist"),
        ('"0.1 * 2 * W + 62 * a"', '"0.1 * 2 * V + 62 * a"', "uses 'V', which is not among the claim's names"),
        ('"0.1 * 2 * W + 62 * a"', '"0.1 * 2 * W +"', "cannot be computed"),
        ('"0.1 * 2 * W + 62 * a"', '"W / 0"', "cannot be computed"),
        ('"0.1 * 2 * W + 62 * a"', "\"__import__('os')\"", "may hold numbers, names, + - * / **, max and min"),
        ('"0.1 * 2 * W + 62 * a"', '"(-8) ** 0.5"', "not a number of at most 1e+30"),
        ('"0.1 * 2 * W + 62 * a"', '"W - W"', "the memory of row sparcl-derpp: 0 is not above zero"),
        ("memory = 185.4", "memory = 0", "must be at least 1e-06"),
        ('a = "2.13 * k"', 'a = "2 * a"', "a is defined by itself"),
        ('id = "er"', 'id = "derpp"', "two entries share a row id"),
        ('"0.1 * 2 * W + 62 * a"', "\"'%999999999d' % 1\"", "cannot be computed"),
        ('"0.1 * 2 * W + 62 * a"', '"' + "W + " * 10**4 + 'W"', "at most 1000 characters"),
        ("memory = 185.4", "memory = inf", "finite number"),
        ("memory = 185.4", "memory = -1", "must be at least 1e-06"),
        ("memory = 185.4", "memory = 1e300", "must be at most"),
        ('network = "resnet18"', 'network = "resnet18"\nwidth = true', "Cannot overwrite a value"),
        ("batch_size = 32", "batch_size = true", "must be a whole number"),
        ("batch_size = 32", "batch_size = 32.0", "must be a whole number"),
        ('title = "SparCL', 'name = "../../up"\ntitle = "SparCL', "leave it out"),
        ('a = "2.13 * k"', 'a = "' + "x" * 900 + '"', "which is not among the claim's names"),
        ('title = "ER"', 'titel = "ER"', "titel"),
    ],
)
def test_a_mistake_in_a_claim_file_is_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_claim(str(changed(tmp_path, old, new)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_corrections_that_only_fail_together_are_one_sentence(lightcl: Claim) -> None:
    fixes = (Fix(id="zero", text="", names={"W": 0.0}), Fix(id="over", text="", add={"ewc": "1 / W"}))
    with pytest.raises(
        UsageError, match=r"row ewc cannot be recomputed: '1 / W' cannot be computed: .*division by zero"
    ):
        FormulaLedger(lightcl, "cifar10", fixes).value(lightcl.row("ewc"), "memory")


def test_a_claim_is_called_as_its_file_whatever_that_is_called(tmp_path: Path) -> None:
    path = tmp_path / "a claim\n<b>.toml"
    changed(tmp_path, "memory = 185.4", "memory = 185.4").rename(path)
    assert load_claim(str(path)).name.startswith("a_claim__b_-")


@pytest.mark.parametrize("name", ["", "lightc", "x" * 10**6, "a\nb", "../claims/lightcl"])
def test_a_claim_that_does_not_exist_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_claim(name)
    assert len(str(caught.value)) < 1000


def test_a_claim_in_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "claim.toml")
    with pytest.raises(UsageError, match="no regular file"):
        load_claim(str(tmp_path / "claim.toml"))


def chain(length: int) -> str:
    """Return `a` as a number that is doubled `length` times, by a name for every time."""
    names = ["a", *(f"twice{number}" for number in range(length))]
    return "\n".join(f'{name} = "{inner} + {inner}"' for name, inner in pairwise(names)) + f"\n{names[-1]} = 1e-12"


def test_names_that_double_forty_times_are_each_worked_out_once(tmp_path: Path) -> None:
    claim = load_claim(str(changed(tmp_path, 'a = "2.13 * k"', chain(40))))
    row = next(row for row in claim.rows if row.memory.formula == "0.1 * 2 * W + 62 * a")
    assert FormulaLedger(claim, "cifar10").value(row, "memory") == pytest.approx(0.2 * 42.625 + 62 * 2**40 * 1e-12)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('a = "2.13 * k"', chain(60), "row er cannot be recomputed: er is defined by a chain of more than 50 names"),
        ('a = "2.13 * k"', chain(2000), "row er cannot be recomputed: er is defined by a chain of more than 50 names"),
        ('a = "2.13 * k"', 'a = "b"\nb = "a"', "a is defined by itself (er -> a -> b -> a)"),
        ("[names]", "[names]\n" + "\n".join(f'z{number} = "{"1" * 900}"' for number in range(80)), "its formulas have"),
        ("[names]", "[names]\nz = inf", "is inf but"),
        ("[[fixes]]", '[[fixes]]\nid = "z"\ntext = ""\n' * 101 + "[[fixes]]", "fixes is"),
        ("[[rows]]", '[[rows]]\nid = "z"\n' * 501 + "[[rows]]", "rows"),
        ('title = "ER"', 'title = "ER"\n"\\u001b[31m" = 1', "there is no key 'rows.0.'"),
    ],
    ids=["chain", "endless chain", "circle", "long", "infinite", "corrections", "rows", "title"],
)
def test_a_claim_that_would_take_long_is_refused_in_one_sentence(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_claim(str(changed(tmp_path, old, new)))
    assert sentence in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", ["lightcl.tom", "../lightcl", "~nobody-of-this-name/x.toml", "a\0.toml", "absent.toml", "/"]
)
def test_a_claim_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_claim(name)
    assert str(caught.value).isprintable()
