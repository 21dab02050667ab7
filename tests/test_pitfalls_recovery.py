"""Pitfalls 19 to 29: ways in which stores lost or invented data when they opened."""

from __future__ import annotations

import errno
from pathlib import Path
from zlib import crc32

import pytest
from faults import FaultyFileSystem
from power import CHANGES, PATH, on_a_disk, remains, stops
from support import (
    NO_SYNC,
    Contents,
    copy_of,
    files,
    flip,
    read,
    record_bytes,
    recovered,
    segments,
    small_store,
)

import kvstore
from kvstore.mark import MARK_BYTES, Mark, decode_mark, encode_mark
from kvstore.record import HEAD
from kvstore.segment import HEADER_BYTES, Description
from kvstore.simdisk import Operation, SimulatedDisk, no_fault


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


def put_records(db: kvstore.Store, path: Path, *keys: bytes) -> list[int]:
    """Put some keys, and return where the record of each begins in its segment."""
    starts = []
    for key in keys:
        starts.append(segments(path)[-1].stat().st_size)
        db[key] = b"value of " + key
    assert len(segments(path)) == 1, "one segment is meant to do"
    return starts


def torn(directory: Path) -> Contents:
    """Make a store that was not closed, its last batch torn, a leftover beside it."""
    db = kvstore.open(directory, segment_bytes=100, filesystem=NO_SYNC)
    expected = {b"%d" % number: b"x" * 9 for number in range(7)}
    db.update(expected)
    with db.batch() as batch:
        batch[b"torn"] = b"torn"
        del batch[b"0"]
    last = segments(directory)[-1]
    last.write_bytes(last.read_bytes()[:-3])
    (directory / "00000009.segment").write_bytes(b"")
    return expected


def test_pitfall_19_no_key_is_indexed_whose_checksum_is_wrong(path: Path) -> None:
    db = kvstore.open(path)
    start, *_ = put_records(db, path, b"ada", b"alan")
    for byte in range(HEAD.size, HEAD.size + 3):  # the bytes of the key itself
        directory = copy_of(path, f"byte-{byte}")
        flip(segments(directory)[0], start + byte, 0)
        assert recovered(directory) == {}, "a key that nobody wrote, or one too many"
    db.close()
    flip(segments(path)[0], start + HEAD.size, 0)
    with pytest.raises(kvstore.CorruptionError):
        kvstore.open(path)


@pytest.mark.parametrize("known", ["sealed", "below the mark"])
def test_pitfall_20_damage_is_an_error_and_never_stepped_over_by_its_own_length(
    path: Path, known: str
) -> None:
    size = 1 if known == "sealed" else 1000
    with kvstore.open(path, segment_bytes=1000) as db:
        first, second, third = put_records(db, path, b"one", b"two", b"three")
    with kvstore.open(path, segment_bytes=size) as db:
        db[b"four"] = b"4"
    damaged = segments(path)[0]
    reaches = third - first - record_bytes(b"one")  # the length up to the third record
    with damaged.open("r+b") as file:
        file.seek(first + 11)
        file.write(reaches.to_bytes(4, "little"))
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


def test_pitfall_20_a_tail_is_cut_at_the_first_bad_record(path: Path) -> None:
    db = kvstore.open(path)
    first, second, third = put_records(db, path, b"one", b"two", b"three")
    directory = copy_of(path)
    with segments(directory)[0].open("r+b") as file:
        file.seek(second + 11)
        file.write((third - second).to_bytes(4, "little"))
    with kvstore.open(directory) as mended:
        assert mended.keys() == {b"one"}, "history ends where it can't be read"
        assert mended.torn_tail is not None
        assert mended.torn_tail.offset == second > first
    db.close()


def test_pitfall_21_nothing_is_appended_behind_a_torn_tail(path: Path) -> None:
    expected = torn(path)
    db = kvstore.open(path)
    db[b"after"] = expected[b"after"] = b"the tear"
    assert recovered(copy_of(path)) == expected, "what comes behind a tear can be read"
    db.close()
    assert read(path) == expected


def test_pitfall_21_the_cut_is_on_the_disk_before_anything_is_appended(
    path: Path,
) -> None:
    expected = torn(path)
    disk = on_a_disk(path)
    db = kvstore.open(PATH, filesystem=disk)
    for what, image in remains(disk):
        with kvstore.open(PATH, "r", filesystem=SimulatedDisk(image)) as reader:
            assert reader.torn_tail is None, f"{what}: the tail is still there"
    db[b"after"] = b"the tear"
    for what, image in remains(disk):
        found = recovered(PATH, SimulatedDisk(image))
        assert found in (expected, expected | {b"after": b"the tear"}), what


