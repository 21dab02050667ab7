"""Pitfalls 19 to 29: ways in which stores lost or invented data when they opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kvstore
from kvstore.record import RECORD_HEAD
from kvstore.segment import SEGMENT_HEADER_BYTES, SegmentMeta
from kvstore.simdisk import SimulatedDisk, no_fault
from kvstore.watermark import (
    WATERMARK_BYTES,
    Watermark,
    decode_watermark,
    encode_watermark,
)
from tests.disks import (
    CHANGES,
    NO_SYNC,
    PATH,
    Faults,
    FaultyFileSystem,
    moments,
    on_a_disk,
    remains,
)
from tests.helpers import (
    Contents,
    copy_of,
    disk_broken,
    files,
    flip,
    overwrite,
    read,
    record_bytes,
    recovered,
    sealed,
    segments,
    small_store,
    torn_store,
    without_lock,
)


def put_records(db: kvstore.Store, path: Path, *keys: bytes) -> list[int]:
    """Put some keys, and return where the record of each begins in its segment."""
    starts = []
    for key in keys:
        starts.append(segments(path)[-1].stat().st_size)
        db[key] = b"value of " + key
    assert len(segments(path)) == 1, "one segment is meant to do"
    return starts


def test_pitfall_19_no_key_is_indexed_whose_checksum_is_wrong(path: Path) -> None:
    db = kvstore.open(path)
    start, *_ = put_records(db, path, b"ada", b"alan")
    for byte in range(3):  # of the key itself
        directory = copy_of(path, f"byte-{byte}")
        flip(segments(directory)[0], start + RECORD_HEAD.size + byte, 0)
        assert recovered(directory) == {}, "a key that nobody wrote, or one too many"
    db.close()
    flip(segments(path)[0], start + RECORD_HEAD.size, 0)
    with pytest.raises(kvstore.CorruptionError):
        kvstore.open(path)


@pytest.mark.parametrize("known", ["sealed", "below the mark"])
def test_pitfall_20_damage_is_never_stepped_over(path: Path, known: str) -> None:
    size = 1 if known == "sealed" else 1000
    with kvstore.open(path, segment_bytes=1000) as db:
        first, second, third = put_records(db, path, b"one", b"two", b"three")
    with kvstore.open(path, segment_bytes=size) as db:
        db[b"four"] = b"4"
    damaged = segments(path)[0]
    reaches = third - first - record_bytes(b"one")  # the length up to the third record
    overwrite(damaged, first + 11, reaches.to_bytes(4, "little"))
    before = files(path)
    for flag in ("r", "w", "c"):
        with pytest.raises(kvstore.CorruptionError) as caught:
            kvstore.open(path, flag)
        assert caught.value.path == str(damaged), "the error names the file"
        assert caught.value.offset == first, "and the offset"
        assert "kvstore.salvage" in str(caught.value), "and what can be done"
    assert files(path) == before, "nothing is cut, and nothing is mended unasked"
    report = kvstore.salvage(path, path.with_name("saved"))
    assert read(path.with_name("saved")).keys() == {b"two", b"three", b"four"}
    assert [(each.offset, each.length) for each in report.left_out] == [
        (first, second - first)
    ]


def test_pitfall_21_the_cut_is_on_the_disk_before_an_append(path: Path) -> None:
    expected = torn_store(path)
    disk = on_a_disk(path)
    db = kvstore.open(PATH, filesystem=disk)
    for what, left in remains(disk):
        with kvstore.open(PATH, "r", filesystem=left) as reader:
            assert reader.torn_tail is None, f"{what}: the tail is still there"
    db[b"after"] = b"the tear"
    for what, left in remains(disk):
        found = recovered(PATH, left)
        assert found in (expected, expected | {b"after": b"the tear"}), what


@pytest.mark.parametrize("sealed", [True, False])
def test_pitfall_22_a_disk_that_fails_is_no_damage(path: Path, sealed: bool) -> None:
    expected = torn_store(path)
    name = segments(path)[0 if sealed else -2].name
    before = without_lock(path)
    assert before[name], "the leftover behind it is empty, and is not meant here"
    for which in (1, 2):  # the header, then the records
        for flag in ("r", "c"):
            filesystem = FaultyFileSystem()
            error = disk_broken()
            filesystem.fail("read", error, name=name, first=which)
            with pytest.raises(OSError, match="Input/output error"):
                kvstore.open(path, flag, filesystem=filesystem)
            assert without_lock(path) == before, "nothing is cut because a disk fails"
    assert recovered(path) == expected


def test_pitfall_23_recovery_that_dies_can_be_run_again(path: Path) -> None:
    expected = torn_store(path)
    disk = on_a_disk(path)
    for where, left in moments(disk, lambda: kvstore.open(PATH, filesystem=disk)):
        assert recovered(PATH, left) == expected, where
        kept = [raw for name, raw in left.image().items() if ".cut-" in name]
        assert any(b"torn" in raw for raw in kept), f"{where}: a tail is lost"


@pytest.mark.parametrize("mark", ["as it was", "gone"])
def test_pitfall_24_what_is_served_is_on_the_disk(mark: str) -> None:
    """The bytes are in the kernel, and the kernel thinks that they are on the disk.

    So it is after an fsync that failed in a process that died then. Another fsync does
    nothing; the bytes have to be written once more.
    """
    expected = {b"ada": b"1815", b"alan": b"1912", b"grace": b"1906"}
    disk = SimulatedDisk()
    db = kvstore.open(PATH, filesystem=disk)
    db[b"ada"] = b"1815"
    db.sync()
    db.update(expected)
    disk.fault = faults = Faults()
    faults.fail("sync", disk_broken(), times=99)
    with pytest.raises(OSError, match="Input/output error"):
        db.sync()
    disk.fault = no_fault
    disk.end_process()
    if mark == "gone":
        disk.remove_tree(f"{PATH}/MARK")
    with kvstore.open(PATH, filesystem=disk) as opened:
        assert dict(opened) == expected, "recovery accepts all that it can read"
        for what, left in remains(disk):
            found = recovered(PATH, left)
            assert found == expected, f"accepted, served and lost: {what}"


def mark(number: int, seed: int, length: int) -> bytes:
    """Return a mark whose checksum is right."""
    return encode_watermark(Watermark(SegmentMeta(number, seed, length), closed=True))


def other_marks(own: bytes) -> dict[str, bytes | None]:
    """Return marks that are stale, damaged or of something else, for a store's own."""
    decoded = decode_watermark(own)
    assert decoded is not None
    number, seed, length = decoded.synced
    return {
        "missing": None,
        "damaged": bytes(WATERMARK_BYTES),
        "of nothing yet": mark(number, seed, SEGMENT_HEADER_BYTES),
        "older": mark(number, seed, length - 1),
        "of another segment": mark(number - 1, seed, length + 1000),
        "of a segment to come": mark(number + 1, seed, length + 1000),
        "of a newer format": sealed(own[:8] + b"\2" + own[9:-4]),
        "of another store": mark(number, seed ^ 1, length + 1000),
    }


