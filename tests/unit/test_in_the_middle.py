"""What comes in the middle of something: an interrupt, a call from inside, another thread.

Each test is about one moment. The programmes under `proof` look for such moments, and these
are rare, or need a store that is larger than theirs.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

import kvstore
from kvstore.filesystem import FileSystem
from kvstore.index import GONE, STEP, Index, Layer, fold_into
from kvstore.posix import DISK
from kvstore.store import LogStore
from tests.disks import NO_SYNC, PATIENCE, FaultyFileSystem
from tests.helpers import (
    Worker,
    disk_broken,
    disk_full,
    elsewhere,
    extend,
    files,
    in_a_fork,
    read,
    segments,
)


def log_store(path: Path, filesystem: FileSystem) -> LogStore:
    """Open a store whose parts a test looks at."""
    db = kvstore.open(path, filesystem=filesystem)
    assert isinstance(db, LogStore)
    return db


# Calls from inside


def test_a_close_that_is_refused_leaves_the_interval_running(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, sync=0.01, filesystem=filesystem) as db:

        def inside() -> None:
            with suppress(kvstore.ReentrantError):
                db.close()

        filesystem.at("write", ".segment", inside)
        db[b"ada"] = b"1815"
        time.sleep(0.1)
        db[b"ada"] = b"1852"
        filesystem.forget()
        end = time.monotonic() + 1
        while not filesystem.log("sync") and time.monotonic() < end:
            time.sleep(0.01)
        assert filesystem.log("sync"), "nobody syncs any more"


# Interrupts


class Interrupt(BaseException):
    """Something that comes in the middle."""


def test_a_close_after_one_that_failed_fails_too(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("truncate", disk_broken(), ".segment")
    for error in (OSError, kvstore.WriteRefusedError):
        with pytest.raises(error, match="Input/output error"):
            db.close()


def test_a_close_that_is_interrupted_after_its_word_is_done(path: Path) -> None:
    """The watermark says that the store was closed, so nothing may be written any more."""
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("sync", Interrupt(), "MARK")
    with suppress(Interrupt):
        db.close()
    with pytest.raises(kvstore.ClosedError):
        db[b"alan"] = b"1912"
    assert read(path) == {b"ada": b"1815"}


def test_the_last_call_of_a_close_is_its_word(path: Path) -> None:
    filesystem = FaultyFileSystem()
    kvstore.open(path, filesystem=filesystem).close()
    assert filesystem.log()[-1] == "sync MARK"


def test_a_tail_that_can_not_be_kept_leaves_nothing(path: Path) -> None:
    kvstore.open(path).close()
    extend(segments(path)[0], b"torn")
    before = files(path).keys()
    filesystem = FaultyFileSystem()
    filesystem.fail("write", disk_full(), ".cut-")
    with pytest.raises(OSError, match="No space left"):
        kvstore.open(path, filesystem=filesystem)
    assert files(path).keys() == before


def test_of_many_tails_at_one_place_the_newest_are_kept(path: Path) -> None:
    kvstore.open(path).close()
    for number in range(25):
        extend(segments(path)[0], b"torn %d" % number)
        kvstore.open(path).close()
    kept = {raw for name, raw in files(path).items() if ".cut-" in name}
    assert kept == {b"torn %d" % number for number in range(15, 25)}


def test_a_leftover_that_can_not_be_removed_is_in_nobodys_way(path: Path) -> None:
    kvstore.open(path).close()
    (path / "00000007.segment").mkdir()
    try:
        kvstore.open(path).close()
    except OSError as error:
        pytest.fail(f"the store can't be opened: {error}")


# Other threads


def test_an_iteration_that_has_waited_for_a_close_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem = FaultyFileSystem()
    db = log_store(path, filesystem)
    db[b"ada"] = b"1815"
    stop = filesystem.pause("sync", ".segment")
    index = db._log.index
    closing: list[Worker] = []
    merge_layers = index.merge_layers

    def meanwhile() -> object:
        closing.append(Worker(db.close))
        assert stop.reached.wait(PATIENCE)
        threading.Timer(0.05, stop.go_on.set).start()
        return merge_layers()

    monkeypatch.setattr(index, "merge_layers", meanwhile)
    found: set[bytes] | None = None
    with suppress(kvstore.ClosedError):
        found = {*db}  # `list` would ask for the length too
    closing[0].done()
    assert found in (None, {b"ada"}), "a store that is closed passes for an empty one"


def is_free(lock: threading.RLock) -> bool:
    """Say whether another thread could take a lock."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(lock.acquire(blocking=False))
        if taken[0]:
            lock.release()

    elsewhere(take)
    return taken[0]


