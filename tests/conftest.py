"""What every test can ask for: the path of a store, an open store, no collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvstore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let nothing be freed but what nobody holds."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def db(path: Path) -> Iterator[kvstore.Store]:
    """Return an open store with a few keys."""
    with kvstore.open(path) as opened:
        opened.update({b"ada": b"1815", b"alan": b"1912", b"grace": b"1906"})
        yield opened
