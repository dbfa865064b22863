"""The campaign as a test of the night."""

from __future__ import annotations

import time

import pytest

from tests.campaign.__main__ import campaign


@pytest.mark.slow
@pytest.mark.nightly
def test_a_night_of_kills_and_faults_finds_nothing() -> None:
    tally = campaign(minutes=15, seed=int(time.time() // 86400))
    assert tally.findings == [], str(tally)
    assert tally.kills >= 60
