"""How far the log is known to be on the disk: 40 bytes beside the segments.

A bad record at the end of a log can mean two things. The machine lost power while the
record was on its way, and nobody was ever told that it is safe: a torn tail. Or the
record was safe and has been damaged since. The bytes look the same. So after every fsync
that succeeded we note how far it reached, and whatever goes bad below this watermark
is damage.

The watermark is written without an fsync of its own. After a crash it may be an older one, or
unreadable; then it claims too little, never too much.

====== ===== ================================================================
offset bytes field
====== ===== ================================================================
0      8     magic, ``KVMARK`` and a line break (CR, LF)
8      4     version of the format, 1
12     8     number of the segment that is being written
20     4     the segment's seed
24     8     its length in bytes that is known to be on the disk
32     4     1 if the store was closed then, 0 if it was in use
36     4     CRC-32 of the 36 bytes before it
====== ===== ================================================================

The idea of remembering how far a log was synced is old; LevelDB and Bitcask go without,
and have to guess.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvstore.filesystem import Directory, FileSystem
from kvstore.record import CHECKSUM, RESIDUE
from kvstore.segment import SegmentMeta

WATERMARK = "MARK"  # the name of the file
WATERMARK_MAGIC = b"KVMARK\r\n"
WATERMARK_VERSION = 1
WATERMARK_BODY = Struct("<8sIQIQI")
WATERMARK_BYTES = WATERMARK_BODY.size + CHECKSUM.size


class Watermark(NamedTuple):
    """What is known to be on the disk, and whether the store was closed with that."""

    synced: SegmentMeta
    closed: bool


def encode_watermark(watermark: Watermark) -> bytes:
    """Return the 40 bytes that say: this much of this segment is on the disk."""
    body = WATERMARK_BODY.pack(
        WATERMARK_MAGIC, WATERMARK_VERSION, *watermark.synced, watermark.closed
    )
    return body + CHECKSUM.pack(crc32(body))


def decode_watermark(raw: bytes) -> Watermark | None:
    """Return what the watermark says, or None if it can't be trusted."""
    if len(raw) != WATERMARK_BYTES or crc32(raw) != RESIDUE:
        return None
    magic, version, *synced, closed = WATERMARK_BODY.unpack_from(raw)
    if magic != WATERMARK_MAGIC or version != WATERMARK_VERSION or closed > 1:
        return None
    return Watermark(SegmentMeta(*synced), bool(closed))


def read_watermark(filesystem: FileSystem, directory: Directory) -> Watermark | None:
    """Return the watermark of a store, or None if there is none that can be trusted."""
    try:
        file = directory.open(WATERMARK)
    except FileNotFoundError:
        return None
    return decode_watermark(filesystem.read(file, WATERMARK_BYTES, 0))


class WatermarkFile:
    """The watermark of a store that is open for writing."""

    def __init__(self, filesystem: FileSystem, directory: Directory) -> None:
        self._filesystem = filesystem
        if directory.exists(WATERMARK):
            self._file = directory.open(WATERMARK, writable=True)
        else:
            self._file = directory.create(WATERMARK)

    def write(self, synced: SegmentMeta, *, closed: bool = False) -> None:
        """Note how far an fsync reached that has returned."""
        raw = encode_watermark(Watermark(synced, closed))
        self._filesystem.write(self._file, raw, 0)

    def sync(self) -> None:
        """Make the watermark itself durable, when a writer begins and when it closes."""
        self._filesystem.sync(self._file)
