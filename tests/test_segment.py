"""One file of records: what is in it, what is refused, and what it leaves behind."""

from __future__ import annotations

import errno
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
from faults import FaultyFileSystem
from hypothesis import given
from hypothesis import strategies as st
from samples import FIXED, GOLDEN, SteadyFileSystem, flipped

import kvstore
from kvstore.filesystem import DISK
from kvstore.record import CONTINUED, DELETE, PUT, encode
from kvstore.segment import (
    HEADER_BYTES,
    WINDOW_BYTES,
    Description,
    Entry,
    Segment,
    check_header,
    segment_name,
    segment_numbers,
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


def write(
    segment: Segment, records: list[tuple[int, int, bytes, bytes]]
) -> list[tuple[int, int]]:
    """Append records, and return the offset and the length of each."""
    places = []
    for record in records:
        raw = encode(*record, segment.seed)
        places.append((segment.append(raw), len(raw)))
    return places


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
    fresh = Segment.create(DISK, str(tmp_path), 1)
    write(fresh, PUTS_AND_A_DELETE)
    return fresh


def test_a_segment_becomes_the_bytes_that_it_always_became(tmp_path: Path) -> None:
    filesystem = SteadyFileSystem()
    for number, records in ((1, PUTS_AND_A_DELETE), (2, A_BATCH)):
        fresh = Segment.create(filesystem, str(tmp_path), number)
        write(fresh, records)
        name = segment_name(number)
        written, golden = (tmp_path / name, GOLDEN / name)
        assert written.read_bytes() == golden.read_bytes(), "the format has changed"
    header = (tmp_path / "00000001.segment").read_bytes()[:HEADER_BYTES]
    assert header == bytes.fromhex(GOLDEN_HEADER), "the header has changed"


@pytest.mark.parametrize(
    ("number", "records"), [(1, PUTS_AND_A_DELETE), (2, A_BATCH)], ids=["puts", "batch"]
)
def test_a_segment_of_old_is_still_read(
    number: int, records: list[tuple[int, int, bytes, bytes]]
) -> None:
    old = Segment.open(DISK, str(GOLDEN), number)
    entries = list(old.scan())
    read = [
        (
            each.kind,
            each.sequence,
            each.key,
            old.value(each.offset, each.length, each.key),
        )
        for each in entries
    ]
    assert read == records, "a segment of an older program is misread"
    assert [each.continued for each in entries] == [
        bool(kind & 128) for kind, *_ in records
    ]
    assert [each.deletes for each in entries] == [
        kind & 127 == 2 for kind, *_ in records
    ]


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
        "0000000x.segment",
        "００００００01.segment",
        ".segment",
        "segment",
    ]
    assert segment_numbers(other) == []


def test_a_number_written_otherwise_names_no_segment() -> None:
    found = segment_numbers(["7.segment", "000000007.segment", "00000008.segment"])
    assert found == [8], "a file was taken for a segment that has another name"


@FIXED
@given(st.integers(0, 10**18 - 1))  # eighteen digits, as many as a name may have
def test_every_number_has_one_name(number: int) -> None:
    assert segment_numbers([segment_name(number)]) == [number]


def test_no_two_segments_have_the_same_seed(tmp_path: Path) -> None:
    seeds = {Segment.create(DISK, str(tmp_path), n).seed for n in range(1, 51)}
    assert len(seeds) == 50, "segments can't be told apart"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        seeds.add(Segment.create(DISK, str(tmp_path / folder), 1).seed)
    assert len(seeds) == 52, "the first segments of two stores can't be told apart"


def test_a_segment_is_never_made_over_a_file_that_exists(tmp_path: Path) -> None:
    (tmp_path / segment_name(1)).write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        Segment.create(DISK, str(tmp_path), 1)
    assert (tmp_path / segment_name(1)).read_bytes() == b"mine"


