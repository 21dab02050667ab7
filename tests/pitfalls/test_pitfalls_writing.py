"""Pitfalls 10 to 18: how a store loses data between the program and the disk.

Each test names the pitfall that it guards against. The numbers are those of the list of
pitfalls that the store was built by. Where the order of things is the promise, the test
looks at the calls to the operating system in the order in which they were made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

import kvstore
from kvstore.posix import DISK
from kvstore.segment import SEGMENT_HEADER_BYTES, segment_name
from kvstore.simdisk import SimulatedDisk
from tests.disks import CHANGES, PATH, PATIENCE, FaultyFileSystem
from tests.helpers import (
    FIRST,
    SECOND,
    THIRD,
    Worker,
    all_raise,
    change,
    copy_of,
    disk_broken,
    disk_full,
    files,
    first_missing,
    folder,
    manifest_of,
    new_segment,
    read,
    refusals,
)


def put_one(db: kvstore.Store) -> None:
    db[b"one"] = bytes(90)


def put_batch(db: kvstore.Store) -> None:
    change(db, {b"one": bytes(50), b"two": bytes(50)})


# 10: a short write taken as done


@pytest.mark.parametrize("take", [1, 7, 31])
def test_pitfall_10_a_short_write_is_continued(tmp_path: Path, take: int) -> None:
    """Records, batches, headers, manifests and marks: all of it, some bytes at a time."""
    filesystem = FaultyFileSystem()
    filesystem.fail("write", None, take=take, times=1_000_000)
    expected = {b"%d" % n: b"value %d" % n for n in range(30)}
    with kvstore.open(tmp_path, segment_bytes=200, filesystem=filesystem) as db:
        db.update(expected)
        put_batch(db)
        db.update(expected)
        db.compact()
    expected |= {b"one": bytes(50), b"two": bytes(50)}
    assert read(tmp_path) == expected, "a short write was taken as done"
    with kvstore.open(tmp_path, "r") as db:
        assert db.verify().ok


# 11 and 12: bytes of a failed append


@pytest.mark.parametrize("taken", [0, 10, 60])
@pytest.mark.parametrize("put", [put_one, put_batch])
def test_pitfall_11_a_failed_append_leaves_no_bytes_behind(
    tmp_path: Path, put: Callable[[kvstore.Store], None], taken: int
) -> None:
    """The file is cut back, the error raised, and the store goes on where there is room."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path / "store", filesystem=filesystem)
    db[b"ada"] = b"1815"
    before = (tmp_path / "store" / FIRST).read_bytes()
    filesystem.fail("write", None, name=FIRST, take=taken)
    filesystem.fail("write", disk_full(), name=FIRST)
    with pytest.raises(OSError, match="No space"):
        put(db)
    after = (tmp_path / "store" / FIRST).read_bytes()
    assert after == before, "bytes of an append that failed are left in the file"
    db[b"a"] = b"b"
    for directory in (tmp_path / "store", copy_of(tmp_path / "store")):
        assert read(directory) == {b"ada": b"1815", b"a": b"b"} == dict(db)
    db.close()


