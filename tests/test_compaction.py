"""Compaction: fewer bytes, the same store, and nobody waits for it."""

from __future__ import annotations

import errno
import random
import sys
import threading
from pathlib import Path

import pytest
from faults import FaultyFileSystem
from support import (
    NO_SYNC,
    PATIENCE,
    Contents,
    Worker,
    copy_of,
    files,
    flip,
    meanwhile,
    pause,
    read,
    record_bytes,
    segments,
)

import kvstore
from kvstore.compaction import dead_share, in_order, needed_tombstones, worth_compacting
from kvstore.filesystem import DISK
from kvstore.index import Index, pack
from kvstore.record import DELETE, PUT, encode
from kvstore.segment import HEADER_BYTES, Segment


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


def fill(db: kvstore.Store, puts: int, keys: int) -> tuple[str, Contents]:
    """Put keys over and over, so that something is dead in every segment but a few.

    Returns what the store holds then, and the number of the first segment that a
    compaction will write: the one before it is for new records.
    """
    for number in range(puts):
        db[b"%d" % (number % keys)] = b"%d" % number * 10
    db[b"gone"] = b""
    del db[b"gone"]
    held = db.stats().segments
    return f"{held + 2:08d}", dict(db)


# What it does


def test_a_compaction_says_what_it_did(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        for number in range(6):
            db[b"%d" % (number % 4)] = b"x" * 20
        del db[b"3"]
        first, second, live, last = segments(path)  # nothing is dead in the third
        before = sum(each.stat().st_size for each in (first, second, last))
        done = db.compact()
        held, _, merged = segments(path)  # the one between them takes new records
        assert held == live, "a segment in which nothing is dead stays as it is"
        assert done == kvstore.Compaction(
            segments_before=3,
            segments_after=1,
            bytes_before=before,
            bytes_after=HEADER_BYTES + record_bytes(b"2", b"x" * 20),
            records_kept=1,
            records_dropped=4,
        )
        assert merged.stat().st_size == done.bytes_after
        assert dict(db) == {b"%d" % number: b"x" * 20 for number in range(3)}
    assert read(path) == {b"%d" % number: b"x" * 20 for number in range(3)}


def test_a_compaction_of_what_is_all_live_does_nothing(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(6)})
        before = files(path)
        done = db.compact()
        assert done == kvstore.Compaction(0, 0, 0, 0, 0, 0)
        assert files(path) == before


def test_a_second_compaction_finds_nothing_to_do(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        for number in range(30):
            db[b"%d" % (number % 7)] = b"%d" % number
        del db[b"3"]
        assert db.compact().records_dropped > 0
        assert db.compact() == kvstore.Compaction(0, 0, 0, 0, 0, 0)


def test_a_store_whose_keys_are_all_deleted_becomes_empty(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(6)})
        db.clear()
        done = db.compact()
        assert (done.segments_after, done.records_kept) == (0, 0)
        assert db.stats().dead_bytes == 0, "no tombstone stays that nothing needs"
        assert [each.stat().st_size for each in segments(path)] == [HEADER_BYTES]
    assert read(path) == {}


def test_an_empty_store_can_be_compacted(path: Path) -> None:
    with kvstore.open(path) as db:
        assert db.compact() == kvstore.Compaction(0, 0, 0, 0, 0, 0)


def test_only_segments_with_enough_dead_bytes_are_taken_up(path: Path) -> None:
    with kvstore.open(path, segment_bytes=150) as db:
        for key in (b"a", b"b", b"c", b"d", b"e", b"f"):
            db[key] = b"x" * 20
        db.update({b"a": b"y" * 20, b"d": b"y" * 20, b"e": b"y" * 20})
        first, second, *_ = segments(path)  # a third of the one dead, two of the other
        held = first.read_bytes()
        assert db.compact(0.7).segments_before == 0
        done = db.compact(0.6)
        assert (done.segments_before, done.records_dropped) == (1, 2)
        assert first.read_bytes() == held, "the other segment is left as it was"
        assert not second.exists()
        assert db.compact(0.3).segments_before == 1
        assert not first.exists()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_that_makes_no_sense_is_told_what_does(
    path: Path, share: float
) -> None:
    with kvstore.open(path) as db, pytest.raises(ValueError, match=r"from 0.0 to 1.0"):
        db.compact(share)


