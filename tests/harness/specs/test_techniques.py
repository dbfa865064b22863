"""Labels of executions: what they stand for, one spelling, and what is wrong with others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmem.harness.errors import UsageError
from clmem.harness.learning.registry import method_class, method_names
from clmem.harness.specs.run import RunSpec
from clmem.harness.specs.techniques import LEAN, PLAIN, canonical, techniques
from clmem.harness.techniques.registry import Techniques


def test_plain_is_nothing_and_lean_is_the_methods_own_preset() -> None:
    assert techniques(PLAIN, {"trunk_chunk": 4}) == Techniques()
    assert techniques(LEAN, {"trunk_chunk": 4}) == Techniques(trunk_chunk=4)
    assert techniques("lean, trunk_chunk=1,checkpoint=block", {"trunk_chunk": 4, "conv_slice": 2}) == Techniques(
        trunk_chunk=1, checkpoint="block", conv_slice=2
    )


@given(
    st.builds(
        Techniques,
        trunk_chunk=st.integers(0, 9),
        optimizer_in_backward=st.booleans(),
        checkpoint=st.sampled_from(["none", "block", "deep"]),
        backward=st.sampled_from(["together", "termwise"]),
    )
)
def test_a_canonical_label_reads_back_as_itself(chosen: Techniques) -> None:
    label = canonical(",".join(f"{key}={value}" for key, value in chosen.model_dump().items()))
    assert techniques(label, {}) == chosen
    assert canonical(label) == label
    assert (label == PLAIN) == (chosen == Techniques())


def test_a_label_can_switch_off_what_a_preset_uses() -> None:
    label = canonical("lean, checkpoint=none")
    assert label == "lean,checkpoint=none"
    assert techniques(label, {"checkpoint": "block", "conv_slice": 4}) == Techniques(conv_slice=4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("checkpoint=none,lean", "the label 'checkpoint=none,lean' names `lean` behind other techniques; put it first"),
        ("trunkchunk=4", "there is no technique 'trunkchunk': did you mean 'trunk_chunk'?"),
        ("trunk_chunk=-1", "technique trunk_chunk is '-1' but"),
        ("checkpoint=blocks", "technique checkpoint is 'blocks' but"),
        ("conv_slice=1" + "0" * 30, "technique conv_slice is '1000"),
        ("conv_slice=" + "9" * 900, "technique conv_slice is '999"),
        ("conv_slice=true", "technique conv_slice is 'true' but"),
        ("lean," * 10**6, "the label 'lean,lean,"),
        ("\x1b[31m" + "x" * 500, "there is no technique 'xxx"),
    ],
)
def test_a_wrong_label_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        techniques(text, {})
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 500
    with pytest.raises(ValueError, match="technique"):
        RunSpec(method="sgd", execution=text)


def test_plain_runs_keep_the_ids_that_they_had_before_there_were_others() -> None:
    assert RunSpec(method="sgd").run_id == "sgd--split-fashion-mini--memory--" + RunSpec(method="sgd").digest()
    lean = RunSpec(method="sgd", execution="lean")
    assert lean.run_id.startswith("sgd--split-fashion-mini--lean--memory--")
    assert lean.digest() != RunSpec(method="sgd").digest()


@pytest.mark.parametrize("name", method_names())
def test_every_lean_preset_is_made_of_techniques_and_changes_something(name: str) -> None:
    assert techniques(LEAN, method_class(name).lean) != Techniques()