@pytest.mark.parametrize("sealed", [True, False])
def test_pitfall_22_an_error_of_the_disk_is_not_taken_for_damage(
    path: Path, sealed: bool
) -> None:
    expected = torn(path)
    name = segments(path)[0 if sealed else -2].name
    before = {n: raw for n, raw in files(path).items() if n != "LOCK"}
    assert before[name], "the leftover behind it is empty, and is not meant here"
    for which in (1, 2):  # the header, then the records
        for flag in ("r", "c"):
            filesystem = FaultyFileSystem()
            error = OSError(errno.EIO, "Input/output error")
            filesystem.fail("read", error, name=name, first=which)
            with pytest.raises(OSError, match="Input/output error"):
                kvstore.open(path, flag, filesystem=filesystem)
            after = {n: raw for n, raw in files(path).items() if n != "LOCK"}
            assert after == before, "nothing is cut because a disk fails"
    assert recovered(path) == expected


def test_pitfall_23_recovery_that_dies_at_any_call_can_be_run_again(
    path: Path,
) -> None:
    expected = torn(path)
    for number in range(1, 10_000):
        disk = on_a_disk(path)
        where = stops(disk, number, lambda: kvstore.open(PATH, filesystem=disk))  # noqa: B023
        if not where:
            break
        for what, image in remains(disk):
            after = SimulatedDisk(image)
            assert recovered(PATH, after) == expected, f"{where}, {what}"
            kept = [raw for name, raw in after.image().items() if ".cut-" in name]
            assert any(b"torn" in raw for raw in kept), (
                f"{where}, {what}: a tail is lost"
            )
    assert number > 8, "this recovery is meant to change something"


@pytest.mark.parametrize("mark", ["as it was", "gone"])
def test_pitfall_24_what_recovery_accepted_is_on_the_disk_before_it_is_served(
    mark: str,
) -> None:
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

    def fault(operation: Operation) -> None:
        raise OSError(errno.EIO, "Input/output error", operation.path)

    disk.fault = fault
    with pytest.raises(OSError, match="Input/output error"):
        db.sync()
    disk.fault = no_fault
    disk.end_process()
    if mark == "gone":
        disk.remove(f"{PATH}/MARK")
    with kvstore.open(PATH, filesystem=disk) as opened:
        assert dict(opened) == expected, "recovery accepts all that it can read"
        for what, image in remains(disk):
            found = recovered(PATH, SimulatedDisk(image))
            assert found == expected, f"accepted, served and lost: {what}"


def other_marks(path: Path) -> dict[str, bytes | None]:
    """Return marks that are stale, damaged or of something else, for a store's own."""
    own = (path / "MARK").read_bytes()
    mark = decode_mark(own)
    assert mark is not None
    number, seed, length = mark.synced
    marks: dict[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "zeros": bytes(MARK_BYTES),
        "cut": own[:-1],
        "grown": own + b"\0",
        "of nothing yet": encode(number, seed, HEADER_BYTES),
        "older": encode(number, seed, length - 1),
        "of another segment": encode(number - 1, seed, length + 1000),
        "of a segment to come": encode(number + 1, seed, length + 1000),
        "of a newer format": resealed(own[:8] + b"\2" + own[9:]),
        "of another store": encode(number, seed ^ 1, length + 1000),
    }
    for byte in range(MARK_BYTES):
        for bit in (0, 7):
            flipped = bytearray(own)
            flipped[byte] ^= 1 << bit
            marks[f"damaged in bit {bit} of byte {byte}"] = bytes(flipped)
    return marks


def resealed(raw: bytes) -> bytes:
    """Return the bytes of a file with the checksum at their end put right."""
    return raw[:-4] + crc32(raw[:-4]).to_bytes(4, "little")


def encode(number: int, seed: int, length: int) -> bytes:
    """Return a mark whose checksum is right."""
    return encode_mark(Mark(Description(number, seed, length), closed=True))


def test_pitfall_25_a_mark_that_is_stale_or_damaged_is_only_too_modest(
    tmp_path: Path,
) -> None:
    """There is no snapshot of the index and no hint file yet that could be stale.

    The mark is the nearest thing: it is bound to a segment by number, seed and checksum,
    and where it can't be trusted less is taken for safe. It never changes an answer.
    """
    expected = small_store(tmp_path / "closed")
    for number, (name, raw) in enumerate(other_marks(tmp_path / "closed").items()):
        for flag in ("r", "c"):
            directory = copy_of(tmp_path / "closed", f"{number}-{flag}")
            put_mark(directory, raw)
            with kvstore.open(directory, flag, filesystem=NO_SYNC) as db:
                assert dict(db) == expected, f"mark {name}, flag {flag}"
                assert db.torn_tail is None, f"mark {name}: there is nothing to cut"


