"""Compaction: fewer bytes, the same store, and nobody waits for it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import kvstore
from kvstore.compaction import dead_share, in_order, needed_tombstones, worth_compacting
from kvstore.index import Index, pack
from kvstore.record import DELETE, PUT
from kvstore.segment import SEGMENT_HEADER_BYTES, Segment
from tests.disks import FaultyFileSystem
from tests.helpers import (
    Contents,
    flip,
    new_segment,
    old_segment,
    read,
    record_bytes,
    segments,
)


def fill(db: kvstore.Store) -> Contents:
    """Put keys over and over, so that something is dead in every segment but a few."""
    for number in range(12):
        db[b"%d" % (number % 5)] = b"%d" % number * 10
    return dict(db)


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
        assert done == kvstore.CompactionReport(
            segments_before=3,
            segments_after=1,
            bytes_before=before,
            bytes_after=SEGMENT_HEADER_BYTES + record_bytes(b"2", b"x" * 20),
            records_kept=1,
            records_dropped=4,
        )
        assert merged.stat().st_size == done.bytes_after
        assert dict(db) == {b"%d" % number: b"x" * 20 for number in range(3)}
    assert read(path) == {b"%d" % number: b"x" * 20 for number in range(3)}


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
def test_a_senseless_share_is_told_what_makes_sense(path: Path, share: float) -> None:
    with kvstore.open(path) as db, pytest.raises(ValueError, match=r"from 0.0 to 1.0"):
        db.compact(share)


def test_records_keep_their_order_and_their_numbers(path: Path) -> None:
    with kvstore.open(path, segment_bytes=120) as db:
        for number in range(20):
            db[b"%d" % (number % 13)] = b"%d" % number
        db.compact()
        found: dict[bytes, int] = {}
        for each in segments(path):
            segment = old_segment(path, int(each.stem))
            found |= {entry.key: entry.sequence for entry in segment.scan()}
    assert found == {b"%d" % n: n + 1 if n >= 7 else n + 14 for n in range(13)}


# When it fails


def test_damage_found_while_merging_stops_the_compaction(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        fill(db)
        first = segments(path)[0]
        flip(first, SEGMENT_HEADER_BYTES + 20, 0)
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
        expected = fill(db)
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


def test_a_segment_is_worth_it_from_a_share_of_dead_records_on() -> None:
    empty = SEGMENT_HEADER_BYTES
    sizes = dict.fromkeys((1, 2, 3), empty + 100) | {4: empty}
    live = {1: 100, 2: 50}
    shares = [dead_share(sizes[number], live.get(number, 0)) for number in sizes]
    assert shares == [0.0, 0.5, 1.0, 0.0], "an empty segment has nothing dead"
    assert worth_compacting(sizes, live, 0.0) == {2, 3}, "no dead byte, no compaction"
    assert worth_compacting(sizes, live, 0.5) == {2, 3}
    assert worth_compacting(sizes, live, 0.6) == {3}
    assert worth_compacting(sizes, live, 1.0) == {3}


def keyed(directory: Path, number: int, *keys: tuple[int, int, bytes]) -> Segment:
    """Return a segment of records without values: kind, sequence number, key."""
    return new_segment(directory, number, *((*each, b"") for each in keys))


def test_records_come_in_the_order_they_were_written(tmp_path: Path) -> None:
    sources = [
        keyed(tmp_path, 7, (PUT, 1, b"a"), (PUT, 8, b"b"), (DELETE, 9, b"c")),
        keyed(tmp_path, 3, (PUT, 2, b"d"), (PUT, 4, b"e")),
        keyed(tmp_path, 5),
        keyed(tmp_path, 4, (PUT, 3, b"f"), (PUT, 7, b"g")),
    ]
    found = [(each.number, entry.sequence) for each, entry in in_order(sources)]
    assert found == [(7, 1), (3, 2), (4, 3), (3, 4), (4, 7), (7, 8), (7, 9)]


def test_a_tombstone_is_needed_while_an_older_record_is_left(tmp_path: Path) -> None:
    sources = [
        keyed(tmp_path, 1, *((DELETE, n + 10, b"%d" % n) for n in range(6))),
        keyed(tmp_path, 2, (PUT, 20, b"2"), (DELETE, 21, b"2"), (PUT, 22, b"3")),
    ]
    others = [
        keyed(tmp_path, 3, (PUT, 1, b"0"), (PUT, 2, b"2"), (PUT, 3, b"3")),
        keyed(tmp_path, 4, (DELETE, 4, b"4"), (PUT, 30, b"1")),
    ]
    index = Index({b"3": pack(2, 0, 0), b"1": pack(4, 0, 0)})
    needed = needed_tombstones(index, sources, others)
    assert needed.keys() >= {b"0", b"2"}, "these would come back"
    assert needed[b"2"] == 21, "the last of them is the one that is needed"
    assert b"3" not in needed, "this key was put again"
    assert b"5" not in needed, "there is nothing that could come back"
    assert needed_tombstones(index, sources, []) == {}
