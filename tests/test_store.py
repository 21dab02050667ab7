"""The store as people use it: a mapping from bytes to bytes, with what it promises."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import shelve
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import pytest
from faults import FaultyFileSystem
from support import (
    PATIENCE,
    Contents,
    Process,
    Worker,
    files,
    flip,
    meanwhile,
    pause,
    read,
    record_bytes,
    refusals,
    segments,
)

import kvstore
import kvstore.record
import kvstore.store
from kvstore.index import Index
from kvstore.mark import read_mark
from kvstore.segment import HEADER_BYTES
from kvstore.simdisk import Operation, SimulatedDisk, no_fault


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


@pytest.fixture
def db(path: Path) -> Iterator[kvstore.Store]:
    """Return an open store with a few keys."""
    with kvstore.open(path) as opened:
        opened.update({b"ada": b"1815", b"alan": b"1912", b"grace": b"1906"})
        yield opened


def disk_full() -> OSError:
    """Return the error of a disk that has no room left."""
    return OSError(errno.ENOSPC, "No space left on device")


def disk_broken() -> OSError:
    """Return the error of a disk that fails."""
    return OSError(errno.EIO, "Input/output error")


def in_batch(db: kvstore.Store, changes: dict[bytes, bytes | None]) -> None:
    """Make changes in a batch: a value for each key, None to delete it."""
    with db.batch() as batch:
        for key, value in changes.items():
            if value is None:
                del batch[key]
            else:
                batch[key] = value


# Flags


def test_flag_c_makes_a_store_and_keeps_the_one_that_is_there(path: Path) -> None:
    with kvstore.open(path, "c") as db:
        db[b"ada"] = b"1815"
    with kvstore.open(path, "c") as db:
        assert dict(db) == {b"ada": b"1815"}, "c keeps what is there"


def test_flag_w_writes_a_store_that_is_there(path: Path) -> None:
    kvstore.open(path).close()
    with kvstore.open(path, "w") as db:
        db[b"ada"] = b"1815"
    assert read(path) == {b"ada": b"1815"}


@pytest.mark.parametrize("flag", ["r", "w"])
def test_flags_r_and_w_make_nothing(path: Path, flag: kvstore.store.Flag) -> None:
    with pytest.raises(kvstore.StoreNotFoundError) as caught:
        kvstore.open(path, flag)
    assert str(path) in str(caught.value), "the error says where there is no store"
    assert 'flag="c"' in str(caught.value), "the error says what would make one"
    assert not path.exists(), "nothing is made"


@pytest.mark.parametrize("flag", ["r", "w"])
def test_flags_r_and_w_leave_an_empty_directory_empty(
    path: Path, flag: kvstore.store.Flag
) -> None:
    path.mkdir()
    with pytest.raises(kvstore.StoreNotFoundError):
        kvstore.open(path, flag)
    assert files(path) == {}, "nothing is made"


def test_flag_n_begins_with_an_empty_store(path: Path) -> None:
    with kvstore.open(path, "n", segment_bytes=50) as db:
        db.update({b"%d" % number: b"x" * 30 for number in range(5)})
        assert len(segments(path)) > 2
    with kvstore.open(path, "n") as db:
        assert dict(db) == {}, "n begins with nothing"
        db[b"new"] = b"1"
    assert read(path) == {b"new": b"1"}
    assert len(segments(path)) == 1, "the old segments are gone"


@pytest.mark.parametrize("name", ["MANIFEST", "00000001.segment", "MARK"])
def test_flag_n_begins_anew_also_where_a_store_is_damaged(
    path: Path, name: str
) -> None:
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
    flip(path / name, 20, 3)
    with kvstore.open(path, "n") as db:
        db[b"new"] = b"1"
    assert read(path) == {b"new": b"1"}


def test_a_path_can_be_a_string_or_a_path(path: Path) -> None:
    kvstore.open(str(path)).close()
    kvstore.open(path, "w").close()


# Options that make no sense


@pytest.mark.parametrize("flag", ["x", "", "rw", "R", None])
def test_a_wrong_flag_is_told_the_right_ones(path: Path, flag: Any) -> None:
    with pytest.raises(ValueError, match=r'"r" reads.*"w".*"c".*"n"'):
        kvstore.open(path, flag)
    assert not path.exists(), "nothing is made"


@pytest.mark.parametrize(
    "sync",
    ["never", "", None, True, False, 0, -1, 0.0, float("nan"), float("inf"), b"os"],
)
def test_a_wrong_sync_is_told_the_right_ones(path: Path, sync: Any) -> None:
    with pytest.raises(ValueError, match=r'"os", "always" or a number of seconds'):
        kvstore.open(path, sync=sync)
    assert not path.exists(), "nothing is made"


def test_an_interval_longer_than_the_system_can_wait_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="sync is"):
        kvstore.open(path, sync=threading.TIMEOUT_MAX * 2).close()


@pytest.mark.parametrize("size", [0, -1, (1 << 30) + 1, 1.5, "big", None])
def test_a_wrong_segment_size_is_told_the_right_ones(path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match=r"whole number of bytes from 1 to 1,073"):
        kvstore.open(path, segment_bytes=size)
    assert not path.exists(), "nothing is made"


def test_a_segment_can_be_as_small_as_one_byte(path: Path) -> None:
    with kvstore.open(path, segment_bytes=1) as db:
        db.update({b"a": b"1", b"b": b"2"})
    assert read(path) == {b"a": b"1", b"b": b"2"}


# A mapping


def test_what_was_put_is_got_whatever_the_bytes_are(path: Path) -> None:
    seed = 20240229
    print("seed", seed)
    chance = random.Random(seed)
    expected: Contents = {b"": b"", b"\0": b"\0", b"\xff" * 9: b"\n", b"empty": b""}
    for _ in range(300):
        key = chance.randbytes(chance.randrange(40))
        expected[key] = chance.randbytes(chance.choice((0, 1, 30, 5000)))
    with kvstore.open(path, segment_bytes=100_000) as db:
        db.update(expected)
        got = {key: db[key] for key in expected}
        assert got == expected, "a get returns what was put"
        assert len(db) == len(expected)
        assert dict(db) == expected, "items are what was put"
        assert db == expected, "a store equals a dict of the same contents"
    with kvstore.open(path) as db:
        assert {key: db[key] for key in expected} == expected, "and after reopening"


def test_the_last_put_of_a_key_counts(db: kvstore.Store, path: Path) -> None:
    for value in (b"long" * 50, b"", b"1815-1852"):
        db[b"ada"] = value
        assert db[b"ada"] == value
    assert len(db) == 3, "a key that is put again is one key"
    assert read(path)[b"ada"] == b"1815-1852"


def test_a_deleted_key_is_gone(db: kvstore.Store, path: Path) -> None:
    del db[b"ada"]
    assert b"ada" not in db
    assert len(db) == 2
    with pytest.raises(KeyError):
        db[b"ada"]
    assert b"ada" not in read(path), "and after reopening"
    db[b"ada"] = b"again"
    assert db[b"ada"] == read(path)[b"ada"] == b"again", "it can be put again"


def test_a_missing_key_is_a_key_error_that_names_it(db: kvstore.Store) -> None:
    attempts: list[Callable[[bytes], object]] = [db.__getitem__, db.__delitem__]
    for attempt in attempts:
        with pytest.raises(KeyError) as caught:
            attempt(b"no")
        assert caught.value.args == (b"no",), "the error holds the key"
    assert db.get(b"no") is None
    assert db.get(b"no", b"else") == b"else"
    assert b"no" not in db


def test_a_delete_of_a_missing_key_writes_nothing(
    db: kvstore.Store, path: Path
) -> None:
    before = files(path)
    with pytest.raises(KeyError):
        del db[b"no"]
    assert files(path) == before


@pytest.mark.parametrize("word", ["text", "", 5, None, 1.5])
def test_anything_but_bytes_is_a_type_error_with_advice(
    db: kvstore.Store, path: Path, word: Any
) -> None:
    before = files(path)
    with db.batch() as batch:
        attempts: dict[str, Callable[[], object]] = {
            "get": lambda: db[word],
            "get with a default": lambda: db.get(word),
            "put of a key": lambda: db.__setitem__(word, b"value"),
            "put of a value": lambda: db.__setitem__(b"key", word),
            "delete": lambda: db.__delitem__(word),
            "in": lambda: word in db,
            "pop": lambda: db.pop(word, None),
            "put of a key in a batch": lambda: batch.__setitem__(word, b"value"),
            "put of a value in a batch": lambda: batch.__setitem__(b"key", word),
            "delete in a batch": lambda: batch.__delitem__(word),
        }
        for name, attempt in attempts.items():
            with pytest.raises(TypeError) as caught:
                attempt()
            message = str(caught.value)
            assert type(word).__name__ in message, f"{name}: the type is named"
            advice = "encode" if isinstance(word, str) else "use bytes"
            assert advice in message, f"{name}: the error says what to do"
    assert files(path) == before, "nothing was written"


@pytest.mark.parametrize("word", [bytearray(b"ada"), memoryview(b"ada")])
def test_what_can_change_later_is_not_taken_for_bytes(
    db: kvstore.Store, word: Any
) -> None:
    for key, value in ((word, b"value"), (b"key", word)):
        with pytest.raises(TypeError, match="must be bytes"):
            db[key] = value
    assert db[b"ada"] == b"1815"


def test_pop_returns_what_it_removes(db: kvstore.Store) -> None:
    assert db.pop(b"ada") == b"1815"
    assert b"ada" not in db
    assert db.pop(b"ada", b"else") == b"else"
    with pytest.raises(KeyError):
        db.pop(b"ada")


def test_popitem_takes_every_key_once_and_then_says_that_none_is_left(
    db: kvstore.Store, path: Path
) -> None:
    expected = dict(db)
    taken = [db.popitem() for _ in range(3)]
    assert taken[0] == (b"grace", b"1906"), "the key that was put last goes first"
    assert dict(taken) == expected
    assert read(path) == {}
    with pytest.raises(KeyError, match="empty"):
        db.popitem()


def test_clear_leaves_nothing(db: kvstore.Store, path: Path) -> None:
    db.clear()
    assert dict(db) == read(path) == {}
    assert len(db) == 0
    db.clear()


def test_setdefault_puts_only_what_is_missing(db: kvstore.Store) -> None:
    assert db.setdefault(b"ada", b"0") == b"1815"
    assert db.setdefault(b"bob", b"0") == b"0"
    assert db[b"bob"] == b"0"


def test_update_takes_mappings_and_pairs(db: kvstore.Store) -> None:
    db.update({b"ada": b"1"})
    db.update([(b"bob", b"2"), (b"ada", b"3")])
    assert (db[b"ada"], db[b"bob"]) == (b"3", b"2")


def test_the_views_are_those_of_a_mapping(db: kvstore.Store) -> None:
    expected = {b"ada": b"1815", b"alan": b"1912", b"grace": b"1906"}
    assert list(db) == list(db.keys()) == list(expected)
    assert list(db.values()) == list(expected.values())
    assert list(db.items()) == list(expected.items())
    assert len(db.keys()) == len(db.values()) == len(db.items()) == 3
    assert b"ada" in db.keys()  # noqa: SIM118 - the view is what is looked at
    assert b"1912" in db.values()
    assert b"1913" not in db.values()
    assert (b"ada", b"1815") in db.items()
    assert (b"ada", b"1912") not in db.items()
    assert db.keys() & {b"ada", b"bob"} == {b"ada"}


def open_shelf(path: Path, flag: kvstore.store.Flag) -> shelve.Shelf[object]:
    """Return a shelf of objects on top of a store."""
    return shelve.Shelf(cast("Any", kvstore.open(path, flag)))


def test_shelve_works_on_top(path: Path) -> None:
    with open_shelf(path, "c") as shelf:
        shelf["ada"] = {"born": 1815, "notes": ["a", "b"]}
        shelf["alan"] = 1912
        del shelf["alan"]
        shelf.sync()
    with open_shelf(path, "r") as shelf:
        assert dict(shelf) == {"ada": {"born": 1815, "notes": ["a", "b"]}}


def test_repr_tells_path_keys_and_bytes(path: Path) -> None:
    with kvstore.open(path, segment_bytes=1000) as db:
        db.update({b"%04d" % number: b"" for number in range(1234)})
        held = sum(segment.stat().st_size for segment in segments(path))
        assert repr(db) == f"<kvstore.Store {str(path)!r}: 1,234 keys, {held:,} bytes>"
    assert repr(db) == f"<kvstore.Store {str(path)!r}: closed>"


# Limits


def test_a_key_of_65535_bytes_fits_and_one_more_is_refused_before_writing(
    db: kvstore.Store, path: Path
) -> None:
    longest = b"k" * 65_535
    db[longest] = b"fits"
    assert db[longest] == read(path)[longest] == b"fits"
    before = files(path)
    with pytest.raises(kvstore.LimitError, match="65,536 bytes, at most 65,535"):
        db[longest + b"k"] = b"does not"
    with pytest.raises(ValueError, match="65,535"), db.batch() as batch:
        batch[longest + b"k"] = b"does not"
    assert files(path) == before, "nothing was written"
    assert longest + b"k" not in db, "a key that is too long is not there either"


def test_a_value_beyond_the_limit_is_refused_before_writing(
    db: kvstore.Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kvstore.record.MAX_VALUE_BYTES == 1 << 30, "the limit is 1 GiB"
    monkeypatch.setattr(kvstore.record, "MAX_VALUE_BYTES", 1000)
    db[b"fits"] = b"v" * 1000
    before = files(path)
    with pytest.raises(kvstore.LimitError, match=r"1,001 bytes, at most 1,000"):
        db[b"does not"] = b"v" * 1001
    with pytest.raises(kvstore.LimitError, match="pieces"), db.batch() as batch:
        batch[b"does not"] = b"v" * 1001
    assert files(path) == before, "nothing was written"
    assert read(path)[b"fits"] == b"v" * 1000


def test_a_batch_beyond_the_limit_is_refused_whole(
    db: kvstore.Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvstore.store, "MAX_BATCH_BYTES", 1000)
    before = files(path)
    with pytest.raises(kvstore.LimitError, match="several batches"):
        in_batch(db, {b"a": b"v" * 500, b"b": b"v" * 500})
    assert files(path) == before, "nothing was written"
    assert b"a" not in db
    with db.batch() as fits:
        fits[b"a"] = b"v" * 500
    assert db[b"a"] == b"v" * 500


def test_values_larger_than_a_segment_work(path: Path) -> None:
    expected = {b"%d" % number: b"%d" % number * 3000 for number in range(4)}
    with kvstore.open(path, segment_bytes=1000) as db:
        db.update(expected)
        db[b"0"] = expected[b"0"] = b"x" * 3_000_000
        assert dict(db) == expected
        db.compact()
        assert dict(db) == expected, "and after a compaction"
    assert read(path) == expected, "and after reopening"


def test_memory_does_not_grow_with_the_size_of_the_values(path: Path) -> None:
    tracemalloc.start()
    try:
        with kvstore.open(path, segment_bytes=4 << 20) as db:
            for number in range(24):
                db[b"%d" % (number % 16)] = bytes([number]) * (1 << 20)
            db.compact()
            assert sum(len(each) for each in db.values()) == 16 << 20
        gc.collect()
        tracemalloc.reset_peak()
        with kvstore.open(path) as db:
            held, peak = tracemalloc.get_traced_memory()
            assert len(db) == 16
    finally:
        tracemalloc.stop()
    assert held < 3 << 20, f"16 MiB of values, and {held:,} bytes in memory"
    assert peak < 6 << 20, f"opening 16 MiB of values took {peak:,} bytes"


# Batches


def test_a_batch_is_there_when_its_block_ends_and_not_before(
    db: kvstore.Store, path: Path
) -> None:
    before = dict(db)
    with db.batch() as batch:
        batch[b"bob"] = b"1"
        batch[b"ada"] = b"2"
        del batch[b"alan"]
        assert len(batch) == 3, "a batch counts its changes"
        assert dict(db) == read(path) == before, "nothing is done before the end"
    after = {b"ada": b"2", b"bob": b"1", b"grace": b"1906"}
    assert dict(db) == after
    assert read(path) == after, "and after reopening"


def test_a_batch_whose_block_raises_does_nothing(db: kvstore.Store, path: Path) -> None:
    before, held = dict(db), files(path)
    with pytest.raises(KeyError, match="no such key"):
        in_batch(db, {b"bob": b"1", b"ada": None, b"no such key": None})
    assert dict(db) == before, "all or nothing"
    assert files(path) == held, "nothing was written"


def test_a_batch_whose_write_fails_does_nothing(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        size = segments(path)[0].stat().st_size
        filesystem.fail("write", None, name=".segment", take=30)
        filesystem.fail("write", disk_full(), name=".segment")
        with pytest.raises(OSError, match="No space"):
            in_batch(db, {b"bob": b"1", b"ada": None})
        assert dict(db) == read(path) == {b"ada": b"1815"}, "all or nothing"
        assert segments(path)[0].stat().st_size == size, "the file is cut back"
        with db.batch() as batch:
            batch[b"bob"] = b"2"
            del batch[b"ada"]
    assert read(path) == {b"bob": b"2"}, "and the next batch is done"


def test_the_last_change_of_a_key_in_a_batch_counts(
    db: kvstore.Store, path: Path
) -> None:
    with db.batch() as batch:
        batch[b"ada"] = b"first"
        del batch[b"ada"]
        batch[b"bob"] = b"first"
        batch[b"bob"] = b"last"
        del batch[b"alan"]
        batch[b"alan"] = b"back"
        batch[b"new"] = b""
        del batch[b"new"]
    expected = {b"bob": b"last", b"alan": b"back", b"grace": b"1906"}
    assert dict(db) == read(path) == expected


def test_a_batch_can_not_delete_what_is_not_there(db: kvstore.Store) -> None:
    with db.batch() as batch:
        with pytest.raises(KeyError):
            del batch[b"no"]
        del batch[b"ada"]
        with pytest.raises(KeyError):
            del batch[b"ada"]
    assert b"ada" not in db


def test_a_batch_does_not_mind_that_another_thread_deletes_its_key_first(
    db: kvstore.Store, path: Path
) -> None:
    with db.batch() as batch:
        del batch[b"ada"]
        batch[b"bob"] = b"1"
        del db[b"ada"]
    assert b"ada" not in db
    assert read(path) == dict(db) == {b"alan": b"1912", b"grace": b"1906", b"bob": b"1"}


def test_a_batch_takes_changes_only_inside_its_block(db: kvstore.Store) -> None:
    batch = db.batch()
    with batch:
        batch[b"bob"] = b"1"
    for attempt in (
        lambda: batch.__setitem__(b"late", b"1"),
        lambda: batch.__delitem__(b"bob"),
        lambda: len(batch),
    ):
        with pytest.raises(kvstore.ClosedError, match="inside its with block"):
            attempt()
    assert b"late" not in db


def test_an_empty_batch_writes_nothing(db: kvstore.Store, path: Path) -> None:
    before = files(path)
    with db.batch():
        pass
    assert files(path) == before


def test_a_batch_can_be_larger_than_a_segment(path: Path) -> None:
    expected = {b"%d" % number: b"x" * 50 for number in range(50)}
    with kvstore.open(path, segment_bytes=100) as db, db.batch() as batch:
        for key, value in expected.items():
            batch[key] = value
    assert read(path) == expected


# Iteration


def iterate(db: kvstore.Store, view: str) -> Iterator[object]:
    """Begin an iteration over a store, in one of the four ways."""
    views: dict[str, Callable[[], Iterable[object]]] = {
        "keys": db.keys,
        "values": db.values,
        "items": db.items,
        "iter": lambda: db,
    }
    return iter(views[view]())


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("view", ["keys", "values", "items", "iter"])
def test_an_iterator_sees_the_store_as_it_was_when_it_began(
    path: Path, view: str, compacted: bool
) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"old %d" % number for number in range(20)})
        expected = list(iterate(db, view))
        not_started = iterate(db, view)
        half_way = iterate(db, view)
        begun = [next(half_way) for _ in range(7)]
        for number in range(0, 20, 2):
            db[b"%d" % number] = b"new"
        for number in range(1, 20, 4):
            del db[b"%d" % number]
        db[b"later"] = b"new"
        if compacted:
            db.compact()
        try:
            seen = begun + list(half_way)
        except RuntimeError as error:
            pytest.fail(f"writes disturb an iteration: {error}")
        assert seen == expected, "writes leave an iteration alone"
        assert list(not_started) == expected, "an iteration begins with iter()"
        assert list(iterate(db, view)) != expected, (
            "a new one sees the store as it is now"
        )
        assert len(list(iterate(db, view))) == 16


def test_a_value_can_be_searched_while_keys_are_deleted(db: kvstore.Store) -> None:
    class Deleting(bytes):
        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            db.clear()
            return bytes.__eq__(self, other)

    assert Deleting(b"1906") in db.values(), "the search sees the store as it was"
    assert len(db) == 0


# Durability


def fsyncs(filesystem: FaultyFileSystem) -> int:
    """Return how often a segment was synced so far."""
    return sum(".segment" in call for call in filesystem.log("sync"))


def test_sync_os_leaves_the_disk_to_the_system_until_it_is_asked(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        opened = fsyncs(filesystem)
        db.update({b"ada": b"1815", b"alan": b"1912"})
        del db[b"ada"]
        assert fsyncs(filesystem) == opened, "a put waits for no disk"
        assert read(path) == {b"alan": b"1912"}, "but it is in the kernel"
        db.sync()
        assert fsyncs(filesystem) == opened + 1, "sync waits for the disk"
        db.sync()
        assert fsyncs(filesystem) == opened + 1, "there was nothing left to wait for"
        db[b"bob"] = b"1"
    assert fsyncs(filesystem) == opened + 2, "close leaves nothing unsynced"


def test_sync_always_has_every_change_on_the_disk_when_it_returns(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, sync="always", filesystem=filesystem) as db:

        def batch() -> None:
            with db.batch() as changes:
                changes[b"ada"] = b"3"
                changes[b"bob"] = b"4"

        changes: list[Callable[[], object]] = [
            lambda: db.__setitem__(b"ada", b"1"),
            lambda: db.__setitem__(b"ada", b"2"),
            batch,
            lambda: db.__delitem__(b"ada"),
        ]
        for change in changes:
            filesystem.calls.clear()
            change()
            calls = [call for call in filesystem.log("write", "sync") if "seg" in call]
            assert calls == ["write 00000001.segment", "sync 00000001.segment"], (
                "one write, then one fsync"
            )


def test_threads_that_wait_together_share_one_fsync(path: Path) -> None:
    filesystem, count = FaultyFileSystem(), 20
    with kvstore.open(path, sync="always", filesystem=filesystem) as db:
        before = fsyncs(filesystem)
        first_sync = pause(filesystem, "sync", ".segment")
        workers = [Worker(lambda: db.__setitem__(b"first", b"1"))]
        assert first_sync.reached.wait(PATIENCE)
        last_write = pause(filesystem, "write", ".segment")
        last_write.first = count  # of those that are still to come
        for number in range(count):
            key = b"%d" % number
            workers.append(Worker(partial(db.__setitem__, key, b"1")))
        assert last_write.reached.wait(PATIENCE), (
            "puts go on while an fsync is waited for"
        )
        assert fsyncs(filesystem) == before + 1, "nobody starts another one meanwhile"
        assert all(worker.is_alive() for worker in workers), (
            "none returns before its change is on the disk"
        )
        first_sync.go_on.set()
        last_write.go_on.set()
        for worker in workers:
            worker.done()
        assert fsyncs(filesystem) == before + 2, f"{count} threads share one fsync"
        assert len(db) == count + 1


class Clock(threading.Event):
    """An event whose waiting takes no time: it says what happens instead."""

    def __init__(self, steps: Iterable[Callable[[], object]]) -> None:
        super().__init__()
        self._steps = iter(steps)
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Note how long was to be waited, do the next thing, and stop at the end."""
        self.waited.append(timeout)
        step = next(self._steps, None)
        if step is None:
            return True
        step()
        return False


