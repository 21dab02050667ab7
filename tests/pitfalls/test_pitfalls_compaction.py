"""Pitfalls 30 to 36: ways in which stores lost or revived data when they compacted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kvstore
from kvstore.filesystem import FileSystem
from kvstore.posix import DISK
from kvstore.record import OVERHEAD_BYTES
from kvstore.segment import SEGMENT_HEADER_BYTES, segment_name, segment_numbers
from kvstore.simdisk import SimulatedDisk
from tests.disks import PATH, FaultyFileSystem, moments
from tests.helpers import (
    THIRD,
    copy_of,
    disk_full,
    elsewhere,
    files,
    folder,
    manifest_of,
    read,
    recovered,
    segments,
)


def numbers(directory: Path | str, filesystem: FileSystem = DISK) -> list[int]:
    """Return the numbers of the segments that the manifest names, sealed ones first."""
    manifest = manifest_of(directory, filesystem)
    return [each.number for each in (*manifest.sealed, manifest.active)]


@pytest.mark.parametrize("again", ["opened again", "after another compaction"])
def test_pitfall_30_a_tombstone_stays_while_it_is_needed(
    path: Path, again: str
) -> None:
    with kvstore.open(path, segment_bytes=1000) as db:
        db[b"key"] = b"old"
        db[b"live in 1"] = b"x" * 1000
        db[b"dead"] = b"x" * 500
        del db[b"key"]
        del db[b"dead"]
        db[b"live in 2"] = b"x" * 1000
        expected = dict(db)
        done = db.compact(0.3)
        assert (done.segments_before, done.records_dropped) == (1, 2), (
            "the segment of the tombstone is compacted, that of the key is not"
        )
        assert dict(db) == expected
        if again == "after another compaction":
            db.compact(0.01)
    assert read(path) == expected, "a deleted key came back"
    with kvstore.open(path) as db:
        db.compact()
        assert db.stats().dead_bytes == 0, (
            "nothing older is left, and the tombstone goes"
        )
    assert read(path) == expected


@pytest.mark.parametrize("order", [[3, 2], [2, 3, 4]])
def test_pitfall_31_the_sequence_number_decides(path: Path, order: list[int]) -> None:
    """What is merged comes before the newer records in one order, after them in another."""
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=1000, filesystem=filesystem) as db:
        for name in (b"put", b"deleted", b"deleted and put", b"left"):
            db[name] = b"old"
        db[b"dead"] = b"x" * 1000
        db[b"dead"] = b"1"
        expected = dict(db)

        def race() -> None:
            db[b"put"] = expected[b"put"] = b"new"
            del db[b"deleted"], expected[b"deleted"]
            del db[b"deleted and put"]
            db[b"deleted and put"] = expected[b"deleted and put"] = b"new"
            if len(order) == 3:
                db[b"filler"] = expected[b"filler"] = b"x" * 1000
                db[b"in 4"] = expected[b"in 4"] = b""

        filesystem.at(
            "sync", THIRD, lambda: elsewhere(race), first=2
        )  # as it is sealed
        assert db.compact().records_kept == 4, "all four were copied before the race"
        assert numbers(path) == order, "the older records lie in the third segment"
        assert dict(db) == expected, "a put or a delete lost against the merge"
    assert read(path) == expected, "and after reopening"
    with kvstore.open(path) as db:
        db.compact()
        assert dict(db) == expected
    assert read(path) == expected


def test_pitfall_32_a_crash_leaves_the_store_before_or_after_the_compaction() -> None:
    disk, expected = SimulatedDisk(sector_bytes=16), {}
    db = kvstore.open(PATH, segment_bytes=100, filesystem=disk)
    for number, key in enumerate((b"0", b"1", b"0", b"2", b"2", b"3")):
        db[key] = expected[key] = b"%d" % number * 20
    db.sync()
    for where, left in moments(disk, db.compact):
        assert recovered(PATH, left) == expected, where
        there = segment_numbers(folder(PATH, left).names())
        assert there == sorted(numbers(PATH, left)), f"{where}: leftovers stay"


def test_pitfall_33_no_number_on_the_disk_is_used_twice(path: Path) -> None:
    filesystem = FaultyFileSystem()
    expected = {}
    with kvstore.open(path, segment_bytes=100, filesystem=filesystem) as db:
        for number in range(18):
            db[b"%d" % (number % 4)] = expected[b"%d" % (number % 4)] = (
                b"%d" % number * 10
            )
            if number == 9:
                filesystem.fail("write", disk_full(), name="MANIFEST")
                with pytest.raises(OSError, match="No space left"):
                    db.compact()
                db.compact()
    made = [call for call in filesystem.log("create") if ".segment" in call]
    assert len(made) == len(set(made)) > 5, "no number is given out twice"
    highest = max(numbers(path))
    for number in range(highest + 1, highest + 5):  # empty, and left behind
        (path / f"{number:08d}.segment").write_bytes(b"")
    with kvstore.open(path, segment_bytes=100) as db:
        for number in range(9):
            db[b"%d" % number] = expected[b"%d" % number] = b"new" * 10
    assert read(path) == expected
    leftover = max(numbers(path)) + 3
    (path / f"{leftover:08d}.segment").write_bytes(b"")
    kvstore.open(path, "n").close()
    assert numbers(path) == [leftover + 1], "one more than every number, empty or not"


# 34, that numbers are counted and no clock is asked, see `test_layers` and `test_manifest`.


def test_pitfall_35_a_reader_keeps_the_files_that_it_reads(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        for number in range(20):
            db[b"%d" % number] = b"%d" % number * 20
        expected = dict(db)
        old = segments(path)
        items, values = iter(db.items()), iter(db.values())
        first = next(items)
        with kvstore.open(path, "r") as beside:
            for number in range(20):
                db[b"%d" % number] = b"new"
            db.compact()
            assert dict([first, *items]) == expected, "an iteration goes on"
            assert list(values) == list(expected.values())
            db.compact()
            assert not any(each.exists() for each in old[:-1]), "then the files go"
            assert dict(beside) == expected, "a reader beside goes on all the same"
            assert {key: beside[key] for key in expected} == expected


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="nowhere to count open files")
def test_pitfall_35_files_are_closed_when_the_last_reader_lets_go(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        open_before = len(os.listdir("/dev/fd"))
        for number in range(100):
            db[b"%d" % (number % 3)] = b"%d" % number * 20
            if number % 10 == 0:
                iteration = iter(db.items())
                next(iteration)
                db.compact()
        del iteration
        db.compact()
        held = len(os.listdir("/dev/fd")) - open_before
        assert held <= db.stats().segments, "files of removed segments stay open"


def test_pitfall_36_a_full_disk_stops_the_compaction_and_nothing_else(
    path: Path,
) -> None:
    """The disk takes half a write, and then nothing, until it has space again."""
    filesystem = FaultyFileSystem()
    with kvstore.open(path, segment_bytes=100, filesystem=filesystem) as db:
        for number in range(12):
            db[b"%d" % (number % 5)] = b"%d" % number * 10
        expected, before = dict(db), files(path).keys()
        for which in range(1, 6):
            filesystem.fail("write", None, first=which, take=3)
            filesystem.fail("write", disk_full(), first=which, times=100)
            with pytest.raises(OSError, match="No space left"):
                db.compact()
            filesystem.rules.clear()
            assert dict(db) == expected, "reading goes on"
            assert before <= files(path).keys(), "the old segments still stand"
            left = [int(each.stem) for each in segments(path)]
            assert left == sorted(numbers(path)), "what was written half is gone"
            db[b"put"] = expected[b"put"] = b"where there is space"
            assert recovered(copy_of(path, f"copy-{which}")) == expected
        assert db.compact().records_dropped > 0, "and with space it is done"
        assert dict(db) == expected
    assert read(path) == expected


def test_a_record_that_made_older_ones_dead_is_never_a_torn_tail() -> None:
    """The list of pitfalls does not have this one either.

    A compaction drops a tombstone because of a newer put in the active segment. If that
    put is damaged later, and a stale mark does not vouch for it, the damage would pass
    for a torn tail, and the oldest put of all would be back.
    """
    disk = SimulatedDisk()
    db = kvstore.open("store", segment_bytes=150, filesystem=disk)
    db[b"key"] = b"one"
    db[b"live"] = b"x" * 120  # the segment is full, and not worth compacting
    db[b"other"] = b"y" * 50
    del db[b"key"]
    del db[b"other"]
    db[b"full"] = b""
    db[b"key"] = b"two"
    assert db.compact(0.7).records_dropped == 3, "the tombstone is among them"
    active = f"store/{segment_name(3)}"
    for _, image in disk.power_cut().images(1000):
        raw = bytearray(image[active])
        raw[SEGMENT_HEADER_BYTES + OVERHEAD_BYTES] ^= 1
        after = SimulatedDisk({**image, active: bytes(raw)})
        with pytest.raises(kvstore.CorruptionError, match=segment_name(3)):
            kvstore.open("store", "r", filesystem=after)
