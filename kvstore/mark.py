"""How far the log is known to be on the disk: 40 bytes beside the segments.

A bad record at the end of a log can mean two things. The machine lost power while the
record was on its way, and nobody was ever told that it is safe: a torn tail. Or the
record was safe and has been damaged since. The bytes look the same. So after every fsync
that succeeded we note how far it reached, and whatever goes bad below this mark is
damage.

The mark is written without an fsync of its own. After a crash it may be an older one, or
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

from kvstore.filesystem import FileSystem
from kvstore.record import CHECKSUM, RESIDUE
from kvstore.segment import Description

MARK = "MARK"
MARK_MAGIC = b"KVMARK\r\n"
MARK_VERSION = 1
MARK_BODY = Struct("<8sIQIQI")
MARK_BYTES = MARK_BODY.size + CHECKSUM.size


class Mark(NamedTuple):
    """What is known to be on the disk, and whether the store was closed with that."""

    synced: Description
    closed: bool


def encode_mark(mark: Mark) -> bytes:
    """Return the 40 bytes that say: this much of this segment is on the disk."""
    body = MARK_BODY.pack(MARK_MAGIC, MARK_VERSION, *mark.synced, mark.closed)
    return body + CHECKSUM.pack(crc32(body))


def decode_mark(raw: bytes) -> Mark | None:
    """Return what the mark says, or None if it can't be trusted."""
    if len(raw) != MARK_BYTES or crc32(raw) != RESIDUE:
        return None
    magic, version, *synced, closed = MARK_BODY.unpack_from(raw)
    if magic != MARK_MAGIC or version != MARK_VERSION or closed > 1:
        return None
    return Mark(Description(*synced), bool(closed))


def read_mark(filesystem: FileSystem, directory: str) -> Mark | None:
    """Return the mark of a store, or None if there is none that can be trusted."""
    try:
        file = filesystem.open(f"{directory}/{MARK}")
    except FileNotFoundError:
        return None
    return decode_mark(filesystem.read(file, MARK_BYTES, 0))


class MarkFile:
    """The mark of a store that is open for writing."""

    def __init__(self, filesystem: FileSystem, directory: str) -> None:
        path = f"{directory}/{MARK}"
        self._filesystem = filesystem
        if filesystem.exists(path):
            self._file = filesystem.open(path, writable=True)
        else:
            self._file = filesystem.create(path)

    def write(self, synced: Description, *, closed: bool = False) -> None:
        """Note how far an fsync reached that has returned."""
        self._filesystem.write(self._file, encode_mark(Mark(synced, closed)), 0)

    def sync(self) -> None:
        """Make the mark itself durable, when a writer begins and when it closes."""
        self._filesystem.sync(self._file)