def test_a_compaction_of_everything_dead_takes_a_share_of_one(path: Path) -> None:
    with kvstore.open(path, segment_bytes=50) as db:
        for number in range(3):
            db[b"a"] = b"%d" % number * 40
        assert db.compact(1.0).records_dropped == 2
        assert db[b"a"] == b"2" * 40


def test_records_keep_their_order_and_their_numbers(path: Path) -> None:
    with kvstore.open(path, segment_bytes=120) as db:
        for number in range(20):
            db[b"%d" % (number % 13)] = b"%d" % number
        db.compact()
        found: dict[bytes, int] = {}
        for each in segments(path):
            segment = Segment.open(DISK, str(path), int(each.stem))
            found |= {entry.key: entry.sequence for entry in segment.scan()}
    assert found == {b"%d" % n: n + 1 if n >= 7 else n + 14 for n in range(13)}


def test_many_rounds_of_puts_deletes_and_compactions_equal_a_dict(path: Path) -> None:
    seed = 5
    print("seed", seed)
    chance = random.Random(seed)
    expected: Contents = {}
    for _ in range(12):
        with kvstore.open(path, segment_bytes=300, filesystem=NO_SYNC) as db:
            assert dict(db) == expected, "after reopening"
            for _ in range(60):
                key = b"%d" % chance.randrange(25)
                if key in expected and chance.random() < 0.4:
                    del db[key], expected[key]
                else:
                    db[key] = expected[key] = chance.randbytes(chance.randrange(30))
                if chance.random() < 0.1:
                    db.compact(chance.choice((0, 0.3, 0.5, 0.8)))
                    assert dict(db) == expected, "after a compaction"
            assert db.verify().ok


def test_a_compacted_store_takes_no_more_room_than_its_live_records(
    path: Path,
) -> None:
    with kvstore.open(path, segment_bytes=5000) as db:
        for _ in range(20):
            for number in range(40):
                db[b"%d" % number] = b"x" * 100
        wide = db.stats().amplification
        db.compact()
        assert wide > 10
        assert db.stats().amplification < 1.1
        assert db.stats().dead_bytes == 0


# While others read and write


def test_readers_and_writers_go_on_while_segments_are_merged(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=300, filesystem=filesystem) as db:
        merged, expected = fill(db, 60, 30)
        stop = pause(filesystem, "write", merged)
        worker = Worker(db.compact)
        assert stop.reached.wait(PATIENCE), "the compaction is under way"
        for number in range(0, 30, 3):
            key = b"%d" % number
            db[key] = expected[key] = b"meanwhile"
            assert db[key] == b"meanwhile", "a put goes on while segments are merged"
        for number in range(1, 30, 3):
            del db[b"%d" % number], expected[b"%d" % number]
        with db.batch() as batch:
            batch[b"2"] = batch[b"new"] = expected[b"2"] = expected[b"new"] = b"batch"
        for number in range(40):
            db[b"more %d" % number] = expected[b"more %d" % number] = b"x" * 20
        assert len(segments(path)) > int(merged) + 2, "new segments are begun meanwhile"
        assert {key: db[key] for key in expected} == expected, "gets go on"
        assert dict(db) == expected
        assert worker.is_alive(), "the compaction has waited all the while"
        stop.go_on.set()
        worker.done()
        assert dict(db) == expected, "a compaction changes no answer"
        assert db.verify().ok
    assert read(path) == expected, "and after reopening"


