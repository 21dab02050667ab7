"""Pitfalls 10 to 18: how a store loses data between the program and the disk.

Each test names the pitfall that it guards against. The numbers are those of the list of
pitfalls that the store was built by. Where the order of things is the promise, the test
looks at the calls to the operating system in the order in which they were made.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults import FaultyFileSystem
from power import CHANGES, PATH
from samples import first_missing
from support import NO_SYNC, Worker, copy_of, files, read, record_bytes, recovered

import kvstore
from kvstore.filesystem import DISK, File
from kvstore.segment import HEADER_BYTES, Segment
from kvstore.simdisk import Operation, SimulatedDisk, no_fault

FIRST, SECOND, THIRD = (f"0000000{n}.segment" for n in (1, 2, 3))


def full() -> OSError:
    return OSError(errno.ENOSPC, "no room on the disk")


def broken() -> OSError:
    return OSError(errno.EIO, "the disk fails")


def put_one(db: kvstore.Store) -> None:
    db[b"one"] = bytes(90)


def put_batch(db: kvstore.Store) -> None:
    with db.batch() as batch:
        batch[b"one"] = bytes(50)
        batch[b"two"] = bytes(50)


# 10: a short write taken as done


@pytest.mark.parametrize("take", [1, 7, 31])
def test_pitfall_10_a_short_write_is_continued_to_its_end(
    tmp_path: Path, take: int
) -> None:
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


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, InterruptedError])
def test_pitfall_10_an_interrupted_write_is_not_taken_as_done(
    tmp_path: Path, interrupt: type[BaseException]
) -> None:
    """What was interrupted in its middle is wholly undone, and raised."""
    filesystem = FaultyFileSystem()
    with kvstore.open(tmp_path, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        before = (tmp_path / FIRST).read_bytes()
        for put in (put_one, put_batch):
            filesystem.fail("write", None, name=FIRST, take=20)
            filesystem.fail("write", interrupt(), name=FIRST)  # type: ignore[arg-type]
            with pytest.raises(interrupt):
                put(db)
            assert (tmp_path / FIRST).read_bytes() == before
            assert dict(db) == {b"ada": b"1815"}
        db[b"alan"] = b"1912"
    assert read(tmp_path) == {b"ada": b"1815", b"alan": b"1912"}


# 11 and 12: bytes of a failed append


@pytest.mark.parametrize("taken", [0, 10, 60])
@pytest.mark.parametrize(
    "put",
    [lambda db: db.update({b"failed": bytes(90)}), put_batch],
    ids=["put", "batch"],
)
def test_pitfall_11_a_failed_append_leaves_no_bytes_behind(
    tmp_path: Path, put: Callable[[kvstore.Store], None], taken: int
) -> None:
    """The file is cut back, the error raised, and the store goes on where there is room."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path / "store", filesystem=filesystem)
    db[b"ada"] = b"1815"
    before = (tmp_path / "store" / FIRST).read_bytes()
    filesystem.fail("write", None, name=FIRST, take=taken)
    filesystem.fail("write", full(), name=FIRST)
    with pytest.raises(OSError, match="no room"):
        put(db)
    after = (tmp_path / "store" / FIRST).read_bytes()
    assert after == before, "bytes of an append that failed are left in the file"
    db[b"a"] = b"b"
    for directory in (tmp_path / "store", copy_of(tmp_path / "store")):
        assert read(directory) == {b"ada": b"1815", b"a": b"b"} == dict(db)
    db.close()


