"""One record: the bytes it becomes, and every way in which bytes are not a record."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore.record import (
    CONTINUED,
    DELETE,
    MAX_KEY_BYTES,
    MAX_SEQUENCE,
    MAX_VALUE_BYTES,
    OVERHEAD_BYTES,
    PUT,
    RECORD_HEAD,
    RESIDUE,
    Record,
    check,
    decode,
    encode,
    parse_head,
)
from tests.helpers import FIXED, flipped

SEED = 0x0BADCAFE

# What these records have to look like for ever, field by field.
GOLDEN_BYTES = {
    Record(PUT, 1, b"ada", b"1815"): (
        "01 01000000000000 00 0300 04000000 616461 31383135 9a6689c0"
    ),
    Record(DELETE, 2, b"ada", b""): "02 0200000000000000 0300 00000000 616461 9d35fbca",
    Record(PUT | CONTINUED, 0x00FEDCBA98765432, b"", b""): (
        "81 32547698badcfe00 0000 00000000 92347e1a"
    ),
    Record(DELETE | CONTINUED, MAX_SEQUENCE, b"\xff\x00", b""): (
        "82 ffffffffffffff00 0200 00000000 ff00 070a27c4"
    ),
}
SAMPLES = sorted(GOLDEN_BYTES)

records = st.builds(
    Record,
    st.sampled_from([PUT, DELETE, PUT | CONTINUED, DELETE | CONTINUED]),
    st.integers(0, MAX_SEQUENCE),
    st.binary(max_size=300),
    st.binary(max_size=300),
)
seeds = st.integers(0, 0xFFFFFFFF)


@pytest.mark.parametrize("record", SAMPLES, ids=repr)
def test_a_record_becomes_the_bytes_that_it_always_became(record: Record) -> None:
    golden = bytes.fromhex(GOLDEN_BYTES[record])
    assert encode(*record, SEED).hex() == golden.hex(), "the format has changed"
    assert decode(golden, SEED) == record, "a record of an older program is misread"


@FIXED
@given(records, seeds)
def test_what_was_encoded_comes_back(record: Record, seed: int) -> None:
    raw = encode(*record, seed)
    assert len(raw) == OVERHEAD_BYTES + len(record.key) + len(record.value)
    assert decode(raw, seed) == record, "a record came back as another one"


def test_the_longest_key_comes_back() -> None:
    record = Record(PUT, 7, bytes(range(256)) * 255 + bytes(255), b"value")
    assert len(record.key) == MAX_KEY_BYTES
    assert decode(encode(*record, SEED), SEED) == record


@FIXED
@given(st.binary(max_size=300), seeds)
def test_bytes_and_their_checksum_leave_one_residue(data: bytes, seed: int) -> None:
    sealed = data + crc32(data, seed).to_bytes(4, "little")
    assert crc32(sealed, seed) == RESIDUE, "one call can't check a record any more"


@pytest.mark.parametrize("record", SAMPLES, ids=repr)
def test_a_record_with_any_one_bit_flipped_or_of_any_other_length_is_rejected(
    record: Record,
) -> None:
    raw = encode(*record, SEED)
    cut = [(f"cut to {length} bytes", raw[:length]) for length in range(len(raw))]
    more = [(f"{count} bytes more", raw + bytes(count)) for count in range(1, 40)]
    for what, damaged in (*flipped(raw), *cut, *more):
        with pytest.raises(kvstore.BadRecordError):
            pytest.fail(f"{what}: {decode(damaged, SEED)}")


@FIXED
@given(records, seeds, seeds)
def test_a_record_is_none_under_another_seed(
    record: Record, seed: int, other: int
) -> None:
    raw = encode(*record, seed)
    if seed == other:
        assert decode(raw, other) == record
    else:
        with pytest.raises(kvstore.BadRecordError, match="checksum"):
            pytest.fail(f"the seed is not bound in: {decode(raw, other)}")


def head(
    kind: int = PUT, sequence: int = 1, key_bytes: int = 0, value_bytes: int = 0
) -> bytes:
    return RECORD_HEAD.pack(kind, sequence, key_bytes, value_bytes) + bytes(4)


def test_the_kinds_of_the_format_are_read_and_every_other_is_rejected() -> None:
    for kind in range(256):
        if kind in (1, 2, 129, 130):
            assert parse_head(head(kind), 0, OVERHEAD_BYTES).kind == kind
        else:
            with pytest.raises(kvstore.BadRecordError, match=f"^{kind} is not a kind"):
                parse_head(head(kind), 0, OVERHEAD_BYTES)


def test_fewer_bytes_than_the_shortest_record_are_none() -> None:
    for available in range(OVERHEAD_BYTES):
        with pytest.raises(kvstore.BadRecordError, match="too few"):
            parse_head(head() * 2, 0, available)


@pytest.mark.parametrize(("key_bytes", "value_bytes"), [(0, 1), (1, 0), (65_535, 0)])
def test_a_head_is_believed_about_what_is_there(
    key_bytes: int, value_bytes: int
) -> None:
    raw = head(key_bytes=key_bytes, value_bytes=value_bytes)
    length = OVERHEAD_BYTES + key_bytes + value_bytes
    assert parse_head(raw, 0, length).length == length
    with pytest.raises(kvstore.BadRecordError, match="claims"):
        parse_head(raw, 0, length - 1)


def test_a_head_is_read_where_it_stands() -> None:
    raw = b"abc" + head(DELETE, 5, 2, 3)
    assert parse_head(raw, 3, 1000) == (DELETE, 5, 2, 3)


def test_numbers_beyond_the_limits_are_rejected() -> None:
    plenty = 1 << 40
    assert parse_head(head(sequence=MAX_SEQUENCE), 0, plenty).sequence == MAX_SEQUENCE
    assert parse_head(head(value_bytes=MAX_VALUE_BYTES), 0, plenty)
    for raw in (
        head(sequence=MAX_SEQUENCE + 1),
        head(value_bytes=MAX_VALUE_BYTES + 1),
        head(value_bytes=0xFFFFFFFF),
    ):
        with pytest.raises(kvstore.BadRecordError, match="limits"):
            parse_head(raw, 0, plenty)


def test_the_limits_are_those_that_are_promised() -> None:
    check(b"", b"")
    check(bytes(65_535), bytes(1 << 30))
    with pytest.raises(kvstore.LimitError, match="65,536 bytes"):
        check(bytes(65_536), b"")
    with pytest.raises(kvstore.LimitError, match="1,073,741,825 bytes"):
        check(b"", bytes((1 << 30) + 1))