@pytest.mark.parametrize("operation", ["write", "sync", "sync_directory"])
def test_a_segment_that_can_not_be_made_leaves_no_file(
    tmp_path: Path, operation: str
) -> None:
    filesystem = FaultyFileSystem()
    filesystem.fail(operation, OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        Segment.create(filesystem, str(tmp_path), 1)
    assert list(tmp_path.iterdir()) == [], "half a segment was left behind"


def test_what_was_appended_is_read_back_here_and_by_another(tmp_path: Path) -> None:
    seed = 4
    chance = random.Random(seed)
    one = Segment.create(DISK, str(tmp_path), 3)
    records = [
        (PUT, n, chance.randbytes(chance.randrange(9)), chance.randbytes(n % 777))
        for n in range(1, 2000)
    ]
    places = write(one, records)
    other = Segment.open(DISK, str(tmp_path), 3)
    assert other.describe() == one.describe()
    for handle in (one, other):
        entries = list(handle.scan())
        assert entries == [
            Entry(kind, sequence, key, *place)
            for (kind, sequence, key, _), place in zip(records, places, strict=True)
        ], f"seed {seed}: a scan doesn't give what was appended"
        for (_, _, key, value), place in zip(records, places, strict=True):
            assert handle.value(*place, key) == value, f"seed {seed}: {place}"


def test_records_are_appended_one_behind_the_other(segment: Segment) -> None:
    offset = segment.size
    (place,) = write(segment, [(PUT, 5, b"key", b"value")])
    assert place == (offset, segment.size - offset)
    assert Path(segment.path).stat().st_size == segment.size


def test_the_map_grows_now_and_then_and_not_at_every_read(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = Segment.create(filesystem, str(tmp_path), 1)
    value = bytes(100_000)
    for n in range(40):  # four megabytes in all
        ((offset, length),) = write(fresh, [(PUT, n, b"key", value)])
        assert fresh.value(offset, length, b"key") == value
    maps = len(filesystem.log("map"))
    assert 3 <= maps <= 6, "the file is mapped anew too often, or never"


def test_a_scan_can_begin_at_any_record(segment: Segment) -> None:
    entries = list(segment.scan())
    for n, entry in enumerate(entries):
        assert list(segment.scan(entry.offset)) == entries[n:]
    assert list(segment.scan(segment.size)) == []


def test_a_scan_of_huge_values_needs_little_memory(tmp_path: Path) -> None:
    fresh = Segment.create(DISK, str(tmp_path), 1)
    value = random.Random(1).randbytes(8 * WINDOW_BYTES + 5)
    write(fresh, [(PUT, 1, b"huge", value), (PUT, 2, b"small", b"x")])
    del value
    tracemalloc.start()
    try:
        keys = [entry.key for entry in fresh.scan()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert keys == [b"huge", b"small"]
    assert peak < 4 * WINDOW_BYTES, "memory grows with the size of the values"


def test_a_damaged_byte_deep_in_a_huge_value_is_found(tmp_path: Path) -> None:
    fresh = Segment.create(DISK, str(tmp_path), 1)
    places = write(
        fresh, [(PUT, 1, b"a", b"x"), (PUT, 2, b"huge", bytes(3 * WINDOW_BYTES))]
    )
    file = DISK.open(fresh.path, writable=True)
    DISK.write(file, b"!", fresh.size - 100)
    with pytest.raises(kvstore.CorruptionError, match="checksum") as caught:
        list(fresh.scan())
    assert caught.value.offset == places[1][0]
    with pytest.raises(kvstore.CorruptionError):
        fresh.value(*places[1], b"huge")


def test_every_read_of_a_value_checks_every_bit(segment: Segment) -> None:
    entry = next(segment.scan())
    file = DISK.open(segment.path, writable=True)
    whole = DISK.read(file, entry.length, entry.offset)
    for reader in (segment, Segment.open(DISK, str(Path(segment.path).parent), 1)):
        for bit, damaged in flipped(whole):
            DISK.write(file, damaged, entry.offset)
            with pytest.raises(kvstore.CorruptionError) as caught:
                pytest.fail(f"bit {bit}: {reader.value(*entry[3:], entry.key)!r}")
            assert caught.value.path == segment.path
            assert caught.value.offset == entry.offset
        DISK.write(file, whole, entry.offset)
        assert reader.value(*entry[3:], entry.key) == b"1815"


@pytest.mark.parametrize("key", [b"", b"ad", b"bob", b"ada1", b"ada1815", b"alan"])
def test_a_value_is_only_given_out_under_its_own_key(
    segment: Segment, key: bytes
) -> None:
    first = next(segment.scan())
    assert segment.value(first.offset, first.length, b"ada") == b"1815"
    with pytest.raises(kvstore.CorruptionError):
        segment.value(first.offset, first.length, key)


def test_a_value_is_only_given_out_in_its_whole_length(segment: Segment) -> None:
    first = next(segment.scan())
    for length in (0, 4, 18, first.length - 1, first.length + 1, 1 << 20):
        with pytest.raises(kvstore.CorruptionError):
            segment.value(first.offset, length, b"ada")


@pytest.mark.parametrize("batch", [False, True], ids=["puts", "batch"])
def test_a_segment_cut_anywhere_gives_the_whole_records_before(
    tmp_path: Path, *, batch: bool
) -> None:
    whole = (GOLDEN / segment_name(1 + batch)).read_bytes()
    entries = list(Segment.open(DISK, str(GOLDEN), 1 + batch).scan())
    path = tmp_path / segment_name(1 + batch)
    for length in range(HEADER_BYTES, len(whole)):
        path.write_bytes(whole[:length])
        expected = [each for each in entries if each.offset + each.length <= length]
        end = expected[-1].offset + expected[-1].length if expected else HEADER_BYTES
        found, trouble = scan_all(Segment.open(DISK, str(tmp_path), 1 + batch))
        torn_at = None if end == length else end
        assert trouble == torn_at, f"cut to {length}: wrong about half a record"
        assert found == expected, f"cut to {length}: a whole record was not read"


@pytest.mark.parametrize("second", [1, 2])
def test_sequence_numbers_rise_or_it_is_damage(tmp_path: Path, second: int) -> None:
    fresh = Segment.create(DISK, str(tmp_path), 1)
    _, (offset, _) = write(fresh, [(PUT, 2, b"a", b""), (PUT, second, b"b", b"")])
    with pytest.raises(kvstore.CorruptionError, match="does not rise") as caught:
        list(fresh.scan())
    assert caught.value.offset == offset


def test_a_file_that_shrinks_under_a_reader_is_damage(segment: Segment) -> None:
    reader = Segment.open(DISK, str(Path(segment.path).parent), 1)
    DISK.truncate(DISK.open(segment.path, writable=True), 60)
    with pytest.raises(kvstore.CorruptionError) as caught:
        list(reader.scan())
    assert caught.value.offset == 58, "the first record that is not whole"


def test_a_disk_that_fails_is_no_damage(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = Segment.create(filesystem, str(tmp_path), 1)
    places = write(fresh, PUTS_AND_A_DELETE)
    filesystem.fail("read", OSError(errno.EIO, "the disk fails"), times=3)
    attempts: list[Callable[[], object]] = [
        lambda: list(fresh.scan()),
        lambda: fresh.is_whole_at(*places[0]),
        lambda: fresh.value(*places[0], b"ada"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="the disk fails"):
            attempt()
    assert fresh.value(*places[0], b"ada") == b"1815"


def test_a_whole_record_is_told_from_other_places(segment: Segment) -> None:
    whole = {(entry.offset, entry.length) for entry in segment.scan()}
    for offset in range(HEADER_BYTES, segment.size):
        for length in range(19, segment.size - offset + 9):
            found = segment.is_whole_at(offset, length)
            assert found == ((offset, length) in whole), (offset, length)


@pytest.mark.parametrize("taken", [0, 1, 25])
def test_an_append_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, taken: int
) -> None:
    filesystem = FaultyFileSystem()
    fresh = Segment.create(filesystem, str(tmp_path), 1)
    write(fresh, PUTS_AND_A_DELETE)
    before = Path(fresh.path).read_bytes()
    filesystem.fail("write", None, take=taken)
    filesystem.fail("write", OSError(errno.ENOSPC, "full"))  # the write after that
    with pytest.raises(OSError, match="full"):
        write(fresh, [(PUT, 5, b"key", bytes(100))])
    assert Path(fresh.path).read_bytes() == before, "bytes of a failed append are left"
    write(fresh, [(PUT, 6, b"key", b"again")])
    assert [entry.sequence for entry in fresh.scan()] == [1, 2, 3, 4, 6]


def test_an_append_that_can_not_be_cut_back_says_so(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = Segment.create(filesystem, str(tmp_path), 1)
    filesystem.fail("write", OSError(errno.ENOSPC, "no room"))
    filesystem.fail("truncate", OSError(errno.EIO, "the disk fails"))
    with pytest.raises(kvstore.WriteRefusedError, match="no room") as caught:
        write(fresh, [(PUT, 5, b"key", bytes(100))])
    assert fresh.path in str(caught.value)


def test_sealing_cuts_to_size_and_syncs_in_this_order(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = Segment.create(filesystem, str(tmp_path), 1)
    write(fresh, PUTS_AND_A_DELETE)
    size = fresh.size
    DISK.write(DISK.open(fresh.path, writable=True), b"left by an interrupt", size)
    filesystem.calls.clear()
    assert fresh.seal() == Description(1, fresh.seed, size) == fresh.describe()
    assert Path(fresh.path).stat().st_size == size, "a sealed segment ends elsewhere"
    log = filesystem.log("truncate", "sync")
    assert log == ["truncate 00000001.segment", "sync 00000001.segment"]


def test_a_cut_drops_what_is_behind_it(segment: Segment) -> None:
    *kept, last = segment.scan()
    segment.cut(last.offset)
    assert list(segment.scan()) == kept
    assert Path(segment.path).stat().st_size == segment.size == last.offset
    assert segment.value(*kept[0][3:], kept[0].key) == b"1815"
    write(segment, [(PUT, 9, b"new", b"value")])
    assert [entry.sequence for entry in segment.scan()] == [1, 2, 3, 9]


def test_rewriting_writes_the_same_bytes_and_then_syncs(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    fresh = Segment.create(filesystem, str(tmp_path), 1)
    write(fresh, [(PUT, 1, b"huge", bytes(2 * WINDOW_BYTES))])
    before = Path(fresh.path).read_bytes()
    filesystem.calls.clear()
    fresh.rewrite(HEADER_BYTES)
    log = filesystem.log("write", "sync")
    assert log == ["write 00000001.segment"] * 3 + ["sync 00000001.segment"]
    assert Path(fresh.path).read_bytes() == before


@pytest.mark.parametrize("start", [HEADER_BYTES, 500, WINDOW_BYTES, 2_500_000])
def test_pieces_together_are_the_file(tmp_path: Path, start: int) -> None:
    fresh = Segment.create(DISK, str(tmp_path), 1)
    write(fresh, [(PUT, 1, b"huge", random.Random(2).randbytes(2_500_000))])
    pieces = list(fresh.pieces(start))
    assert b"".join(pieces) == Path(fresh.path).read_bytes()[start:]
    assert max(map(len, pieces)) <= WINDOW_BYTES


HEADER = bytes.fromhex(GOLDEN_HEADER)


def resealed(header: bytes) -> bytes:
    """Return a header with the right checksum over what it says."""
    return header[:28] + crc32(header[:28]).to_bytes(4, "little")


def test_a_header_with_any_one_bit_flipped_is_refused() -> None:
    assert check_header("path", HEADER, 1) == int.from_bytes(HEADER[28:], "little")
    for bit, damaged in flipped(HEADER):
        with pytest.raises((kvstore.CorruptionError, kvstore.NewerFormatError)):
            pytest.fail(f"bit {bit}: {check_header('path', damaged, 1)}")


def test_a_header_cut_short_anywhere_is_refused() -> None:
    for length in range(HEADER_BYTES):
        with pytest.raises(
            kvstore.CorruptionError, match="inside its header"
        ) as caught:
            check_header("path", HEADER[:length], 1)
        assert caught.value.offset == length


@pytest.mark.parametrize(
    ("header", "error", "words"),
    [
        (resealed(b"SQLite f" + HEADER[8:]), kvstore.CorruptionError, "magic"),
        (
            resealed(HEADER[:8] + b"\2\0\0\0" + HEADER[12:]),
            kvstore.NewerFormatError,
            "2",
        ),
        (
            resealed(HEADER[:8] + b"\0\0\0\0" + HEADER[12:]),
            kvstore.CorruptionError,
            "checksum",
        ),
        (
            resealed(HEADER[:12] + b"\2" + HEADER[13:]),
            kvstore.CorruptionError,
            "2, not 1",
        ),
    ],
    ids=["foreign", "newer", "version zero", "another number"],
)
def test_a_header_that_says_something_else_is_refused(
    tmp_path: Path, header: bytes, error: type[kvstore.KVStoreError], words: str
) -> None:
    path = tmp_path / segment_name(1)
    path.write_bytes(header)
    with pytest.raises(error, match=words) as caught:
        Segment.open(DISK, str(tmp_path), 1)
    assert str(path) in str(caught.value), "the message doesn't name the file"


def test_a_header_that_was_changed_after_the_opening_is_found(segment: Segment) -> None:
    segment.check_header()
    DISK.write(DISK.open(segment.path, writable=True), b"!", 20)
    with pytest.raises(kvstore.CorruptionError):
        segment.check_header()