def test_pitfall_11_what_can_not_be_cut_back_closes_the_store_to_writes(
    tmp_path: Path,
) -> None:
    """No record is ever written behind bytes that nobody asked for."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("write", None, name=FIRST, take=30)
    filesystem.fail("write", full(), name=FIRST)
    filesystem.fail("truncate", broken(), name=FIRST)
    with pytest.raises(kvstore.WriteRefusedError, match="could not be cut back"):
        db[b"failed"] = bytes(90)
    left = (tmp_path / FIRST).read_bytes()
    filesystem.calls.clear()
    attempts: list[Callable[[], object]] = [
        lambda: db.update({b"alan": b"1912"}),
        lambda: db.pop(b"ada"),
        lambda: put_batch(db),
        db.compact,
        db.close,
    ]
    for attempt in attempts:
        with pytest.raises(kvstore.WriteRefusedError, match="could not be cut back"):
            attempt()
    assert filesystem.log("write") == [], "something was written behind stray bytes"
    assert (tmp_path / FIRST).read_bytes() == left
    with kvstore.open(tmp_path) as db:
        assert dict(db) == {b"ada": b"1815"}
        assert db.torn_tail is not None


def test_pitfall_12_what_failed_is_not_written_later(tmp_path: Path) -> None:
    """There is no buffer from which a failed record could still come."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path / "store", filesystem=filesystem)
    filesystem.fail("write", full(), name=FIRST, times=3)
    for _ in range(3):
        with pytest.raises(OSError, match="no room"):
            db[b"failed"] = b"FAILED"
    db[b"ada"] = b"1815"
    db.sync()
    db.close()
    assert b"FAILED" not in (tmp_path / "store" / FIRST).read_bytes()
    assert read(tmp_path / "store") == {b"ada": b"1815"}


def test_no_half_of_a_failed_batch_is_taken_for_half_of_the_next() -> None:
    """The list of pitfalls does not have this one.

    The disk is full in the middle of a batch. What got through is cut off, and a batch
    of the same lengths takes its place. Then power is lost, and the disk shows the first
    record of the one and the second of the other: both whole, with numbers that rise.
    """
    disk = SimulatedDisk(sector_bytes=HEADER_BYTES)
    db = kvstore.open(PATH, filesystem=disk)
    lost, kept = ({b"1": text * 12, b"2": text * 12} for text in (b"-", b"+"))
    assert record_bytes(b"1", kept[b"1"]) == HEADER_BYTES, "a record fills a sector"
    room = [HEADER_BYTES]

    def fault(operation: Operation) -> int | None:
        if operation.name != "write":
            return None
        if not room:
            raise full()
        return room.pop()

    disk.fault = fault
    with pytest.raises(OSError, match="no room"), db.batch() as batch:
        batch[b"1"], batch[b"2"] = lost[b"1"], lost[b"2"]
    disk.fault = no_fault
    with db.batch() as batch:
        batch[b"1"], batch[b"2"] = kept[b"1"], kept[b"2"]
    cut = disk.power_cut()
    for picks, image in cut.images(1000):
        found = recovered(PATH, SimulatedDisk(image))
        assert found in ({}, kept), cut.describe(picks)


def test_pitfall_12_a_put_that_returned_outlives_the_process(tmp_path: Path) -> None:
    """Every record is in the kernel when its put returns, none in this process."""
    db = kvstore.open(tmp_path / "store", filesystem=NO_SYNC)
    expected = {}
    for n in range(5):
        db[b"%d" % n] = expected[b"%d" % n] = bytes(n)
        assert read(tmp_path / "store") == expected, "a put waits in a buffer"
    put_batch(db)
    assert len(read(copy_of(tmp_path / "store"))) == 7
    db.close()


# 13: fsync retried after an error


def full_store(directory: Path, filesystem: FaultyFileSystem) -> kvstore.Store:
    """Return a store whose next put begins a new segment, with something to compact."""
    db = kvstore.open(directory, segment_bytes=60, filesystem=filesystem)
    db[b"ada"] = b"old"
    db[b"ada"] = b"1815"
    filesystem.calls.clear()
    return db


TRIGGERS: dict[str, Callable[[kvstore.Store], object]] = {
    "sync": lambda db: db.sync(),
    "the next segment": lambda db: db.update({b"next": b""}),
    "compact": lambda db: db.compact(),
    "close": lambda db: db.close(),
}


@pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS)
def test_pitfall_13_after_a_failed_fsync_nothing_is_written_or_synced(
    tmp_path: Path, trigger: Callable[[kvstore.Store], object]
) -> None:
    """A second fsync would succeed, and lie: the kernel has called the pages clean."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    filesystem.fail("sync", broken(), name=FIRST)
    with pytest.raises(OSError, match="the disk fails"):
        trigger(db)
    last = filesystem.log(*CHANGES)[-1]
    assert last == f"sync {FIRST}", "the store went on after a failed fsync"
    filesystem.calls.clear()
    if trigger is not TRIGGERS["close"]:
        assert db[b"ada"] == b"1815", "reading has to go on"
        for attempt in (put_batch, *TRIGGERS.values()):
            with pytest.raises(kvstore.WriteRefusedError, match="the disk fails"):
                attempt(db)
    assert filesystem.log(*CHANGES) == [], "the store went on after a failed fsync"


def test_pitfall_13_a_put_that_waits_for_a_failing_fsync_fails(tmp_path: Path) -> None:
    """With sync="always" a put doesn't return before its fsync has succeeded."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path, sync="always", filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("sync", broken(), name=FIRST)
    with pytest.raises(OSError, match="the disk fails"):
        db[b"alan"] = b"1912"
    with pytest.raises(kvstore.WriteRefusedError):
        db[b"alan"] = b"1912"
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()


def test_pitfall_13_opening_writes_anew_what_was_not_known_to_be_safe(
    tmp_path: Path,
) -> None:
    """Pages that the kernel calls clean are written once more before they are synced."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(tmp_path / "store", filesystem=filesystem)
    db[b"safe"] = b"1"
    db.sync()
    synced = (tmp_path / "store" / FIRST).stat().st_size
    db[b"doubtful"] = bytes(100)
    filesystem.fail("sync", broken(), name=FIRST)
    with pytest.raises(OSError, match="the disk fails"):
        db.sync()
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()

    @dataclass
    class Noting(FaultyFileSystem):
        written: list[tuple[int, int]] = field(default_factory=list)

        def write(self, file: File, data: bytes, offset: int) -> None:
            self.written.append((offset, len(data)))
            super().write(file, data, offset)

    noting = Noting()
    kvstore.open(tmp_path / "store", "w", filesystem=noting).close()
    assert (synced, 19 + 8 + 100) in noting.written, (
        "a doubtful record was left as it is"
    )
    missing = first_missing(noting.log(), [f"write {FIRST}", f"sync {FIRST}"])
    assert missing is None, f"what was written anew was not synced: {missing}"


def test_pitfall_13_a_directory_whose_fsync_failed_stops_the_writing(
    tmp_path: Path,
) -> None:
    """After the rename nobody knows which manifest is on the disk."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    filesystem.fail("sync_directory", broken(), first=2)  # the first is the segment's
    with pytest.raises(OSError, match="the disk fails"):
        db[b"next"] = b""
    assert filesystem.log("rename", "sync_directory")[-2:] == [
        "rename MANIFEST.new MANIFEST",
        f"sync_directory {tmp_path.name}",
    ], "the fault of this test struck elsewhere"
    with pytest.raises(kvstore.WriteRefusedError):
        db[b"next"] = b""
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()


@dataclass
class OneErrorForTwo(FaultyFileSystem):
    """A kernel that tells of a failed write-back once for each open file.

    Of two fsyncs of the same file at the same time one raises the error, and the other
    knows nothing of it. Here the one that came first learns nothing.
    """

    inside: threading.Event = field(default_factory=threading.Event)
    second: threading.Event = field(default_factory=threading.Event)
    armed: bool = False

    def sync(self, file: File) -> None:
        if not self.armed or FIRST not in self._names[file.descriptor]:
            super().sync(file)
        elif self.inside.is_set():
            self.second.set()
            raise broken()
        else:
            self.inside.set()
            if not self.second.wait(0.3):
                raise broken()