def test_pitfall_11_what_can_not_be_cut_back_ends_the_writes(tmp_path: Path) -> None:
    """No record is ever written behind bytes that nobody asked for."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("write", None, name=FIRST, take=30)
    filesystem.fail("write", disk_full(), name=FIRST)
    filesystem.fail("truncate", disk_broken(), name=FIRST)
    with pytest.raises(kvstore.WriteRefusedError, match="cutting"):
        db[b"failed"] = bytes(90)
    left = (tmp_path / FIRST).read_bytes()
    assert dict(db) == {b"ada": b"1815"}, "reading goes on"
    filesystem.forget()
    ways = refusals(db) | {"close": db.close}
    all_raise(ways, kvstore.WriteRefusedError, "cutting", "Input/output error")
    assert filesystem.log("write") == [], "something was written behind stray bytes"
    assert (tmp_path / FIRST).read_bytes() == left
    with kvstore.open(tmp_path) as db:
        assert dict(db) == {b"ada": b"1815"}
        assert db.torn_tail is not None


# That nothing waits in a buffer of the process, see `sync="os"` in `test_log`.


# 13: fsync retried after an error


def full_store(directory: Path, filesystem: FaultyFileSystem) -> kvstore.Store:
    """Return a store whose next put begins a new segment, with something to compact."""
    db = kvstore.open(directory, segment_bytes=60, filesystem=filesystem)
    db[b"ada"] = b"old"
    db[b"ada"] = b"1815"
    filesystem.forget()
    return db


# Where an fsync fails: in which call, of a file or of the directory, and which of them.
FAILING: dict[str, tuple[Callable[[kvstore.Store], object], str, str, int]] = {
    "sync": (lambda db: db.sync(), "sync", FIRST, 1),
    "the next segment": (lambda db: db.update({b"next": b""}), "sync", FIRST, 1),
    "the new manifest": (
        lambda db: db.update({b"next": b""}),
        "sync_directory",
        "store",
        2,
    ),
    "compact": (lambda db: db.compact(), "sync", FIRST, 1),
    "the manifest of compact": (lambda db: db.compact(), "sync_directory", "store", 4),
    "close": (lambda db: db.close(), "sync", FIRST, 1),
}


@pytest.mark.parametrize(
    ("work", "operation", "name", "which"), FAILING.values(), ids=FAILING
)
def test_pitfall_13_after_a_failed_fsync_nothing_is_written_or_synced(
    path: Path,
    work: Callable[[kvstore.Store], object],
    operation: str,
    name: str,
    which: int,
) -> None:
    """A second fsync would succeed, and lie: the kernel has called the pages clean."""
    filesystem = FaultyFileSystem()
    db = full_store(path, filesystem)
    filesystem.fail(operation, disk_broken(), name, first=which)
    with pytest.raises(OSError, match="Input/output error"):
        work(db)
    last = filesystem.log(*CHANGES)[-1]
    assert last == f"{operation} {name}", "the store went on after a failed fsync"
    filesystem.forget()
    if work is not FAILING["close"][0]:
        assert db[b"ada"] == b"1815", "reading has to go on"
        ways = refusals(db) | {"sync": db.sync, "close": db.close}
        if operation == "sync_directory":
            ways.pop("sync")  # all records may be on the disk, and it says so
        cause, advice = "Input/output error", "open it again"
        all_raise(ways, kvstore.WriteRefusedError, cause, advice)
    assert filesystem.log(*CHANGES) == [], "the store went on after a failed fsync"
    assert read(path) == {b"ada": b"1815"}


def test_pitfall_13_no_fsync_runs_beside_another_of_the_same_file(
    tmp_path: Path,
) -> None:
    """Else one of them gets the error, and the other calls lost records safe.

    A kernel tells of a failed write-back once for each open file. Of two fsyncs of the
    same file at the same time one raises the error; here the one that came first does not.
    """
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    inside, second = threading.Event(), threading.Event()

    def sync() -> None:
        if inside.is_set():
            second.set()
            raise disk_broken()
        inside.set()
        if not second.wait(0.3):
            raise disk_broken()

    filesystem.at("sync", FIRST, sync, times=99)
    syncing = Worker(db.sync)
    assert inside.wait(PATIENCE)
    with pytest.raises((OSError, kvstore.WriteRefusedError)):
        db[b"next"] = b"in a new segment"
    with suppress(OSError):
        syncing.done()
    assert syncing.error, "a sync returned while another fsync of its file failed"
    assert not second.is_set(), "two fsyncs of one file ran at once"
    with suppress(kvstore.WriteRefusedError):
        db.close()


# 14: a new name without its directory's fsync


def test_pitfall_14_no_new_name_is_left_without_its_directorys_fsync() -> None:
    """Whenever a call returns, every file that it made is durable, name and all."""
    disk = SimulatedDisk()

    def check(moment: str) -> None:
        for doubt in disk.power_cut().doubts:
            made = doubt.about.startswith(("the making", "the renaming"))
            assert not made, f"after {moment}: {doubt.about} may be lost"

    db = kvstore.open(PATH, segment_bytes=60, filesystem=disk)
    check("a store was made")
    for work in (put_one, put_batch, type(db).compact, type(db).close):
        work(db)
        check(work.__name__)
    active = segment_name(manifest_of(PATH, disk).active.number)
    image = disk.image()
    disk = SimulatedDisk(
        {**image, f"{PATH}/{active}": image[f"{PATH}/{active}"] + b"x"}
    )
    db = kvstore.open(PATH, filesystem=disk)
    assert db.torn_tail is not None
    check("recovery")
    db.close()
    kvstore.open(PATH, "n", filesystem=disk).close()
    check("an empty store was begun")


# That a new store's directory is durable in its parent, see `test_posix`.


# 15 and 16: the order of what becomes durable


def test_pitfalls_15_and_16_a_new_segment_comes_in_order(tmp_path: Path) -> None:
    """The new file, its name, the old segment, the manifest, and then a record.

    A manifest never names a file that may not be there, and no record is in the new
    segment while one in the old may still be lost.
    """
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    db[b"next"] = b""
    steps = [
        f"create {SECOND}",
        f"write {SECOND}",  # the header
        f"sync {SECOND}",
        f"sync_directory {tmp_path.name}",
        f"sync {FIRST}",
        "create MANIFEST.new",
        "write MANIFEST.new",
        "sync MANIFEST.new",
        "rename MANIFEST.new MANIFEST",
        f"sync_directory {tmp_path.name}",
        f"write {SECOND}",  # the first record
    ]
    log = [each for each in filesystem.log(*CHANGES) if each != f"truncate {FIRST}"]
    assert log == steps, "the steps to a new segment come in another order"
    db.close()


def test_pitfall_15_a_merge_is_durable_before_the_manifest(tmp_path: Path) -> None:
    """New segments, their names, the log, the manifest; only then the old ones go."""
    filesystem = FaultyFileSystem()
    with kvstore.open(tmp_path, segment_bytes=60, filesystem=filesystem) as db:
        db[b"ada"] = b"old"
        db[b"alan"] = b"1912"
        db[b"ada"] = b"1815"  # in the second, and makes a record in the first dead
        filesystem.forget()
        done = db.compact()
        assert (done.segments_before, done.segments_after) == (1, 1)
    steps = [
        f"create {THIRD}",
        f"write {THIRD}",  # the header
        f"sync_directory {tmp_path.name}",
        f"write {THIRD}",  # the copies
        f"sync {THIRD}",
        f"sync {SECOND}",  # what made records dead
        "sync MANIFEST.new",
        "rename MANIFEST.new MANIFEST",
        f"sync_directory {tmp_path.name}",
        f"remove {FIRST}",
    ]
    missing = first_missing(filesystem.log(), steps)
    assert missing is None, f"missing, or out of order: {missing}"
    assert filesystem.log("remove") == [f"remove {FIRST}"]


# 17: a full disk in the middle of a manifest


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_pitfall_17_a_full_disk_leaves_the_manifest_whole(
    tmp_path: Path, taken: int
) -> None:
    """The manifest is written aside, and takes the old one's place when it is whole."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path / "store", filesystem)
    before = files(tmp_path / "store")
    filesystem.fail("write", None, name="MANIFEST", take=taken)
    filesystem.fail("write", disk_full(), name="MANIFEST", times=3)
    for n in range(3):
        with pytest.raises(OSError, match="No space"):
            db[b"next"] = b""
        assert files(tmp_path / "store") == before, f"attempt {n} changed the store"
        assert read(copy_of(tmp_path / "store", f"copy {n}")) == {b"ada": b"1815"}
    db[b"next"] = b"when there is room again"
    db.close()
    expected = {b"ada": b"1815", b"next": b"when there is room again"}
    assert read(tmp_path / "store") == expected
    assert "write MANIFEST" not in filesystem.log(), "a manifest was written in place"


# 18: macOS


@pytest.mark.parametrize("macos", [True, False])
def test_pitfall_18_every_sync_reaches_the_platter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macos: bool
) -> None:
    """On macOS fsync stops at the drive's cache, and only F_FULLFSYNC goes on."""
    calls: list[tuple[int, ...]] = []
    full = SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda *call: calls.append(call))
    segment, directory = new_segment(tmp_path, 1), folder(tmp_path)
    monkeypatch.setattr("kvstore.posix.fcntl", full if macos else SimpleNamespace())
    monkeypatch.setattr("os.fsync", lambda *call: calls.append(call))
    syncs: list[Callable[[], object]] = [
        directory.sync,
        lambda: DISK.make_directory(str(tmp_path / "directory")),
        segment.sync,
        segment.seal,
        lambda: segment.rewrite(SEGMENT_HEADER_BYTES),
    ]
    for sync in syncs:
        calls.clear()
        sync()
        assert [call[1:] for call in calls] == [(51,) if macos else ()]
