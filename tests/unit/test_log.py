"""The end of the log: when it is synced, and what happens when that fails."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import kvstore
from kvstore.segment import SEGMENT_HEADER_BYTES
from kvstore.simdisk import Operation, SimulatedDisk, no_fault
from tests.disks import PATIENCE, FaultyFileSystem
from tests.helpers import (
    FIRST,
    Changes,
    Worker,
    change,
    disk_broken,
    disk_full,
    read,
    record_bytes,
    synced_bytes,
)


def test_sync_os_leaves_the_disk_to_the_system_until_it_is_asked(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        opened = filesystem.fsyncs()
        for changes in {b"ada": b"1815"}, {b"ada": None}, {b"alan": b"1", b"bob": b"2"}:
            change(db, changes)
            assert read(path) == dict(db), "a change waits in a buffer of the process"
        assert filesystem.fsyncs() == opened, "a put waits for no disk"
        db.sync()
        assert filesystem.fsyncs() == opened + 1, "sync waits for the disk"
        db.sync()
        assert filesystem.fsyncs() == opened + 1, "there was nothing left to wait for"
        db[b"bob"] = b"1"
    assert filesystem.fsyncs() == opened + 2, "close leaves nothing unsynced"


def test_sync_always_has_every_change_on_the_disk_when_it_returns(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, sync="always", filesystem=filesystem) as db:
        several: list[Changes] = [
            {b"ada": b"1"},
            {b"ada": b"2", b"bob": b"3"},
            {b"ada": None},
        ]
        for each in several:
            filesystem.forget()
            change(db, each)
            calls = [call for call in filesystem.log("write", "sync") if "seg" in call]
            assert calls == ["write 00000001.segment", "sync 00000001.segment"], (
                "one write, then one fsync"
            )


def test_threads_that_wait_together_share_one_fsync(path: Path) -> None:
    filesystem, count = FaultyFileSystem(), 20
    with kvstore.open(path, sync="always", filesystem=filesystem) as db:
        before = filesystem.fsyncs()
        first_sync = filesystem.pause("sync", ".segment")
        workers = [Worker(lambda: db.__setitem__(b"first", b"1"))]
        assert first_sync.reached.wait(PATIENCE)
        last_write = filesystem.pause("write", ".segment", first=count)
        for number in range(count):
            key = b"%d" % number
            workers.append(Worker(partial(db.__setitem__, key, b"1")))
        assert last_write.reached.wait(PATIENCE), (
            "puts go on while an fsync is waited for"
        )
        assert filesystem.fsyncs() == before + 1, "nobody starts another one meanwhile"
        assert all(worker.is_alive() for worker in workers), (
            "none returns before its change is on the disk"
        )
        first_sync.go_on.set()
        last_write.go_on.set()
        for worker in workers:
            worker.done()
        assert filesystem.fsyncs() == before + 2, f"{count} threads share one fsync"
        assert len(db) == count + 1


def test_a_watermark_that_can_not_be_written_is_no_error_of_the_put(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The fsync has succeeded: the record is on the disk, and everybody can read it.

    An error here would tell of a put that is not safe, and it is. So the store warns, and
    its next open takes more of the log for unsure than it need be.
    """
    disk = SimulatedDisk(sector_bytes=1)
    db = kvstore.open("store", sync="always", filesystem=disk)
    noted = synced_bytes("store", disk)

    def no_space_for_it(operation: Operation) -> None:
        if operation[:2] == ("write", "store/MARK"):
            raise disk_full()

    disk.fault = no_space_for_it
    db[b"ada"] = b"1815"
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "the watermark could not be moved" in warning.getMessage()
    assert synced_bytes("store", disk) == noted, "the fault is meant to strike"
    expected = {b"ada": b"1815"}
    for picks, image in disk.power_cut().images(1000):
        with kvstore.open("store", filesystem=SimulatedDisk(image)) as after:
            assert dict(after) == expected, disk.power_cut().describe(picks)
    disk.fault = no_fault
    db[b"alan"] = b"1912"
    assert len(caplog.records) == 1
    end = SEGMENT_HEADER_BYTES + 2 * record_bytes(b"ada", b"1815") + 1
    assert synced_bytes("store", disk) == end
    db.close()


@pytest.mark.parametrize("catch", [False, True])
def test_a_with_block_ends_with_its_own_error_or_with_the_refusal(
    path: Path, catch: bool
) -> None:
    filesystem = FaultyFileSystem()

    def use() -> None:
        with kvstore.open(path, filesystem=filesystem) as db:
            db[b"ada"] = b"1815"
            filesystem.fail("sync", disk_broken(), name=".segment")
            with suppress(OSError if catch else LookupError):
                db.sync()

    expected = kvstore.WriteRefusedError if catch else OSError
    with pytest.raises(expected, match="Input/output error"):
        use()
    assert read(path) == {b"ada": b"1815"}
    kvstore.open(path).close()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_error_of_a_disk_names_the_file(path: Path, operation: str) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, sync="always", filesystem=filesystem)
    filesystem.fail(operation, disk_full(), FIRST)
    with pytest.raises(OSError, match=f"{path}/{FIRST}"):
        db[b"ada"] = b"1815"
    with suppress(kvstore.WriteRefusedError):
        db.close()