def test_pitfall_13_no_fsync_runs_beside_another_of_the_same_file(
    tmp_path: Path,
) -> None:
    """Else one of them gets the error, and the other calls lost records safe."""
    filesystem = OneErrorForTwo()
    db = full_store(tmp_path, filesystem)
    filesystem.armed = True
    syncing = Worker(db.sync)
    assert filesystem.inside.wait(10)
    with pytest.raises((OSError, kvstore.WriteRefusedError)):
        db[b"next"] = b"in a new segment"
    with suppress(OSError):
        syncing.done()
    assert syncing.error, "a sync returned while another fsync of its file failed"
    assert not filesystem.second.is_set(), "two fsyncs of one file ran at once"
    with suppress(kvstore.WriteRefusedError):
        db.close()


# 14: a new name without its directory's fsync


@dataclass
class Names(FaultyFileSystem):
    """A file system that knows which names are not yet durable in their directory."""

    pending: set[str] = field(default_factory=set)
    broken_promises: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def create(self, path: str) -> File:
        self.pending.add(path)
        self.made.append(Path(path).name)
        return super().create(path)

    def make_directory(self, path: str) -> None:
        self.pending.add(path)
        super().make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self.pending.discard(source)
        waiting = sorted(Path(path).name for path in self.pending)
        if waiting:
            self.broken_promises.append(f"a manifest came before {waiting} was durable")
        self.pending.add(target)
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self.pending.discard(path)
        super().remove(path)

    def sync_directory(self, path: str) -> None:
        self.pending = {
            each for each in self.pending if Path(each).parent != Path(path)
        }
        super().sync_directory(path)

    def truncate(self, file: File, length: int) -> None:
        if any(".cut-" in path for path in self.pending):
            self.broken_promises.append("a tail was cut before its copy was durable")
        super().truncate(file, length)

    def check(self, moment: str) -> None:
        waiting = sorted(Path(path).name for path in self.pending)
        assert not waiting, f"{moment}: {waiting} could vanish in a power cut"
        assert not self.broken_promises, f"{moment}: {self.broken_promises}"


def test_pitfall_14_no_new_name_is_left_without_its_directorys_fsync(
    tmp_path: Path,
) -> None:
    """Whenever a call returns, every file that it made is durable, name and all."""
    filesystem, store = Names(), tmp_path / "store"
    db = kvstore.open(store, segment_bytes=60, filesystem=filesystem)
    filesystem.check("after a store was made")
    for n in range(6):
        db[b"key"] = bytes(20)
        filesystem.check(f"after put {n}")
    put_batch(db)
    filesystem.check("after a batch")
    db.compact()
    filesystem.check("after a compaction")
    db[b"torn"] = bytes(50)
    crashed = copy_of(store)
    db.close()
    filesystem.check("after close")
    newest = max(crashed.glob("*.segment"))
    DISK.truncate(DISK.open(str(newest), writable=True), newest.stat().st_size - 1)
    db = kvstore.open(crashed, filesystem=filesystem)
    assert db.torn_tail is not None
    filesystem.check("after recovery")
    db.close()
    kvstore.open(crashed, "n", filesystem=filesystem).close()
    filesystem.check("after an empty store was begun")
    kinds = {name.strip("0123456789") for name in filesystem.made}
    assert kinds >= {".segment", "MANIFEST.new", "MARK", ".segment.cut-"}, (
        f"the test did not see every kind of file made: {kinds}"
    )


