"""One file of records: what is in it, what is refused, and what it leaves behind."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore.record import CONTINUED, DELETE, PUT
from kvstore.segment import (
    SEGMENT_HEADER_BYTES,
    WINDOW_BYTES,
    Entry,
    Segment,
    SegmentMeta,
    check_header,
    segment_name,
    segment_numbers,
)
from tests.disks import FaultyFileSystem
from tests.helpers import (
    FIXED,
    GOLDEN,
    RawRecord,
    append,
    disk_full,
    extend,
    flip,
    flipped,
    new_segment,
    old_segment,
    overwrite,
    steady,
)

# magic, version, number, random bytes, checksum
GOLDEN_HEADER = "4b565345474d0d0a 01000000 0100000000000000 0100000000000000 5fbdf566"
PUTS_AND_A_DELETE = [
    (PUT, 1, b"ada", b"1815"),
    (PUT, 2, b"alan", b"1912"),
    (PUT, 3, b"edsger", b"1930"),
    (DELETE, 4, b"ada", b""),
]
A_BATCH = [
    (PUT | CONTINUED, 5, b"grace", b"1906"),
    (DELETE | CONTINUED, 6, b"alan", b""),
    (PUT, 7, b"", b""),
]


def scan_all(segment: Segment) -> tuple[list[Entry], int | None]:
    """Return what a scan yields, and the offset at which it raises, if it does."""
    found: list[Entry] = []
    try:
        found.extend(segment.scan())
    except kvstore.CorruptionError as error:
        return found, error.offset
    return found, None


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    """A segment with four records."""
    fresh = new_segment(tmp_path, 1)
    append(fresh, *PUTS_AND_A_DELETE)
    return fresh


def test_a_segment_becomes_the_bytes_that_it_always_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    for number, records in ((1, PUTS_AND_A_DELETE), (2, A_BATCH)):
        new_segment(tmp_path, number, *records)
        name = segment_name(number)
        written, golden = (tmp_path / name, GOLDEN / name)
        assert written.read_bytes() == golden.read_bytes(), "the format has changed"
    header = (tmp_path / "00000001.segment").read_bytes()[:SEGMENT_HEADER_BYTES]
    assert header == bytes.fromhex(GOLDEN_HEADER), "the header has changed"


@pytest.mark.parametrize(
    ("number", "records"), [(1, PUTS_AND_A_DELETE), (2, A_BATCH)], ids=["puts", "batch"]
)
def test_a_segment_of_old_is_still_read(number: int, records: list[RawRecord]) -> None:
    old = old_segment(GOLDEN, number)
    found = []
    for each in old.scan():
        value = old.value(each.offset, each.length, each.key)
        found.append((each.kind, each.sequence, each.key, value))
        assert each.continued == bool(each.kind & 128)
        assert each.deletes == (each.kind & 127 == 2)
    assert found == records, "a segment of an older program is misread"


def test_names_sort_as_numbers_do() -> None:
    assert segment_name(1) == "00000001.segment"
    assert segment_name(123_456_789) == "123456789.segment"
    numbers = [1, 2, 9, 10, 99_999_999]
    assert sorted(map(segment_name, numbers)) == [segment_name(n) for n in numbers]
    shuffled = [segment_name(n) for n in (10, 123_456_789, 1)]
    assert segment_numbers(shuffled) == [1, 10, 123_456_789]


def test_files_with_other_names_are_no_segments() -> None:
    other = [
        "MANIFEST",
        "00000001.segment.cut-32",
        ".00000001.segment",
        "-0000001.segment",
        ".segment",
        "0000000x.segment",
        "００００００01.segment",
        "segment",
        "7.segment",
        "000000007.segment",
    ]
    assert segment_numbers(other) == []


@FIXED
@given(st.integers(0, 10**17 - 1))  # seventeen digits, as many as a name may have
def test_every_number_has_one_name(number: int) -> None:
    assert segment_numbers([segment_name(number)]) == [number]


@pytest.mark.parametrize("operation", ["write", "sync", "sync_directory"])
def test_a_segment_that_can_not_be_made_leaves_no_file(
    tmp_path: Path, operation: str
) -> None:
    filesystem = FaultyFileSystem()
    filesystem.fail(operation, disk_full())
    with pytest.raises(OSError, match="No space"):
        new_segment(tmp_path, 1, filesystem=filesystem)
    assert list(tmp_path.iterdir()) == [], "half a segment was left behind"


def test_what_was_appended_is_read_back_here_and_by_another(tmp_path: Path) -> None:
    seed = 4
    chance = random.Random(seed)
    one = new_segment(tmp_path, 3)
    records = [
        (PUT, n, chance.randbytes(chance.randrange(9)), chance.randbytes(n % 777))
        for n in range(1, 2000)
    ]
    places = append(one, *records)
    other = old_segment(tmp_path, 3)
    assert other.meta() == one.meta()
    for handle in (one, other):
        entries = list(handle.scan())
        assert entries == [
            Entry(kind, sequence, key, *place)
            for (kind, sequence, key, _), place in zip(records, places, strict=True)
        ], f"seed {seed}: a scan doesn't give what was appended"
        for (_, _, key, value), place in zip(records, places, strict=True):
            assert handle.value(*place, key) == value, f"seed {seed}: {place}"


def test_the_map_grows_now_and_then_and_not_at_every_read(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = new_segment(tmp_path, 1, filesystem=filesystem)
    value = bytes(100_000)
    for n in range(40):  # four megabytes in all
        ((offset, length),) = append(fresh, (PUT, n, b"key", value))
        assert fresh.value(offset, length, b"key") == value
    maps = len(filesystem.log("map"))
    assert 3 <= maps <= 6, "the file is mapped anew too often, or never"


def test_a_scan_of_huge_values_needs_little_memory_and_finds_damage(
    tmp_path: Path,
) -> None:
    fresh = new_segment(tmp_path, 1)
    value = random.Random(1).randbytes(8 * WINDOW_BYTES + 5)
    place, _ = append(fresh, (PUT, 1, b"huge", value), (PUT, 2, b"small", b"x"))
    del value
    tracemalloc.start()
    try:
        keys = [entry.key for entry in fresh.scan()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert keys == [b"huge", b"small"]
    assert peak < 4 * WINDOW_BYTES, "memory grows with the size of the values"
    flip(Path(fresh.path), fresh.size - 100, 3)
    with pytest.raises(kvstore.CorruptionError, match="checksum") as caught:
        list(fresh.scan())
    assert caught.value.offset == place[0]
    with pytest.raises(kvstore.CorruptionError):
        fresh.value(*place, b"huge")


def test_every_read_of_a_value_checks_every_bit(segment: Segment) -> None:
    entry = next(segment.scan())
    path = Path(segment.path)
    whole = path.read_bytes()[entry.offset : entry.offset + entry.length]
    for reader in (segment, old_segment(Path(segment.path).parent, 1)):
        for bit, damaged in flipped(whole):
            overwrite(path, entry.offset, damaged)
            with pytest.raises(kvstore.CorruptionError) as caught:
                pytest.fail(f"bit {bit}: {reader.value(*entry[3:], entry.key)!r}")
            assert caught.value.path == segment.path
            assert caught.value.offset == entry.offset
        overwrite(path, entry.offset, whole)
        assert reader.value(*entry[3:], entry.key) == b"1815"


@pytest.mark.parametrize("key", [b"", b"ad", b"bob", b"ada1", b"ada1815", b"alan"])
def test_a_value_is_only_given_out_under_its_own_key(
    segment: Segment, key: bytes
) -> None:
    first = next(segment.scan())
    assert segment.value(first.offset, first.length, b"ada") == b"1815"
    with pytest.raises(kvstore.CorruptionError):
        segment.value(first.offset, first.length, key)


@pytest.mark.parametrize("second", [1, 2])
def test_sequence_numbers_rise_or_it_is_damage(tmp_path: Path, second: int) -> None:
    fresh = new_segment(tmp_path, 1)
    _, (offset, _) = append(fresh, (PUT, 2, b"a", b""), (PUT, second, b"b", b""))
    with pytest.raises(kvstore.CorruptionError, match="does not rise") as caught:
        list(fresh.scan())
    assert caught.value.offset == offset


def test_sealing_cuts_to_size_and_syncs_in_this_order(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = new_segment(tmp_path, 1, filesystem=filesystem)
    append(fresh, *PUTS_AND_A_DELETE)
    size = fresh.size
    extend(Path(fresh.path), b"left by an interrupt")
    filesystem.forget()
    assert fresh.seal() == SegmentMeta(1, fresh.seed, size) == fresh.meta()
    assert Path(fresh.path).stat().st_size == size, "a sealed segment ends elsewhere"
    log = filesystem.log("truncate", "sync")
    assert log == ["truncate 00000001.segment", "sync 00000001.segment"]


def test_a_cut_drops_what_is_behind_it(segment: Segment) -> None:
    *kept, last = segment.scan()
    segment.cut(last.offset)
    assert list(segment.scan()) == kept
    assert Path(segment.path).stat().st_size == segment.size == last.offset
    assert segment.value(*kept[0][3:], kept[0].key) == b"1815"
    append(segment, (PUT, 9, b"new", b"value"))
    assert [entry.sequence for entry in segment.scan()] == [1, 2, 3, 9]


HEADER = bytes.fromhex(GOLDEN_HEADER)


def test_a_header_with_any_one_bit_flipped_is_refused() -> None:
    assert check_header("path", HEADER, 1) == int.from_bytes(HEADER[28:], "little")
    for bit, damaged in flipped(HEADER):
        with pytest.raises((kvstore.CorruptionError, kvstore.NewerFormatError)):
            pytest.fail(f"bit {bit}: {check_header('path', damaged, 1)}")


def test_a_header_cut_short_anywhere_is_refused() -> None:
    for length in range(SEGMENT_HEADER_BYTES):
        with pytest.raises(kvstore.CorruptionError, match="inside its head") as caught:
            check_header("path", HEADER[:length], 1)
        assert caught.value.offset == length


def test_a_header_that_was_changed_after_the_opening_is_found(segment: Segment) -> None:
    segment.check_header()
    flip(Path(segment.path), 20, 0)
    with pytest.raises(kvstore.CorruptionError):
        segment.check_header()


def test_a_full_disk_names_the_segment_that_has_no_space(path: Path) -> None:
    filesystem = FaultyFileSystem()
    filesystem.fail("write", disk_full(), ".segment")
    with pytest.raises(OSError, match="No space left") as caught:
        kvstore.open(path, filesystem=filesystem)
    assert caught.value.filename == f"{path}/00000001.segment", "it names no file"
