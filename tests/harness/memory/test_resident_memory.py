"""The ledger against two witnesses: the number we know for the standard network, and the operating system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Recording

MIB = 2**20
PARAMETERS = 11_173_962

pytestmark = pytest.mark.slow


def test_a_step_of_the_standard_network_peaks_at_219_mib(standard: tuple[Recording, int]) -> None:
    recording, _ = standard
    assert recording.footprint["peak_bytes"] == pytest.approx(219 * MIB, rel=0.02)  # oneDNN's scratch varies
    assert recording.at_peak["parameters"] == 4 * PARAMETERS
    assert recording.role_peaks["gradients"] == 4 * PARAMETERS
    assert recording.role_peaks["optimizer"] == 0  # plain SGD
    assert recording.role_peaks["input"] == 4 * 32 * 3 * 32 * 32 + 8 * 32
    assert recording.truth_peaks == recording.peaks


def test_resident_memory_grows_by_the_tensor_peak(standard: tuple[Recording, int]) -> None:
    """Nothing profiled, freed blocks returned to the system at once, libraries loaded by a first run (`resident`).

    What is beyond the tensors, 0.0 to 0.5 MiB, are Python's objects and autograd's nodes.
    """
    recording, growth_bytes = standard
    beyond_bytes = growth_bytes - recording.footprint["peak_bytes"]
    assert -MIB / 4 < beyond_bytes < 3 * MIB / 4
