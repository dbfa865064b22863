"""Every technique is one field with one object, in the order that results have them in."""

from __future__ import annotations

import pytest

from clmem.harness.techniques.registry import TECHNIQUES, Techniques
from tests.harness.execution.test_exactness import prepared

ORDER = (
    "trunk_chunk optimizer_in_backward checkpoint backward grouped_bn conv_slice inplace_relu inplace_sum relu_masks "
    "bn_parts micro_batch frozen_weights autocast storage offload replay_place replay_dtype"
)


def test_results_keep_techniques_in_the_order_that_they_always_had() -> None:
    fields = list(Techniques().model_dump())
    assert fields == list(TECHNIQUES)
    assert [name for name in fields if name in ORDER.split()] == ORDER.split(), "new ones may stand between"


def test_what_is_in_use_is_asked_and_nothing_else() -> None:
    plain, chosen = Techniques(), Techniques(conv_slice=2, autocast="bfloat16", replay_place="host")
    assert (plain.is_exact, plain.in_slices, plain.moves, plain.unpredictable) == (True, False, [], "")
    assert (chosen.is_exact, chosen.in_slices, chosen.moves) == (False, True, ["replay_place"])
    assert chosen.unpredictable.startswith("autocast=bfloat16 cannot be predicted")
    assert Techniques(storage="compact").unpredictable == ""


def test_a_technique_refuses_before_the_method_does() -> None:
    method, _ = prepared("sgd", "plain")
    method.refuses = {"offload": "of a reason", "replay_dtype": "of another"}  # type: ignore[misc]
    with pytest.raises(ValueError, match="replay_dtype is about the slots"):
        Techniques(offload=True, replay_dtype="float32").refuse(method)
    with pytest.raises(ValueError, match="offload cannot be used with it: of a reason"):
        Techniques(offload=True).refuse(method)