def test_every_get_is_right_while_the_index_turns_to_the_new_segments(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def move_and_look(index: Index, key: bytes, old: int, new: int) -> None:
        nonlocal looks
        move(index, key, old, new)
        looks += 1
        assert {each: db[each] for each in expected} == expected, "a get went wrong"

    with kvstore.open(path, segment_bytes=300) as db:
        db.update({b"%d" % number: b"value %d" % number for number in range(30)})
        db.update({b"%d" % number: b"new" for number in range(0, 30, 3)})
        expected, move = dict(db), Index.move
        monkeypatch.setattr(Index, "move", move_and_look)
        kept = db.compact().records_kept
        assert looks == kept > 5
        assert dict(db) == expected


def test_threads_read_and_iterate_while_others_compact(path: Path) -> None:
    expected = {b"%d" % number: b"value %d" % number for number in range(1000)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with kvstore.open(path, segment_bytes=10_000) as db:
            db.update(expected)
            done = threading.Event()

            def get() -> None:
                while not done.is_set():
                    for key, value in expected.items():
                        assert db[key] == value, "a get is right at every moment"

            def iterate() -> None:
                while not done.is_set():
                    assert dict(db) == expected, "so is an iteration"

            readers = [Worker(get), Worker(iterate)]
            for number in range(3):
                for key in list(expected)[number::7]:
                    db[key] = expected[key]
                assert db.compact().records_dropped > 0
            done.set()
            for reader in readers:
                reader.done()
    finally:
        sys.setswitchinterval(interval)


def test_a_close_waits_for_the_compaction_under_way(path: Path) -> None:
    filesystem = FaultyFileSystem()
    db = kvstore.open(path, filesystem=filesystem)
    for number in range(10):
        db[b"a"] = b"%d" % number
    stop = pause(filesystem, "write", "00000003")
    compaction = Worker(db.compact)
    assert stop.reached.wait(PATIENCE)
    closing = Worker(db.close)
    stop.go_on.set()
    compaction.done()
    closing.done()
    assert read(path) == {b"a": b"9"}
    assert len(segments(path)) == 2


# When it fails


@pytest.mark.parametrize("operation", ["create", "write", "sync", "read", "map"])
def test_a_compaction_that_fails_changes_nothing(path: Path, operation: str) -> None:
    """A failed fsync of the log, or the rename of a manifest, end the writes too."""
    for which in range(1, 100):
        directory = path.with_name(f"{operation}-{which}")
        filesystem = FaultyFileSystem()
        db = kvstore.open(directory, segment_bytes=100, filesystem=filesystem)
        _, expected = fill(db, 12, 5)
        before = segments(directory)
        error = OSError(errno.EIO, "Input/output error")
        filesystem.fail(operation, error, first=which)
        try:
            db.compact()
        except OSError as caught:
            assert caught is error  # noqa: PT017 - any number of calls may come first
        else:
            filesystem.faults.clear()
            db.close()
            break
        filesystem.faults.clear()
        assert dict(db) == expected, "no answer changes"
        assert set(before) <= set(segments(directory)), "no segment is gone"
        assert len(segments(directory)) <= len(before) + 1, (
            "nothing half-made stays; a new segment for the log may have been begun"
        )
        with kvstore.open(copy_of(directory, f"{operation}-{which}-copy")) as copy:
            assert dict(copy) == expected, "and after reopening"
        try:
            db.close()
        except kvstore.WriteRefusedError:
            assert operation in ("sync", "map"), "only a failed seal ends the writes"
    assert which > 1, "the operation was meant to fail at least once"


def test_damage_found_while_merging_stops_the_compaction(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        fill(db, 12, 5)
        first = segments(path)[0]
        flip(first, HEADER_BYTES + 20, 0)
        before = segments(path)
        with pytest.raises(kvstore.CorruptionError) as caught:
            db.compact()
        assert caught.value.path == str(first)
        assert set(before) <= set(segments(path)), "no segment is gone"
        assert not db.verify().ok, "what is damaged is still there to be seen"
        db[b"new"] = b"1"
        assert db[b"new"] == b"1", "the store goes on"


def test_a_segment_that_can_not_be_removed_goes_at_the_next_open(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=100, filesystem=filesystem) as db:
        _, expected = fill(db, 12, 5)
        before = segments(path)
        error = OSError(errno.EACCES, "Permission denied")
        filesystem.fail("remove", error, name=".segment", times=100)
        db.compact()
        assert dict(db) == expected
        assert set(before) <= set(segments(path))
    with kvstore.open(path) as db:
        assert dict(db) == expected
        assert len(segments(path)) == db.stats().segments, "leftovers are swept"


# The parts


def test_the_dead_share_of_a_segment_is_that_of_its_records() -> None:
    assert dead_share(HEADER_BYTES + 100, 100) == 0.0
    assert dead_share(HEADER_BYTES + 100, 25) == 0.75
    assert dead_share(HEADER_BYTES + 100, 0) == 1.0
    assert dead_share(HEADER_BYTES, 0) == 0.0, "an empty segment has nothing dead"


def test_a_segment_is_worth_it_from_the_share_on() -> None:
    sizes = dict.fromkeys((1, 2, 3), HEADER_BYTES + 100) | {4: HEADER_BYTES}
    live = {1: 100, 2: 50}
    assert worth_compacting(sizes, live, 0.0) == {2, 3}, "no dead byte, no compaction"
    assert worth_compacting(sizes, live, 0.5) == {2, 3}
    assert worth_compacting(sizes, live, 0.6) == {3}
    assert worth_compacting(sizes, live, 1.0) == {3}


def segment_of(
    directory: Path, number: int, *records: tuple[int, int, bytes]
) -> Segment:
    """Return a segment of records: kind, sequence number, key."""
    segment = Segment.create(DISK, str(directory), number)
    for kind, sequence, key in records:
        segment.append(encode(kind, sequence, key, b"", segment.seed))
    return segment


def test_records_of_many_segments_come_in_the_order_they_were_written(
    tmp_path: Path,
) -> None:
    sources = [
        segment_of(tmp_path, 7, (PUT, 1, b"a"), (PUT, 8, b"b"), (DELETE, 9, b"c")),
        segment_of(tmp_path, 3, (PUT, 2, b"d"), (PUT, 4, b"e")),
        segment_of(tmp_path, 5),
        segment_of(tmp_path, 4, (PUT, 3, b"f"), (PUT, 7, b"g")),
    ]
    found = [(each.number, entry.sequence) for each, entry in in_order(sources)]
    assert found == [(7, 1), (3, 2), (4, 3), (3, 4), (4, 7), (7, 8), (7, 9)]


def test_a_tombstone_is_needed_while_another_segment_holds_an_older_record(
    tmp_path: Path,
) -> None:
    sources = [
        segment_of(tmp_path, 1, *((DELETE, n + 10, b"%d" % n) for n in range(6))),
        segment_of(tmp_path, 2, (PUT, 20, b"2"), (DELETE, 21, b"2"), (PUT, 22, b"3")),
    ]
    others = [
        segment_of(tmp_path, 3, (PUT, 1, b"0"), (PUT, 2, b"2"), (PUT, 3, b"3")),
        segment_of(tmp_path, 4, (DELETE, 4, b"4"), (PUT, 30, b"1")),
    ]
    index = Index({b"3": pack(2, 0, 0), b"1": pack(4, 0, 0)})
    needed = needed_tombstones(index, sources, others)
    assert needed.keys() >= {b"0", b"2"}, "these would come back"
    assert needed[b"2"] == 21, "the last of them is the one that is needed"
    assert b"3" not in needed, "this key was put again"
    assert b"5" not in needed, "there is nothing that could come back"
    assert needed_tombstones(index, sources, []) == {}


def test_a_key_deleted_in_the_middle_of_a_merge_stays_deleted(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=100, filesystem=filesystem) as db:
        merged, expected = fill(db, 12, 5)

        def change() -> None:
            del db[b"2"], expected[b"2"]
            db[b"3"] = expected[b"3"] = b"meanwhile"

        meanwhile(filesystem, "write", merged, change)
        assert db.compact().records_kept > 0
        assert dict(db) == expected
        assert b"2" not in expected, "the change was made in the middle"
        db.compact()
        assert dict(db) == expected
    assert read(path) == expected
