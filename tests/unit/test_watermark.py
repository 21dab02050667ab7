"""The mark: 40 bytes that may be too modest, and never claim too much."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.posix import DISK
from kvstore.segment import SegmentMeta
from kvstore.watermark import (
    WATERMARK_BYTES,
    Watermark,
    WatermarkFile,
    decode_watermark,
    encode_watermark,
)
from tests.disks import FaultyFileSystem
from tests.helpers import FIXED, GOLDEN, disk_broken, flipped, folder, watermark_of

# magic, version, segment, seed, length, closed, checksum
GOLDEN_BYTES = bytes.fromhex(
    "4b564d41524b0d0a 01000000 0200000000000000 4e0eb2c1 6600000000000000 01000000"
    "53a670f9"
)
SYNCED = SegmentMeta(number=2, seed=0xC1B20E4E, length=102)
GOLDEN_MARK = Watermark(SYNCED, closed=True)

marks = st.builds(
    Watermark,
    st.builds(
        SegmentMeta,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, (1 << 64) - 1),
    ),
    st.booleans(),
)


def test_a_mark_becomes_the_bytes_that_it_always_became() -> None:
    written = encode_watermark(GOLDEN_MARK).hex()
    assert written == GOLDEN_BYTES.hex(), "the format has changed"
    assert (GOLDEN / "MARK").read_bytes() == GOLDEN_BYTES
    assert watermark_of(GOLDEN) == GOLDEN_MARK, "a mark of old is misread"
    in_use = encode_watermark(Watermark(SYNCED, closed=False))
    assert in_use[32:36] == bytes(4), "a store in use is marked as closed"


@FIXED
@given(marks)
def test_what_was_encoded_comes_back(mark: Watermark) -> None:
    raw = encode_watermark(mark)
    assert len(raw) == WATERMARK_BYTES == 40
    assert decode_watermark(raw) == mark


def test_a_mark_with_any_one_bit_flipped_claims_nothing() -> None:
    for bit, damaged in flipped(GOLDEN_BYTES):
        assert decode_watermark(damaged) is None, f"bit {bit} flipped and not noticed"


def test_a_mark_of_any_other_length_claims_nothing() -> None:
    for length in range(WATERMARK_BYTES):
        assert decode_watermark(GOLDEN_BYTES[:length]) is None, f"cut to {length} bytes"
    assert decode_watermark(GOLDEN_BYTES + b"\0") is None


@pytest.mark.parametrize("length", [102, 103, 358, 1 << 20, 1 << 40])
def test_a_mark_that_was_written_in_part_claims_nothing_new(length: int) -> None:
    old = encode_watermark(GOLDEN_MARK)
    new = encode_watermark(Watermark(SYNCED._replace(length=length), closed=False))
    for cut in range(WATERMARK_BYTES + 1):
        for mixed in (new[:cut] + old[cut:], old[:cut] + new[cut:]):
            found = decode_watermark(mixed)
            assert found is None or mixed in (old, new), f"torn at {cut}, and believed"


def test_what_stands_behind_a_mark_does_not_count(tmp_path: Path) -> None:
    assert watermark_of(tmp_path) is None, "a store without a mark has none"
    (tmp_path / "MARK").write_bytes(GOLDEN_BYTES + b"more")
    assert watermark_of(tmp_path) == GOLDEN_MARK
    (tmp_path / "MARK").write_bytes(b"more" + GOLDEN_BYTES)
    assert watermark_of(tmp_path) is None


def test_a_disk_that_fails_is_not_a_missing_mark(tmp_path: Path) -> None:
    (tmp_path / "MARK").write_bytes(GOLDEN_BYTES)
    for operation in ("open", "read"):
        filesystem = FaultyFileSystem()
        filesystem.fail(operation, disk_broken())
        with pytest.raises(OSError, match="Input/output error"):
            watermark_of(tmp_path, filesystem)


def test_each_mark_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    first = WatermarkFile(DISK, folder(tmp_path))
    for length, closed in ((32, False), (4096, True), (33, False)):
        first.write(SYNCED._replace(length=length), closed=closed)
        expected = Watermark(SYNCED._replace(length=length), closed)
        assert watermark_of(tmp_path) == expected
    assert (tmp_path / "MARK").stat().st_size == WATERMARK_BYTES
    again = WatermarkFile(DISK, folder(tmp_path))
    assert watermark_of(tmp_path) == expected, "opening it changed the mark"
    again.write(SYNCED)
    assert watermark_of(tmp_path) == Watermark(SYNCED, closed=False)
