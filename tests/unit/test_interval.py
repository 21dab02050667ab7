"""Syncing every few seconds, and a last time when nobody holds the store any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import kvstore
from kvstore.simdisk import SimulatedDisk
from tests.disks import PATIENCE, FaultyFileSystem
from tests.helpers import Process, disk_broken, read, segments, synced_bytes

HOUR = 3600.0
BLINK = 0.01


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, what
        time.sleep(BLINK)


def syncers() -> set[threading.Thread]:
    """Return the threads that sync a store now and then."""
    return {each for each in threading.enumerate() if "sync_now_and_then" in each.name}


def test_an_interval_syncs_what_was_written_and_only_then(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, sync=BLINK, filesystem=filesystem) as db:
        for number in range(3):
            before = filesystem.fsyncs()
            time.sleep(5 * BLINK)
            assert filesystem.fsyncs() == before, "there was nothing to sync"
            db[b"ada"] = b"%d" % number
            wait_until(lambda n=before: filesystem.fsyncs() > n, "nobody syncs")  # type: ignore[misc]


def test_a_failed_sync_in_the_background_is_logged_and_stops_the_writes(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, sync=BLINK, filesystem=filesystem)
    filesystem.fail("sync", disk_broken(), name=".segment")
    db[b"ada"] = b"1"
    wait_until(lambda: "Input/output error" in caplog.text, "nobody hears of it")
    with pytest.raises(kvstore.WriteRefusedError, match="Input/output error"):
        db[b"bob"] = b"1"
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()


def test_an_interval_that_has_not_ended_ends_with_the_store() -> None:
    """The promise is in seconds, and a program may forget its store."""
    before = syncers()
    disk = SimulatedDisk()
    db = kvstore.open("store", sync=HOUR, filesystem=disk)
    db[b"ada"] = b"1815"
    (thread,) = syncers() - before
    assert thread.daemon, "an hour is a long time to wait for at the end of a program"
    with pytest.warns(ResourceWarning, match="nobody closed"):
        del db
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits for a store that is gone"
    for _, image in disk.power_cut().images(100):
        assert read("store", SimulatedDisk(image)) == {b"ada": b"1815"}


def test_a_process_that_ends_without_a_close_syncs_first(path: Path) -> None:
    code = (
        "import sys, kvstore\n"
        "db = kvstore.open(sys.argv[1], sync=3600.0)\n"
        "db[b'ada'] = b'1815'\n"
        "print('done')\n"
    )
    with Process(code, path) as other:
        assert other.line() == "done"
        other.popen.wait(PATIENCE)
    assert synced_bytes(path) == segments(path)[0].stat().st_size
    assert read(path) == {b"ada": b"1815"}


def test_close_ends_the_interval(path: Path) -> None:
    before = syncers()
    with kvstore.open(path, sync=HOUR) as db:
        (thread,) = syncers() - before
        db[b"ada"] = b"1815"
    thread.join(PATIENCE)
    assert not thread.is_alive()
