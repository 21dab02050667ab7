"""The mark: 40 bytes that may be too modest, and never claim too much."""

from __future__ import annotations

import errno
from pathlib import Path
from zlib import crc32

import pytest
from faults import FaultyFileSystem
from hypothesis import given
from hypothesis import strategies as st
from samples import FIXED, GOLDEN, flipped

from kvstore.filesystem import DISK
from kvstore.mark import (
    MARK_BYTES,
    Mark,
    MarkFile,
    decode_mark,
    encode_mark,
    read_mark,
)
from kvstore.segment import Description

# magic, version, segment, seed, length, closed, checksum
GOLDEN_BYTES = bytes.fromhex(
    "4b564d41524b0d0a 01000000 0200000000000000 4e0eb2c1 6600000000000000 01000000"
    "53a670f9"
)
SYNCED = Description(number=2, seed=0xC1B20E4E, length=102)
GOLDEN_MARK = Mark(SYNCED, closed=True)

marks = st.builds(
    Mark,
    st.builds(
        Description,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, (1 << 64) - 1),
    ),
    st.booleans(),
)


def test_a_mark_becomes_the_bytes_that_it_always_became() -> None:
    assert encode_mark(GOLDEN_MARK).hex() == GOLDEN_BYTES.hex(), (
        "the format has changed"
    )
    assert (GOLDEN / "MARK").read_bytes() == GOLDEN_BYTES
    in_use = encode_mark(Mark(SYNCED, closed=False))
    assert in_use[32:36] == bytes(4), "a store in use is marked as closed"


def test_a_mark_of_old_is_still_read() -> None:
    assert read_mark(DISK, str(GOLDEN)) == GOLDEN_MARK


@FIXED
@given(marks)
def test_what_was_encoded_comes_back(mark: Mark) -> None:
    raw = encode_mark(mark)
    assert len(raw) == MARK_BYTES == 40
    assert decode_mark(raw) == mark


def test_a_mark_with_any_one_bit_flipped_claims_nothing() -> None:
    for bit, damaged in flipped(GOLDEN_BYTES):
        assert decode_mark(damaged) is None, f"bit {bit} flipped and not noticed"


def test_a_mark_of_any_other_length_claims_nothing() -> None:
    for length in range(MARK_BYTES):
        assert decode_mark(GOLDEN_BYTES[:length]) is None, f"cut to {length} bytes"
    assert decode_mark(GOLDEN_BYTES + b"\0") is None


@pytest.mark.parametrize("length", [102, 103, 358, 1 << 20, 1 << 40])
def test_a_mark_that_was_written_in_part_claims_nothing_new(length: int) -> None:
    old = encode_mark(GOLDEN_MARK)
    new = encode_mark(Mark(SYNCED._replace(length=length), closed=False))
    for cut in range(MARK_BYTES + 1):
        for mixed in (new[:cut] + old[cut:], old[:cut] + new[cut:]):
            if mixed not in (old, new):
                assert decode_mark(mixed) is None, f"torn at byte {cut}, and believed"


@pytest.mark.parametrize(
    "front", [b"KVSEGM\r\n\1\0\0\0", b"KVMARK\r\n\2\0\0\0", b"KVMARK\r\n\0\0\0\0"]
)
def test_a_mark_of_another_kind_or_version_claims_nothing(front: bytes) -> None:
    body = front + GOLDEN_BYTES[12:-4]
    assert decode_mark(body + crc32(body).to_bytes(4, "little")) is None


def test_a_store_without_a_mark_has_none(tmp_path: Path) -> None:
    assert read_mark(DISK, str(tmp_path)) is None


def test_what_stands_behind_a_mark_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "MARK").write_bytes(GOLDEN_BYTES + b"more")
    assert read_mark(DISK, str(tmp_path)) == GOLDEN_MARK
    (tmp_path / "MARK").write_bytes(b"more" + GOLDEN_BYTES)
    assert read_mark(DISK, str(tmp_path)) is None


def test_a_disk_that_fails_is_not_a_missing_mark(tmp_path: Path) -> None:
    (tmp_path / "MARK").write_bytes(GOLDEN_BYTES)
    for operation in ("open", "read"):
        filesystem = FaultyFileSystem()
        filesystem.fail(operation, OSError(errno.EIO, "the disk fails"))
        with pytest.raises(OSError, match="the disk fails"):
            read_mark(filesystem, str(tmp_path))


def test_each_mark_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    first = MarkFile(DISK, str(tmp_path))
    for length, closed in ((32, False), (4096, True), (33, False)):
        first.write(SYNCED._replace(length=length), closed=closed)
        expected = Mark(SYNCED._replace(length=length), closed)
        assert read_mark(DISK, str(tmp_path)) == expected
    assert (tmp_path / "MARK").stat().st_size == MARK_BYTES
    again = MarkFile(DISK, str(tmp_path))
    assert read_mark(DISK, str(tmp_path)) == expected, "opening it changed the mark"
    again.write(SYNCED)
    assert read_mark(DISK, str(tmp_path)) == Mark(SYNCED, closed=False)


def test_a_mark_costs_one_write_and_no_fsync_unless_asked(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    mark = MarkFile(filesystem, str(tmp_path))
    filesystem.calls.clear()
    mark.write(SYNCED)
    assert filesystem.log() == ["write MARK"]
    mark.sync()
    assert filesystem.log() == ["write MARK", "sync MARK"]