def test_nobody_writes_while_the_oldest_moment_is_looked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it looks through must not change meanwhile."""
    db = log_store(path, NO_SYNC)
    free: list[bool] = []
    oldest_moment = db._log.index.oldest_moment

    def look() -> float:
        free.append(is_free(db._log.writing))
        return oldest_moment()

    monkeypatch.setattr(db._log.index, "oldest_moment", look)
    db.update({b"ada": b"1", b"alan": b"1912"})
    db[b"ada"] = b"2"
    db.compact()
    db.close()
    assert free
    assert not any(free), "another thread could have changed it"


CHANGES: dict[str, Callable[[LogStore], object]] = {
    "setdefault": lambda db: db.setdefault(b"grace", b"1906"),
    "pop": lambda db: db.pop(b"ada"),  # the value is read in the lock too
    "popitem": lambda db: db.popitem(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nobody_writes_while_a_change_is_decided(
    path: Path, change: Callable[[LogStore], object]
) -> None:
    """These look first, and nothing may change before they have written."""
    with log_store(path, NO_SYNC) as db:
        db.update({b"ada": b"1815", b"alan": b"1912"})
        free: list[bool] = []
        get = db._index.get

        def look(key: bytes) -> int | None:
            free.append(is_free(db._log.writing))
            return get(key)

        db._index.get = look
        change(db)
        assert free == [False] * len(free) != [], "another thread could have changed it"


def test_others_write_while_a_new_segment_becomes_durable(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=50, filesystem=filesystem) as db:
        db[b"ada"] = b"1" * 40
        stop = filesystem.pause("sync", "2.segment")
        first = Worker(lambda: db.__setitem__(b"alan", b"1912"))
        assert stop.reached.wait(PATIENCE)
        second = Worker(lambda: db.__setitem__(b"grace", b"1906"))
        second.join(1)
        waits = second.is_alive()
        stop.go_on.set()
        first.done()
        second.done()
        assert not waits, "a put waits for the fsync of another"


def test_a_second_close_spares_an_iteration_as_the_first_did(path: Path) -> None:
    db = kvstore.open(path, segment_bytes=50)
    expected = {b"%d" % number: b"1" * 40 for number in range(3)}
    db.update(expected)
    iteration = iter(db.items())
    found = dict([next(iteration)])
    db.close()
    db.close()
    with suppress(OSError):
        found |= dict(iteration)
    assert found == expected


def test_a_close_beside_an_iteration_keeps_few_files_open(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, segment_bytes=1, filesystem=filesystem)
    db.update({b"%d" % number: b"1" for number in range(30)})
    iteration = iter(db.items())
    next(iteration)
    filesystem.forget()
    db.close()
    assert 0 < len(filesystem.log("open")) <= filesystem.budget.most


def test_a_close_while_an_iteration_begins_leaves_it_its_values(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.at("map", ".segment", db.close)
    found: dict[bytes, bytes] = {}
    with suppress(KeyError):
        found.update(db.items())
    assert found == {b"ada": b"1815"}, "T4: a close took an iteration its values"


def test_a_walk_for_some_key_begins_anew_after_a_fold() -> None:
    index = Index({b"%d" % number: 1 for number in range(9 * STEP)})
    moment = index.moment(*index.merge_layers())
    index.apply({b"%d" % number: GONE for number in range(3 * STEP, 9 * STEP)})
    assert index.some_key() is not None
    del moment
    found: set[bytes] = set()
    with suppress(RuntimeError):
        while (key := index.some_key()) is not None:
            found.add(key)
            index.apply({key: GONE})
            if len(found) % STEP == 0:
                index.fold()
    assert len(index) == 0, "keys are there, and none is found"


def test_a_moment_copies_nothing() -> None:
    index = Index({b"ada": 1})
    top = index.top
    moment = index.moment(*index.merge_layers())
    assert moment.layers.layers[0] is top, "a writer has to wait for the copy"


# Children


def test_a_child_waits_for_no_lock_of_its_parent(path: Path) -> None:
    with log_store(path, NO_SYNC) as db:
        db[b"ada"] = b"1815"

        def closed() -> str:
            closing = Worker(db.close)
            closing.join(1)
            return "waits" if closing.is_alive() else "closed"

        for lock in (db._compactor.compacting, db._files.changing, db._log.syncing):
            with lock:
                assert in_a_fork(closed) == "closed"


@pytest.mark.parametrize("number", [1, 3], ids=["header", "record"])
def test_a_child_that_leaves_a_call_of_its_parent_undoes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A handler may fork. What the child unwinds when it exits is the parent's."""
    parent, pwrite, calls = os.getpid(), DISK.pwrite, itertools.count(-1000)
    reads, writes = os.pipe()

    def fork(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if next(calls) == number and os.fork() == 0:
            os.read(reads, 1)  # until the parent has done what it does here
            raise Interrupt
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(DISK, "pwrite", fork)
    db = kvstore.open(path, segment_bytes=1)
    db[b"ada"] = b"1815"
    calls = itertools.count(1)
    try:
        db[b"alan"] = b"1912"  # in a new segment
    finally:
        if os.getpid() != parent:
            os._exit(0)
    os.write(writes, b"!")
    os.wait()
    found: dict[bytes, bytes] = {}
    with suppress(kvstore.CorruptionError):
        db.close()
        found = read(path)
    assert found == {b"ada": b"1815", b"alan": b"1912"}, "T2: a child took something"


def test_a_handler_puts_nothing_after_the_last_sync_of_a_close(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = log_store(path, NO_SYNC)
    db[b"ada"] = b"1815"
    finish = db._log.finish

    def finish_and_put() -> None:
        finish()
        with pytest.raises(kvstore.ReentrantError):
            db[b"alan"] = b"1912"

    monkeypatch.setattr(db._log, "finish", finish_and_put)
    db.close()


def test_a_walk_for_some_key_begins_anew_after_half_a_fold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = Index({b"%d" % number: 1 for number in range(3 * STEP)})
    moment = index.moment(*index.merge_layers())
    index.apply({b"%d" % number: GONE for number in range(STEP)})
    assert index.some_key() is not None
    del moment

    def half(base: Layer, changes: Iterable[tuple[bytes, int]]) -> None:
        fold_into(base, list(changes)[:9])
        raise Interrupt

    with monkeypatch.context() as patched, suppress(Interrupt):
        patched.setattr("kvstore.index.fold_into", half)
        index.fold()
    index.apply({b"%d" % number: GONE for number in range(STEP, 3 * STEP - 1)})
    found = None
    with suppress(RuntimeError):
        found = index.some_key()
    assert found == b"%d" % (3 * STEP - 1), "a key is there, and is not found"
