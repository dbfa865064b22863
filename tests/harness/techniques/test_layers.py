"""What layers do without: one technique after the other lowers a peak."""

from __future__ import annotations

from itertools import pairwise

import pytest

from clmem.harness.answers.prediction import predicted_peak_bytes
from clmem.harness.specs.run import RunSpec

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
LADDER = (
    "optimizer_in_backward,checkpoint=convolution",
    "optimizer_in_backward,checkpoint=convolution,conv_slice=4",
    "optimizer_in_backward,checkpoint=convolution,conv_slice=4,inplace_relu",
    "optimizer_in_backward,checkpoint=convolution,conv_slice=4,inplace_relu,bn_parts=16",
    "optimizer_in_backward,checkpoint=convolution,conv_slice=4,inplace_relu,bn_parts=16,inplace_sum,relu_masks",
)


def test_each_technique_of_layers_lowers_the_peak_of_large_maps() -> None:
    run = RunSpec(method="sgd", stream="synthetic-tinyimagenet", width=16)
    peaks = [predicted_peak_bytes(run.model_copy(update={"execution": label})) for label in LADDER]
    assert None not in peaks
    assert all(after < before for before, after in pairwise(peaks)), peaks
