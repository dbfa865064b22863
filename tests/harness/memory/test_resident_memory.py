"""The ledger against two witnesses: the number we know for the standard network, and the operating system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.environment import environment

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

    glibc maps blocks of 64 KiB and more; smaller ones can lie in what the first run left in the heap, so resident
    memory grows by a little less than the tensors: by 0.06 to 0.44 MiB on processors without AVX-512. On one with
    it the difference is 4.3 to 4.4 MiB (2 %), and 0.73 with oneDNN and torch held to AVX2 there: most of it comes with
    the wider kernels. Which pages of theirs stay unwritten at the peak is not traced yet, and the wider bound stands
    until it is.
    """
    recording, growth_bytes = standard
    peak_bytes = recording.footprint["peak_bytes"]
    wide = environment()["vectors"] == "AVX512"
    assert growth_bytes - peak_bytes < MIB / 2
    assert peak_bytes - growth_bytes < (5 * MIB if wide else MIB / 2)
