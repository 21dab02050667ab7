"""Bytes to one record and back, checksum and all.

A record says that one key was put or deleted. Whatever the store logs, it logs in this
one layout (all numbers little-endian):

====== =========== ==========================================================
offset bytes       field
====== =========== ==========================================================
0      1           kind: 1 put, 2 delete; plus 128 when its batch goes on
1      8           sequence number, below 2**56, rising with every record
9      2           key length K
11     4           value length V
15     K           key
15+K   V           value
15+K+V 4           CRC-32 of everything before it, started from the file's seed
====== =========== ==========================================================

The layout follows Bitcask (Sheehy and Smith, 2010), with two changes: a kind instead of
a reserved value that means "deleted", and a checksum at the end instead of the front.
It leaves out compression, column families and time stamps, and it holds key and value
side by side, so reading a key alone from the disk means stepping over its value.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvstore.errors import BadRecordError, LimitError

PUT = 1
DELETE = 2
CONTINUED = 128  # added to the kind of every record of a batch but the last

RECORD_HEAD = Struct("<BQHI")  # kind, sequence number, key length, value length
CHECKSUM = Struct("<I")
OVERHEAD_BYTES = RECORD_HEAD.size + CHECKSUM.size

MAX_KEY_BYTES = 65_535  # what two bytes of length can say
MAX_VALUE_BYTES = 1 << 30  # 1 GiB: far below what four bytes can say
MAX_SEQUENCE = (1 << 56) - 1  # a million records a second for two thousand years


def check(key: bytes, value: bytes) -> None:
    """Raise before anything is written if a record can't hold this key and value.

    `TypeError` for anything but bytes, `LimitError` for more than 65,535 bytes of key
    or 1 GiB of value.
    """
    if type(key) is not bytes:
        raise wrong_type("key", key)
    if type(value) is not bytes:
        raise wrong_type("value", value)
    if len(key) > MAX_KEY_BYTES:
        raise LimitError(
            f"the key has {len(key):,} bytes, at most {MAX_KEY_BYTES:,} are possible"
        )
    if len(value) > MAX_VALUE_BYTES:
        raise LimitError(
            f"the value has {len(value):,} bytes, at most {MAX_VALUE_BYTES:,} are "
            f"possible; store it in pieces under several keys"
        )


def wrong_type(what: str, got: object) -> TypeError:
    """Return the error for a key or value that is not bytes."""
    advice = "encode it first: text.encode()" if isinstance(got, str) else "use bytes()"
    return TypeError(f"a {what} must be bytes, not {type(got).__name__}; {advice}")


def encode(kind: int, sequence: int, key: bytes, value: bytes, seed: int) -> bytes:
    """Return the record as bytes, sealed with a checksum that starts from `seed`."""
    front = RECORD_HEAD.pack(kind, sequence, len(key), len(value)) + key
    checksum = crc32(value, crc32(front, seed))
    return b"".join((front, value, CHECKSUM.pack(checksum)))


# The CRC-32 of any bytes followed by their own CRC-32 (little-endian) is this one
# number, whatever the bytes were and whatever seed the checksum started from.
RESIDUE = 0x2144DF1C


class Head(NamedTuple):
    """The fixed part of a record, before its key and value."""

    kind: int
    sequence: int
    key_bytes: int
    value_bytes: int

    @property
    def length(self) -> int:
        """Return the length of the whole record in bytes."""
        return OVERHEAD_BYTES + self.key_bytes + self.value_bytes


KINDS = frozenset({PUT, DELETE, PUT | CONTINUED, DELETE | CONTINUED})


def parse_head(buffer: bytes, offset: int, available: int) -> Head:
    """Read the head at `offset`, believing nothing that it says about itself.

    `available` is how many bytes there are from `offset` to the end of the file: no
    length that points beyond it is ever used to read or to allocate. Raises
    `BadRecordError` if no record of these lengths can stand here.
    """
    if available < OVERHEAD_BYTES:
        raise BadRecordError(
            f"{available} bytes are too few for a record, which has {OVERHEAD_BYTES} or more"
        )
    head = Head._make(RECORD_HEAD.unpack_from(buffer, offset))
    if head.kind not in KINDS:
        raise BadRecordError(f"{head.kind} is not a kind of record")
    if head.length > available:
        raise BadRecordError(
            f"the record claims {head.length:,} bytes, and {available:,} are left"
        )
    if head.sequence > MAX_SEQUENCE or head.value_bytes > MAX_VALUE_BYTES:
        raise BadRecordError(
            "the record claims a number beyond the limits of the format"
        )
    return head


class Record(NamedTuple):
    """One record, decoded."""

    kind: int
    sequence: int
    key: bytes
    value: bytes


def decode(raw: bytes, seed: int) -> Record:
    """Return the record whose bytes are exactly `raw`, or raise `BadRecordError`."""
    head = parse_head(raw, 0, len(raw))
    if head.length != len(raw):
        raise BadRecordError(
            f"the record has {head.length} bytes, {len(raw)} were given"
        )
    if crc32(raw, seed) != RESIDUE:
        raise BadRecordError("the checksum does not match the bytes")
    key_end = RECORD_HEAD.size + head.key_bytes
    key, value = raw[RECORD_HEAD.size : key_end], raw[key_end : -CHECKSUM.size]
    return Record(head.kind, head.sequence, key, value)