@pytest.mark.parametrize("make", [small_store, torn_store])
def test_pitfall_25_a_mark_that_is_stale_or_damaged_is_only_too_modest(
    path: Path, make: Callable[[Path], Contents]
) -> None:
    """There is no snapshot of the index and no hint file yet that could be stale.

    The mark is the nearest thing: it is bound to a segment by number, seed and checksum,
    and where it can't be trusted less is taken for safe. It never changes an answer.
    """
    expected = make(path)
    for name, raw in other_marks((path / "MARK").read_bytes()).items():
        directory = copy_of(path, name)
        (directory / "MARK").unlink()
        if raw is not None:
            (directory / "MARK").write_bytes(raw)
        with kvstore.open(directory, "r", filesystem=NO_SYNC) as db:
            assert (db.torn_tail is None) == (make is small_store), f"mark {name}"
        assert recovered(directory) == expected, f"mark {name}"


def test_pitfall_27_a_store_whose_making_was_interrupted_is_made_anew() -> None:
    disk = SimulatedDisk()
    for where, left in moments(disk, lambda: kvstore.open(PATH, filesystem=disk)):
        try:
            assert read(PATH, left) == {}, f"{where}: nothing was put yet"
        except kvstore.StoreNotFoundError:
            with pytest.raises(kvstore.StoreNotFoundError):
                kvstore.open(PATH, "w", filesystem=left)
        assert recovered(PATH, left) == {}, f"{where}: it can be made now"


