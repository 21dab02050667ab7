"""What every test of the proof is run with."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the proof: two workers end together if they end with short files."""
    items.sort(key=lambda item: Path(__file__).parent not in item.path.parents)


@pytest.fixture(autouse=True)
def torn_tails_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Keep ten thousand warnings out of the log."""
    caplog.set_level(logging.ERROR, "kvstore")
