"""The store as people use it: a mapping from bytes to bytes, with what it promises."""

from __future__ import annotations

import gc
import os
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import kvstore
from kvstore.segment import SEGMENT_HEADER_BYTES
from kvstore.store import LogStore
from tests.disks import FaultyFileSystem
from tests.helpers import (
    FIRST,
    all_raise,
    even_store,
    extend,
    files,
    flip,
    record_bytes,
    refusals,
    segments,
)


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


# Open, closed, locked


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
    all_raise(reads | refusals(db), kvstore.ClosedError, str(path), "open it again")
    assert files(path) == before, "nothing was written"


def test_a_store_opened_read_only_takes_no_writes(path: Path) -> None:
    with kvstore.open(path) as db:
        db.update({b"ada": b"1815", b"alan": b"1912"})
    before = files(path)
    with kvstore.open(path, "r") as db:
        ways = refusals(db) | {"batch()": db.batch}
        all_raise(ways, kvstore.ReadOnlyError, 'open it with "w"')
        assert db[b"ada"] == b"1815"
        assert dict(db) == {b"ada": b"1815", b"alan": b"1912"}
        db.sync()
    assert files(path) == before
    db.close()
    with pytest.raises(kvstore.ClosedError):
        len(db)


def test_a_reader_that_meets_a_compaction_reads_what_came_of_it(path: Path) -> None:
    with kvstore.open(path, segment_bytes=60) as db:
        for number in range(9):
            db[b"%d" % (number % 4)] = b"%d" % number * 10
        expected = dict(db)
        filesystem = FaultyFileSystem()
        filesystem.at("open", "00000002", db.compact)
        with kvstore.open(path, "r", filesystem=filesystem) as reader:
            assert dict(reader) == expected, "it begins again with the new manifest"
        assert not (path / "00000002.segment").exists(), "the file went away meanwhile"
        assert filesystem.log("open").count("open MANIFEST") > 2


def test_a_get_that_meets_a_compaction_looks_again(path: Path) -> None:
    """Between the look-up of a place and the use of it, the record moves."""
    with kvstore.open(path, segment_bytes=1000) as db:
        assert isinstance(db, LogStore)
        db.update({b"ada": b"1815", b"dead": b"x" * 1000})
        db[b"dead"] = b""
        index, get = db._index, db._index.get

        def late(key: bytes) -> int | None:
            found, index.get = get(key), get
            db.compact()
            assert not (path / FIRST).exists(), "the record moved meanwhile"
            return found

        index.get = late
        assert db[b"ada"] == b"1815"


def test_a_store_that_could_not_be_opened_is_not_locked(path: Path) -> None:
    kvstore.open(path).close()
    whole = segments(path)[0].read_bytes()
    segments(path)[0].write_bytes(whole[:-1])
    with pytest.raises(kvstore.CorruptionError) as kept:
        kvstore.open(path)
    segments(path)[0].write_bytes(whole)
    kvstore.open(path).close()
    del kept  # held until here, as a shell holds the last error


# Verify


def test_verify_reads_everything_and_changes_nothing(path: Path) -> None:
    with kvstore.open(even_store(path, 10)) as db:
        del db[b"3"]
        before, held = files(path), segments(path)
        found = db.verify()
        assert found.ok
        assert found.records == 11, "deletes are records too"
        assert found.segments == len(held) > 2
        assert found.bytes_read == sum(each.stat().st_size for each in held)
        assert files(path) == before


def test_verify_says_where_each_damage_is(path: Path) -> None:
    with kvstore.open(even_store(path, 10)) as db:
        first, last = segments(path)[0], segments(path)[-1]
        flip(first, SEGMENT_HEADER_BYTES + record_bytes(b"0", b"x" * 20) + 16, 0)
        flip(last, SEGMENT_HEADER_BYTES + 3, 7)
        found = db.verify()
        assert not found.ok
        assert [(each.path, each.offset) for each in found.damage] == [
            (str(first), SEGMENT_HEADER_BYTES + 40),
            (str(last), SEGMENT_HEADER_BYTES),
        ]
        assert found.records == 8, "what lies behind the damage is read"


def test_verify_sees_what_does_not_belong_to_a_sealed_segment(path: Path) -> None:
    with kvstore.open(even_store(path)) as db:
        extend(segments(path)[0], b"not a record")
        found = db.verify()
    assert [each.path for each in found.damage] == [str(segments(path)[0])]


def test_verify_and_get_notice_that_a_file_was_cut_short(path: Path) -> None:
    db = kvstore.open(path)
    db.update({b"%d" % number: b"x" * 20 for number in range(4)})
    ends = [SEGMENT_HEADER_BYTES + number * 40 for number in range(5)]
    os.truncate(segments(path)[0], ends[2] + 20)  # in the middle of the third
    assert db[b"1"] == b"x" * 20
    for key in (b"2", b"3"):
        with pytest.raises(kvstore.CorruptionError, match="the file ends here"):
            db[key]
    (damage,) = db.verify().damage
    assert ends[2] <= damage.offset <= ends[2] + 20
    assert damage.offset + damage.length == ends[4]
    os.truncate(segments(path)[0], 0)
    for attempt in (lambda: db[b"0"], lambda: dict(db)):
        with pytest.raises(kvstore.CorruptionError, match="the file ends here"):
            attempt()
    assert not db.verify().ok


# Moving ground


def test_a_store_that_was_removed_says_so_at_sync_and_close(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    shutil.rmtree(path)
    db[b"alan"] = b"1912"
    for attempt in (db.sync, db.close):
        with pytest.raises(kvstore.StoreRemovedError, match=str(path)):
            attempt()
    with suppress(kvstore.WriteRefusedError):
        db.close()
    assert not path.exists()
    kvstore.open(path).close()


def test_a_delete_takes_no_key_that_says_another_length(path: Path) -> None:
    class Odd(bytes):
        def __len__(self) -> int:
            return 1

    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
        with pytest.raises(TypeError, match="must be bytes"):
            del db[Odd(b"ada")]