def test_an_interval_syncs_now_and_then_until_the_store_is_closed(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        counts = [fsyncs(filesystem)]

        def put() -> None:
            counts.append(fsyncs(filesystem))
            db[b"ada"] = b"%d" % len(counts)

        def nothing() -> None:
            counts.append(fsyncs(filesystem))

        clock = Clock([put, put, nothing, put])
        kvstore.store.sync_now_and_then(weakref.ref(db), clock, 1.5)
        nothing()
    assert clock.waited == [1.5] * 5, "it waits as long as it was told"
    steps = [after - before for before, after in pairwise(counts)]
    assert steps == [0, 1, 1, 0, 1], "one fsync each time that something was written"


def test_an_interval_does_not_keep_a_store_that_nobody_holds(path: Path) -> None:
    held = [kvstore.open(path)]
    clock = Clock([list, held.clear, lambda: pytest.fail("it keeps the store")])
    kvstore.store.sync_now_and_then(weakref.ref(held[0]), clock, 1.0)
    assert held == []
    kvstore.open(path).close()


def test_a_failed_sync_in_the_background_is_logged_and_stops_the_writes(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    filesystem.fail("sync", disk_broken(), name=".segment")
    clock = Clock([lambda: db.__setitem__(b"ada", b"1"), lambda: pytest.fail("again")])
    kvstore.store.sync_now_and_then(weakref.ref(db), clock, 1.0)
    assert "Input/output error" in caplog.text, "somebody has to hear of it"
    with pytest.raises(kvstore.WriteRefusedError, match="Input/output error"):
        db[b"bob"] = b"1"
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()


def test_a_number_for_sync_starts_the_interval(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    started = threading.Event()

    def note(*arguments: object) -> None:
        given.extend([*arguments, threading.current_thread().daemon])
        started.set()

    monkeypatch.setattr(kvstore.store, "sync_now_and_then", note)
    with kvstore.open(path, sync=2.5) as db:
        assert started.wait(PATIENCE), "a thread syncs in the background"
        reference, closing, seconds, daemon = given
        assert cast("weakref.ref[kvstore.Store]", reference)() is db
        assert (seconds, daemon) == (2.5, True)
        assert not cast("threading.Event", closing).is_set()
    assert cast("threading.Event", closing).is_set(), "close ends it"


def test_a_store_that_nobody_closes_leaves_no_thread_behind(path: Path) -> None:
    """The thread of an interval waits for its end, and an hour is a long time."""
    before = set(threading.enumerate())
    db = kvstore.open(path, sync=3600.0)
    db[b"ada"] = b"1815"
    (thread,) = set(threading.enumerate()) - before
    del db
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits for a store that is gone"
    assert read(path) == {b"ada": b"1815"}


# Failures


def test_a_mark_that_can_not_be_written_is_no_error_of_the_put(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The fsync has succeeded: the record is on the disk, and everybody can read it.

    An error here would tell of a put that is not safe, and it is. So the store warns, and
    its next open takes more of the log for unsure than it need be.
    """
    disk = SimulatedDisk(sector_bytes=1)
    db = kvstore.open("store", sync="always", filesystem=disk)
    noted = read_mark(disk, "store")

    def no_room_for_the_mark(operation: Operation) -> None:
        if operation[:2] == ("write", "store/MARK"):
            raise disk_full()

    disk.fault = no_room_for_the_mark
    db[b"ada"] = b"1815"
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "the mark could not be moved" in warning.getMessage()
    assert read_mark(disk, "store") == noted, "the fault is meant to strike"
    expected = {b"ada": b"1815"}
    for picks, image in disk.power_cut().images(1000):
        with kvstore.open("store", filesystem=SimulatedDisk(image)) as after:
            assert dict(after) == expected, disk.power_cut().describe(picks)
    disk.fault = no_fault
    db[b"alan"] = b"1912"
    assert len(caplog.records) == 1
    moved = read_mark(disk, "store")
    assert moved is not None
    assert moved.synced.length == HEADER_BYTES + 2 * record_bytes(b"ada", b"1815") + 1
    db.close()


def fail_in_sync(db: kvstore.Store, filesystem: FaultyFileSystem) -> None:
    """Fail an fsync that was asked for."""
    db[b"new"] = b"1"
    filesystem.fail("sync", disk_broken(), name=".segment")
    db.sync()


def fail_in_rotation(db: kvstore.Store, filesystem: FaultyFileSystem) -> None:
    """Fail the fsync of a segment that is full."""
    db[b"new"] = b"1"
    db[b"next"] = b"x" * 500
    filesystem.fail("sync", disk_broken(), name=".segment")
    db[b"newer"] = b"1"


def fail_in_compaction(db: kvstore.Store, filesystem: FaultyFileSystem) -> None:
    """Fail the fsync of the log before a compaction makes its change."""
    del db[b"ada"]
    meanwhile(filesystem, "create", "00000003", lambda: db.__setitem__(b"new", b"1"))
    filesystem.fail("sync", disk_broken(), name="00000002", first=2)
    db.compact()


@pytest.mark.parametrize("fail", [fail_in_sync, fail_in_rotation, fail_in_compaction])
def test_a_failed_fsync_ends_the_writes_and_not_the_reads(
    path: Path, fail: Callable[[kvstore.Store, FaultyFileSystem], None]
) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, segment_bytes=500, filesystem=filesystem)
    db.update({b"ada": b"1815", b"alan": b"1912"})
    with pytest.raises(OSError, match="Input/output error"):
        fail(db, filesystem)
    count, written, held = fsyncs(filesystem), dict(db), files(path)
    assert written[b"new"] == b"1", "reading goes on, of what is not safe as well"
    for name, attempt in (refusals(db) | {"sync": db.sync}).items():
        with pytest.raises(kvstore.WriteRefusedError) as caught:
            attempt()
        message = str(caught.value)
        assert "Input/output error" in message, f"{name}: the error names the cause"
        assert "open it again" in message, f"{name}: the error says what to do"
    assert files(path) == held, "nothing was written"
    assert fsyncs(filesystem) == count, "an fsync that failed is not tried again"
    assert dict(db) == written, "reading goes on"
    assert db.stats().keys == len(written)
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()
    with kvstore.open(path) as again:
        assert dict(again) == written, "opening it again has everything that was read"
        again[b"bob"] = b"1"


def use_and_fail(path: Path, *, catch: bool) -> None:
    """Use a store in a with block, and let the fsync in it fail."""
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        filesystem.fail("sync", disk_broken(), name=".segment")
        try:
            db.sync()
        except OSError:
            if not catch:
                raise


def test_a_with_block_ends_with_its_own_error(path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        use_and_fail(path, catch=False)
    assert read(path) == {b"ada": b"1815"}
    kvstore.open(path).close()


def test_a_with_block_without_an_error_of_its_own_tells_that_writes_were_refused(
    path: Path,
) -> None:
    with pytest.raises(kvstore.WriteRefusedError, match="Input/output error"):
        use_and_fail(path, catch=True)
    kvstore.open(path).close()


def test_a_close_whose_fsync_fails_says_so_and_lets_go(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("sync", disk_broken(), name=".segment")
    with pytest.raises(OSError, match="Input/output error"):
        db.close()
    with kvstore.open(path) as again:
        assert dict(again) == {b"ada": b"1815"}


def test_threads_that_wait_for_an_fsync_that_fails_hear_of_it(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, sync="always", filesystem=filesystem)
    stop = pause(filesystem, "sync", ".segment")
    filesystem.fail("sync", disk_broken(), name=".segment")
    first = Worker(lambda: db.__setitem__(b"first", b"1"))
    assert stop.reached.wait(PATIENCE)
    written = pause(filesystem, "write", ".segment")
    second = Worker(lambda: db.__setitem__(b"second", b"1"))
    assert written.reached.wait(PATIENCE)
    written.go_on.set()
    stop.go_on.set()
    with pytest.raises(OSError, match="Input/output error"):
        first.done()
    with pytest.raises(kvstore.WriteRefusedError):
        second.done()
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()


def test_a_failing_append_is_cut_back_and_the_next_one_works(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        size = segments(path)[0].stat().st_size
        filesystem.fail("write", None, name=".segment", take=9)
        filesystem.fail("write", disk_full(), name=".segment")
        with pytest.raises(OSError, match="No space left"):
            db[b"ada"] = b"x" * 100
        assert segments(path)[0].stat().st_size == size, "the file is cut back"
        assert dict(db) == read(path) == {b"ada": b"1815"}, "nothing has changed"
        db[b"bob"] = b"fits"
    assert read(path) == {b"ada": b"1815", b"bob": b"fits"}


def test_an_append_that_can_not_be_cut_back_ends_the_writes(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    db[b"ada"] = b"1815"
    filesystem.fail("write", None, name=".segment", take=9)
    filesystem.fail("write", disk_full(), name=".segment")
    filesystem.fail("truncate", disk_broken(), name=".segment")
    with pytest.raises(kvstore.WriteRefusedError, match="No space left"):
        db[b"ada"] = b"x" * 100
    for name, attempt in refusals(db).items():
        with pytest.raises(kvstore.WriteRefusedError) as caught:
            attempt()
        assert "No space left" in str(caught.value), f"{name}: the cause is named"
    assert dict(db) == {b"ada": b"1815"}, "reading goes on"
    with pytest.raises(kvstore.WriteRefusedError):
        db.close()
    with kvstore.open(path) as again:
        assert dict(again) == {b"ada": b"1815"}
        assert again.torn_tail is not None, "what was left behind is a torn tail"


def test_a_full_disk_does_not_stop_a_rotation_for_ever(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=50, filesystem=filesystem) as db:
        db[b"ada"] = b"x" * 50
        filesystem.fail("create", disk_full(), name=".segment")
        filesystem.fail("write", disk_full(), name="MANIFEST")
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                db[b"bob"] = b"y"
            assert dict(db) == {b"ada": b"x" * 50}
        db[b"bob"] = b"y"
        assert len(segments(path)) == 2, "no half-made segment stays behind"
    assert read(path) == {b"ada": b"x" * 50, b"bob": b"y"}


# Open, closed, locked


def test_close_twice_is_fine(db: kvstore.Store) -> None:
    db.close()
    db.close()


def test_a_closed_store_says_so(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    batch = db.batch()
    db.close()
    before = files(path)

    def apply() -> None:
        with batch:
            batch[b"bob"] = b"1"

    reads: dict[str, Callable[[], object]] = {
        "get": lambda: db[b"ada"],
        "get of a missing key": lambda: db.get(b"no"),
        "in": lambda: b"ada" in db,
        "len": lambda: len(db),
        "iter": lambda: iter(db),
        "keys": lambda: list(db.keys()),
        "values": lambda: list(db.values()),
        "items": lambda: list(db.items()),
        "stats": db.stats,
        "verify": db.verify,
        "sync": db.sync,
        "a batch from before": apply,
    }
    for name, attempt in (reads | refusals(db)).items():
        with pytest.raises(kvstore.ClosedError) as caught:
            attempt()
        assert str(path) in str(caught.value), f"{name}: the error names the store"
        assert "open it again" in str(caught.value), f"{name}: and says what to do"
    assert files(path) == before, "nothing was written"


@pytest.mark.parametrize("flag", ["c", "r"])
def test_a_with_block_closes(path: Path, flag: kvstore.store.Flag) -> None:
    kvstore.open(path).close()
    with kvstore.open(path, flag) as db:
        assert len(db) == 0
    with pytest.raises(kvstore.ClosedError):
        len(db)


def test_a_store_opened_read_only_takes_no_writes(path: Path) -> None:
    with kvstore.open(path) as db:
        db.update({b"ada": b"1815", b"alan": b"1912"})
    before = files(path)
    with kvstore.open(path, "r") as db:
        for name, attempt in refusals(db).items():
            with pytest.raises(kvstore.ReadOnlyError) as caught:
                attempt()
            assert 'open it with "w"' in str(caught.value), f"{name}: what to do"
        assert db[b"ada"] == b"1815"
        assert dict(db) == {b"ada": b"1815", b"alan": b"1912"}
        db.sync()
    assert files(path) == before


def test_a_store_opened_read_only_stays_at_its_moment(path: Path) -> None:
    with kvstore.open(path, segment_bytes=60) as db:
        db.update({b"%d" % number: b"old" for number in range(9)})
        expected = dict(db)
        with kvstore.open(path, "r") as reader:
            for number in range(0, 9, 2):
                db[b"%d" % number] = b"new"
            del db[b"1"]
            db.compact()
            assert dict(reader) == expected, "what is written later is not seen"
            assert reader.verify().ok
        assert read(path) == dict(db) != expected


def test_a_reader_that_meets_a_compaction_reads_what_came_of_it(path: Path) -> None:
    with kvstore.open(path, segment_bytes=60) as db:
        for number in range(9):
            db[b"%d" % (number % 4)] = b"%d" % number * 10
        expected = dict(db)
        filesystem = FaultyFileSystem()
        meanwhile(filesystem, "open", "00000002", db.compact)
        with kvstore.open(path, "r", filesystem=filesystem) as reader:
            assert dict(reader) == expected, "it begins again with the new manifest"
        assert not (path / "00000002.segment").exists(), "the file went away meanwhile"
        assert filesystem.log("open").count("open MANIFEST") > 2


class IndexThatIsLate(Index):
    """An index in which a compaction comes between a look-up and the use of it."""

    work: Callable[[], object] | None = None

    def get(self, key: bytes, default: Any = None) -> Any:
        """Look up a key, and let something happen then, once."""
        found = super().get(key, default)
        work, self.work = self.work, None
        if work is not None:
            work()
        return found


def test_a_get_that_meets_a_compaction_looks_again(path: Path) -> None:
    with kvstore.open(path, segment_bytes=1000) as db:
        db.update({b"ada": b"1815", b"dead": b"x" * 1000})
        db[b"dead"] = b""
        late = db._index = IndexThatIsLate(db._index)
        late.work = db.compact
        assert db[b"ada"] == b"1815"
        assert not (path / "00000001.segment").exists(), "the record moved meanwhile"


def test_a_locked_store_names_the_process_to_look_for(path: Path) -> None:
    code = (
        "import sys, kvstore\n"
        "db = kvstore.open(sys.argv[1])\n"
        "db[b'ada'] = b'1815'\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with Process(code, path) as other:
        assert other.line() == "open"
        with pytest.raises(kvstore.LockedError) as caught:
            kvstore.open(path)
        assert f"process {other.popen.pid} " in str(caught.value)
        assert 'flag="r"' in str(caught.value), "the error says what is possible"
        assert str(path) in str(caught.value), "the error names the store"
        assert read(path) == {b"ada": b"1815"}, "reading beside a writer works"
        other.kill()
        with kvstore.open(path) as db:
            assert dict(db) == {b"ada": b"1815"}, "a process that ended holds no lock"


def test_a_store_that_could_not_be_opened_is_not_locked(path: Path) -> None:
    kvstore.open(path).close()
    whole = segments(path)[0].read_bytes()
    segments(path)[0].write_bytes(whole[:-1])
    with pytest.raises(kvstore.CorruptionError) as kept:
        kvstore.open(path)
    segments(path)[0].write_bytes(whole)
    kvstore.open(path).close()
    del kept  # held until here, as a shell holds the last error


def test_a_store_that_nobody_holds_is_not_locked(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    del db
    with kvstore.open(path) as db:
        assert dict(db) == {b"ada": b"1815"}


# What is not a store


def test_a_directory_of_other_files_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear ada")
    before = files(tmp_path)
    for flag in ("r", "w", "c", "n"):
        with pytest.raises(kvstore.ForeignDirectoryError) as caught:
            kvstore.open(tmp_path, flag)
        assert str(tmp_path) in str(caught.value), "the directory is named"
        assert "letter.txt" in str(caught.value), "and a file that should not be there"
    assert files(tmp_path) == before, "nothing was changed"


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_a_foreign_manifest_is_refused_and_nothing_is_changed(
    tmp_path: Path, flag: kvstore.store.Flag
) -> None:
    (tmp_path / "MANIFEST").write_text("include *.txt")
    (tmp_path / "LOCK").write_text("dear ada")
    before = files(tmp_path)
    with pytest.raises(kvstore.ForeignDirectoryError, match="MANIFEST"):
        kvstore.open(tmp_path, flag)
    assert files(tmp_path) == before, "nothing was changed"


def test_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear ada")
    for flag in ("r", "w", "c", "n"):
        with pytest.raises(
            kvstore.ForeignDirectoryError, match=r"letter\.txt is a file"
        ):
            kvstore.open(tmp_path / "letter.txt", flag)
    assert (tmp_path / "letter.txt").read_text() == "dear ada"


def test_hidden_files_do_not_make_a_directory_foreign(path: Path) -> None:
    path.mkdir()
    (path / ".DS_Store").write_bytes(b"\0")
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
    assert read(path) == {b"ada": b"1815"}


def test_a_foreign_file_beside_the_segments_is_left_alone(path: Path) -> None:
    kvstore.open(path).close()
    for name in ("notes.txt", "7.segment", "x.segment", "00000001.segment.bak"):
        (path / name).write_text("dear ada")
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
    assert read(path) == {b"ada": b"1815"}
    assert (path / "7.segment").read_text() == "dear ada"


def test_a_store_of_a_newer_format_says_so(path: Path) -> None:
    kvstore.open(path).close()
    manifest = path / "MANIFEST"
    write_version_2(manifest)
    before = files(path)
    for flag in ("r", "w", "c", "n"):
        with pytest.raises(kvstore.NewerFormatError) as caught:
            kvstore.open(path, flag)
        message = str(caught.value)
        assert str(manifest) in message, "the file is named"
        assert "format 2" in message, "and its format"
        assert "newer version of kvstore" in message, "and what to do"
    assert files(path) == before, "nothing was changed"


def test_a_segment_of_a_newer_format_says_so(path: Path) -> None:
    kvstore.open(path).close()
    write_version_2(segments(path)[0])
    for flag in ("r", "w", "c"):
        with pytest.raises(kvstore.NewerFormatError, match="segment has format 2"):
            kvstore.open(path, flag)


def write_version_2(path: Path) -> None:
    """Make a file one of format 2, with a checksum that is right."""
    raw = path.read_bytes()
    body = raw[:8] + (2).to_bytes(4, "little") + raw[12:-4]
    path.write_bytes(body + crc32(body).to_bytes(4, "little"))


# Verify


def test_verify_reads_everything_and_changes_nothing(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(10)})
        del db[b"3"]
        before, held = files(path), segments(path)
        found = db.verify()
        assert found.ok
        assert found.records == 11, "deletes are records too"
        assert found.segments == len(held) > 2
        assert found.bytes_read == sum(each.stat().st_size for each in held)
        assert files(path) == before


def test_verify_says_where_each_damage_is(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(10)})
        first, last = segments(path)[0], segments(path)[-1]
        flip(first, HEADER_BYTES + record_bytes(b"0", b"x" * 20) + 16, 0)
        flip(last, HEADER_BYTES + 3, 7)
        found = db.verify()
        assert not found.ok
        assert [(each.path, each.offset) for each in found.damage] == [
            (str(first), HEADER_BYTES + 40),
            (str(last), HEADER_BYTES),
        ]
        assert found.records == 8, "what lies behind the damage is read"


def test_verify_sees_what_does_not_belong_to_a_sealed_segment(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(10)})
        db.sync()
        segment = segments(path)[0]
        with segment.open("ab") as file:
            file.write(b"not a record")
        found = db.verify()
    assert [each.path for each in found.damage] == [str(segment)]


def test_verify_and_get_notice_that_a_file_was_cut_short_while_it_is_open(
    path: Path,
) -> None:
    db = kvstore.open(path)
    db.update({b"%d" % number: b"x" * 20 for number in range(4)})
    os.truncate(segments(path)[0], HEADER_BYTES + 100)  # in the middle of the third
    assert db[b"1"] == b"x" * 20
    for key in (b"2", b"3"):
        with pytest.raises(kvstore.CorruptionError, match="the file ends here"):
            db[key]
    found = db.verify()
    (damage,) = found.damage
    assert HEADER_BYTES + 80 <= damage.offset <= HEADER_BYTES + 100
    assert damage.offset + damage.length == HEADER_BYTES + 160
    assert found.records == 2, "what lies before the cut is read"


# Threads


def test_many_threads_write_and_nothing_is_lost(path: Path) -> None:
    seed = 7
    print("seed", seed)

    def work(number: int) -> None:
        chance = random.Random(seed + number)
        mine = expected[number]
        for _ in range(150):
            key = b"%d-%d" % (number, chance.randrange(30))
            if key in mine and chance.random() < 0.3:
                del db[key], mine[key]
            elif chance.random() < 0.2:
                with db.batch() as batch:
                    batch[key] = batch[key + b"+"] = mine[key] = b"b"
                mine[key + b"+"] = b"b"
            else:
                db[key] = mine[key] = chance.randbytes(20)
            assert db.get(key) == mine.get(key), "a thread reads what it wrote"

    expected: list[Contents] = [{} for _ in range(6)]
    with kvstore.open(path, segment_bytes=2000) as db:
        workers = [Worker(partial(work, number)) for number in range(len(expected))]
        for worker in workers:
            worker.done()
        together: Contents = {}
        for mine in expected:
            together |= mine
        assert dict(db) == together
        assert db.verify().ok
    assert read(path) == together