def scenes(directory: Path) -> dict[str, Contents]:
    """Make stores that a writer would mend as it opens them, with what they hold."""
    closed, open_one = directory / "closed", directory / "open"
    expected = {"closed": small_store(closed), "torn": torn_store(directory / "torn")}
    kvstore.open(open_one, filesystem=NO_SYNC).close()
    (open_one / "MARK").unlink()
    (open_one / "LOCK").unlink()
    (open_one / "MANIFEST.new").write_bytes(b"half")
    (open_one / "00000007.segment").write_bytes(b"left behind")
    return expected | {"open": {}}


def test_pitfall_28_a_read_only_open_changes_nothing(tmp_path: Path) -> None:
    for name, expected in scenes(tmp_path).items():
        directory = tmp_path / name
        before = files(directory)
        times = {each.name: each.stat().st_mtime_ns for each in directory.iterdir()}
        filesystem = FaultyFileSystem()
        with kvstore.open(directory, "r", filesystem=filesystem) as db:
            assert dict(db) == expected
            db.verify()
            db.stats()
            db.sync()
        changes = filesystem.log(*CHANGES, "make_directory", "lock")
        assert changes == [], f"{name}: a reader asked for changes"
        assert files(directory) == before, f"{name}: nothing is changed"
        after = {each.name: each.stat().st_mtime_ns for each in directory.iterdir()}
        assert after == times, f"{name}: nothing is touched"


def test_pitfall_29_salvage_changes_nothing_and_says_all(tmp_path: Path) -> None:
    for name, expected in scenes(tmp_path).items():
        directory = tmp_path / name
        damaged = max(segments(directory), key=lambda each: each.stat().st_size)
        if expected:
            flip(damaged, SEGMENT_HEADER_BYTES + 16, 1)
        before = files(directory)
        report = kvstore.salvage(directory, tmp_path / f"{name}-saved")
        assert files(directory) == before, f"{name}: a repair edits nothing in place"
        if expected:
            assert str(damaged) in {each.path for each in report.left_out}
        saved = read(tmp_path / f"{name}-saved")
        assert len(expected.keys() - saved.keys()) <= 1, (
            f"{name}: all is saved but the one damaged record"
        )


def test_pitfall_26_above_the_mark_is_a_tail_and_below_damage(path: Path) -> None:
    """There is no snapshot yet whose offset could land inside a record; the mark has one."""
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    db.sync()
    db[b"alan"] = b"1912"
    tail = copy_of(path, "tail")
    with_damage = copy_of(path, "damage")
    end = SEGMENT_HEADER_BYTES + record_bytes(b"ada", b"1815")
    flip(segments(tail)[0], end, 0)
    flip(segments(with_damage)[0], end - 1, 0)
    with kvstore.open(tail) as mended:
        assert dict(mended) == {b"ada": b"1815"}
        assert mended.torn_tail is not None
        assert mended.torn_tail.offset == end
    before = files(with_damage)
    with pytest.raises(kvstore.CorruptionError) as caught:
        kvstore.open(with_damage)
    assert caught.value.path == str(segments(with_damage)[0])
    assert caught.value.offset == SEGMENT_HEADER_BYTES
    assert "checksum" in caught.value.reason
    assert files(with_damage) == before, "damage is left as it was found"
