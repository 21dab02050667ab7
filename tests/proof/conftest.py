"""What every test of the proof is run with."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def torn_tails_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Keep ten thousand warnings out of the log."""
    caplog.set_level(logging.ERROR, "kvstore")