def put_mark(directory: Path, raw: bytes | None) -> None:
    """Put another mark in the place of a store's own, or none."""
    (directory / "MARK").unlink()
    if raw is not None:
        (directory / "MARK").write_bytes(raw)


def test_pitfall_25_a_torn_tail_is_cut_also_where_the_mark_is_stale(
    tmp_path: Path,
) -> None:
    expected = torn(tmp_path / "torn")
    for number, (name, raw) in enumerate(other_marks(tmp_path / "torn").items()):
        directory = copy_of(tmp_path / "torn", str(number))
        put_mark(directory, raw)
        assert recovered(directory) == expected, f"mark {name}"


def test_pitfall_26_a_mark_inside_a_record_is_modest_or_an_error_and_never_silence(
    path: Path,
) -> None:
    """There is no snapshot yet whose offset could land inside a record; the mark has one.

    Wherever the mark is, a file that reaches it opens, and one that ends before it does
    not: what was on the disk is never missing without a word.
    """
    db = kvstore.open(path, filesystem=NO_SYNC)
    put_records(db, path, b"a", b"b")
    with db.batch() as batch:
        batch[b"c"] = b"3"
        del batch[b"a"]
    directory = copy_of(path)
    segment = segments(directory)[0]
    whole = segment.read_bytes()
    states: dict[int, Contents] = {HEADER_BYTES: {}}
    states[HEADER_BYTES + 30] = {b"a": b"value of a"}
    states[HEADER_BYTES + 60] = {b"a": b"value of a", b"b": b"value of b"}
    states[len(whole)] = {b"b": b"value of b", b"c": b"3"}
    mark = decode_mark((directory / "MARK").read_bytes())
    assert mark is not None
    number, seed, _ = mark.synced
    for end in [
        *states,
        *(each - 1 for each in states),
        *(each + 1 for each in states),
    ]:
        if not HEADER_BYTES <= end <= len(whole):
            continue
        segment.write_bytes(whole[:end])
        (_, expected) = max(each for each in states.items() if each[0] <= end)
        reaches = max(each for each in states if each <= end)
        for length in range(HEADER_BYTES, len(whole) + 1):
            put_mark(directory, encode(number, seed, length))
            if length <= reaches:
                assert read(directory) == expected, f"file to {end}, mark at {length}"
            else:
                with pytest.raises(kvstore.CorruptionError) as caught:
                    kvstore.open(directory, "r")
                assert caught.value.path == str(segment)
    db.close()


def test_pitfall_27_a_store_whose_making_was_interrupted_is_made_anew() -> None:
    for number in range(1, 1000):
        disk = SimulatedDisk()
        where = stops(disk, number, lambda: kvstore.open(PATH, filesystem=disk))  # noqa: B023
        if not where:
            break
        for what, image in remains(disk):
            after = SimulatedDisk(image)
            try:
                assert read(PATH, after) == {}, f"{where}, {what}: nothing was put yet"
            except kvstore.StoreNotFoundError:
                with pytest.raises(kvstore.StoreNotFoundError):
                    kvstore.open(PATH, "w", filesystem=after)
            found = recovered(PATH, after)
            assert found == {}, f"{where}, {what}: it can be made now"
    assert number > 10, "making a store takes some calls"


def scenes(directory: Path) -> dict[str, Contents]:
    """Make stores that a writer would mend as it opens them, with what they hold."""
    closed, open_one = directory / "closed", directory / "open"
    expected = {"closed": small_store(closed), "torn": torn(directory / "torn")}
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


def test_pitfall_29_salvage_changes_nothing_and_says_what_it_left_out(
    tmp_path: Path,
) -> None:
    for name, expected in scenes(tmp_path).items():
        directory = tmp_path / name
        damaged = max(segments(directory), key=lambda each: each.stat().st_size)
        if expected:
            flip(damaged, HEADER_BYTES + 16, 1)
        before = files(directory)
        report = kvstore.salvage(directory, tmp_path / f"{name}-saved")
        assert files(directory) == before, f"{name}: a repair edits nothing in place"
        if expected:
            assert str(damaged) in {each.path for each in report.left_out}
        saved = read(tmp_path / f"{name}-saved")
        assert len(expected.keys() - saved.keys()) <= 1, (
            f"{name}: all is saved but the one damaged record"
        )
        with pytest.raises(FileExistsError):
            kvstore.salvage(directory, tmp_path / f"{name}-saved")
        with pytest.raises(FileExistsError):
            kvstore.salvage(directory, directory)
        assert files(directory) == before
