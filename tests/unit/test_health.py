"""Why writes are refused, who may come in, and what a refusal leaves: nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import kvstore
from kvstore.health import Health
from tests.disks import FaultyFileSystem
from tests.helpers import disk_broken, refusals


def test_a_store_is_healthy_until_something_is_noted() -> None:
    health = Health("people")
    health.check()
    health.check_open()
    health.trouble = "an fsync", disk_broken()
    for _ in range(2):
        with pytest.raises(kvstore.WriteRefusedError, match=r"people .* an fsync .*5"):
            health.check()
    health.check_open()
    assert not health.is_closed
    health.trouble = kvstore.ClosedError("people is closed")
    with pytest.raises(kvstore.ClosedError, match="people is closed"):
        health.check_open()


def test_each_refusal_is_an_error_of_its_own() -> None:
    """One that was raised by two threads would have a traceback of both."""
    health = Health("people")
    health.trouble = kvstore.ReadOnlyError("why")
    first, second = health.refusal(), health.refusal()
    assert first is not second
    assert str(first) == str(second) == "why"


class Canary:
    """Something that a caller holds."""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("state", ["read only", "closed", "refused"])
def test_a_refusal_keeps_alive_nothing_of_its_caller(path: Path, state: str) -> None:
    kvstore.open(path).close()
    filesystem = FaultyFileSystem()
    flag: kvstore.Flag = "r" if state == "read only" else "w"
    db = kvstore.open(path, flag, filesystem=filesystem)
    if state == "closed":
        db.close()
    if state == "refused":
        db[b"ada"] = b"1815"
        filesystem.fail("sync", disk_broken(), ".segment")
        with suppress(OSError):
            db.sync()

    def canary_of(attempt: Callable[[], object]) -> weakref.ref[Canary]:
        canary = Canary()
        with suppress(kvstore.KVStoreError, KeyError, StopIteration):
            attempt()
        return weakref.ref(canary)

    ways = refusals(db) | {"get": lambda: db[b"no"], "sync": db.sync, "close": db.close}
    for name, attempt in ways.items():
        assert canary_of(attempt)() is None, f"{name}: only the collector frees it"