@pytest.mark.parametrize("place", ["store", "", "./"], ids=["inside", "bare", "dotted"])
def test_pitfall_14_a_new_stores_directory_is_durable_in_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The files are no use where the directory is gone."""
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / place) if place == "store" else f"{place}store"
    parent = tmp_path.name if place == "store" else ""
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem):
        steps = ["make_directory store", f"sync_directory {parent}".strip()]
        missing = first_missing(filesystem.log(), [*steps, f"create {FIRST}"])
        assert missing is None, f"missing, or out of order: {missing}"


def test_pitfall_14_a_directory_that_was_left_by_a_crash_is_made_durable(
    tmp_path: Path,
) -> None:
    """It exists at the second attempt, and its parent may still not know on the disk."""
    filesystem = FaultyFileSystem()
    filesystem.fail("sync_directory", broken(), name=tmp_path.name)
    with pytest.raises(OSError, match="the disk fails"):
        kvstore.open(tmp_path / "store", filesystem=filesystem)
    assert (tmp_path / "store").is_dir()
    filesystem.calls.clear()
    kvstore.open(tmp_path / "store", filesystem=filesystem).close()
    assert f"sync_directory {tmp_path.name}" in filesystem.log(), (
        "the whole store can vanish in a power cut, however it is synced"
    )


# 15 and 16: the order of what becomes durable


def test_pitfalls_15_and_16_a_new_segment_comes_in_the_right_order(
    tmp_path: Path,
) -> None:
    """The old segment, the new file, its name, the manifest, and then a record.

    A manifest never names a file that may not be there, and no record is in the new
    segment while one in the old may still be lost.
    """
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    db[b"next"] = b""
    steps = [
        f"sync {FIRST}",
        f"create {SECOND}",
        f"write {SECOND}",  # the header
        f"sync {SECOND}",
        f"sync_directory {tmp_path.name}",
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


@pytest.mark.parametrize("operation", ["sync", "sync_directory"])
def test_pitfall_15_no_manifest_names_a_file_that_is_not_durable(
    tmp_path: Path, operation: str
) -> None:
    """Where the new file or its name can't be made durable, the manifest stays."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    before = files(tmp_path)
    filesystem.fail(operation, broken(), name=SECOND if operation == "sync" else "")
    with pytest.raises(OSError, match="the disk fails"):
        db[b"next"] = b""
    assert files(tmp_path) == before, "a file that isn't durable is in the store"
    db[b"next"] = b"later"
    db.close()
    assert read(tmp_path) == {b"ada": b"1815", b"next": b"later"}


def test_pitfall_15_a_compaction_becomes_durable_before_the_manifest_forgets(
    tmp_path: Path,
) -> None:
    """New segments, their names, the log, the manifest; only then the old ones go."""
    filesystem = FaultyFileSystem()
    with kvstore.open(tmp_path, segment_bytes=60, filesystem=filesystem) as db:
        db[b"ada"] = b"old"
        db[b"alan"] = b"1912"
        db[b"ada"] = (
            b"1815"  # in the second segment, and makes a record in the first dead
        )
        filesystem.calls.clear()
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


def test_pitfall_15_a_first_manifest_comes_after_its_segment(tmp_path: Path) -> None:
    """A new store is there when its manifest is, and not before."""
    filesystem = FaultyFileSystem()
    with kvstore.open(tmp_path / "store", filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
    steps = [
        f"sync {FIRST}",
        "sync_directory store",
        "sync MANIFEST.new",
        "rename MANIFEST.new MANIFEST",
        "sync_directory store",
        "create MARK",
        "sync_directory store",
        f"write {FIRST}",
    ]
    missing = first_missing(filesystem.log(), steps)
    assert missing is None, f"missing, or out of order: {missing}"


def test_pitfall_16_a_new_segment_takes_no_record_while_the_old_one_fails_to_sync(
    tmp_path: Path,
) -> None:
    """A rotation without its fsync would leave a hole in the middle of the log."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    filesystem.fail("sync", broken(), name=FIRST)
    with pytest.raises(OSError, match="the disk fails"):
        db[b"next"] = b""
    log = filesystem.log("create", "rename", "write")
    assert log == [], "the log went on behind a segment that isn't on the disk"
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()


# 17: a full disk in the middle of a manifest


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_pitfall_17_a_full_disk_leaves_the_old_manifest_whole(
    tmp_path: Path, taken: int
) -> None:
    """The manifest is written aside, and takes the old one's place when it is whole."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path / "store", filesystem)
    before = files(tmp_path / "store")
    filesystem.fail("write", None, name="MANIFEST", take=taken)
    filesystem.fail("write", full(), name="MANIFEST", times=3)
    for n in range(3):
        with pytest.raises(OSError, match="no room"):
            db[b"next"] = b""
        assert files(tmp_path / "store") == before, f"attempt {n} changed the store"
        assert read(copy_of(tmp_path / "store", f"copy {n}")) == {b"ada": b"1815"}
    db[b"next"] = b"when there is room again"
    db.close()
    expected = {b"ada": b"1815", b"next": b"when there is room again"}
    assert read(tmp_path / "store") == expected
    assert "write MANIFEST" not in filesystem.log(), "a manifest was written in place"


@pytest.mark.parametrize("operation", ["create", "write", "sync"])
def test_pitfall_17_a_compaction_without_room_for_its_manifest_changes_nothing(
    tmp_path: Path, operation: str
) -> None:
    """The old segments stay, the new ones go, and the store goes on."""
    filesystem = FaultyFileSystem()
    db = full_store(tmp_path, filesystem)
    db[b"next"] = b""
    before = files(tmp_path)
    filesystem.fail(operation, full(), name="MANIFEST")
    with pytest.raises(OSError, match="no room"):
        db.compact()
    after = files(tmp_path)
    del before["MARK"], after["MARK"]  # the log was synced
    assert after == before
    db[b"more"] = b""
    done = db.compact()
    assert done.records_dropped == 1
    db.close()
    assert read(tmp_path) == {b"ada": b"1815", b"next": b"", b"more": b""}


# 18: macOS


class Calls(list[str]):
    """Stands for the modules `fcntl` and `os`, and notes how a file is synced."""

    def fsync(self, descriptor: int) -> None:
        self.append(f"fsync {descriptor}")

    def fcntl(self, descriptor: int, command: int) -> int:
        self.append(f"fcntl {descriptor} {command}")
        return 0


def test_pitfall_18_on_macos_a_sync_reaches_the_platter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There fsync stops at the drive's cache, and only F_FULLFSYNC goes on."""
    calls = Calls()
    macos = SimpleNamespace(F_FULLFSYNC=51, fcntl=calls.fcntl)
    segment = Segment.create(DISK, str(tmp_path), 1)
    monkeypatch.setattr("kvstore.filesystem.fcntl", macos)
    monkeypatch.setattr("os.fsync", calls.fsync)
    file = DISK.create(str(tmp_path / "file"))
    DISK.sync(file)
    assert calls == [f"fcntl {file.descriptor} 51"]
    syncs: list[Callable[[], object]] = [
        lambda: DISK.sync_directory(str(tmp_path)),
        lambda: DISK.make_directory(str(tmp_path / "directory")),
        segment.sync,
        segment.seal,
        lambda: segment.rewrite(HEADER_BYTES),
    ]
    for sync in syncs:
        calls.clear()
        sync()
        assert [call.split()[::2] for call in calls] == [["fcntl", "51"]], (
            "a sync stops at the drive's cache"
        )


def test_pitfall_18_elsewhere_a_sync_is_an_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync is never skipped, whatever the system."""
    calls = Calls()
    monkeypatch.setattr("kvstore.filesystem.fcntl", SimpleNamespace())
    monkeypatch.setattr("os.fsync", calls.fsync)
    file = DISK.create(str(tmp_path / "file"))
    DISK.sync(file)
    assert calls == [f"fsync {file.descriptor}"]
    DISK.sync_directory(str(tmp_path))
    assert len(calls) == 2, "the directory was not synced"
