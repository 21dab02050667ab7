"""Which segments make up the store: one small file, changed in one step.

Files come and go: a segment is full and a new one begins, a compaction writes new ones in
place of old ones. At every moment exactly one list of files is the store. The list is
written aside, made durable, and renamed over the old one; a rename is the one change
that a POSIX file system makes wholly or not at all.

====== ===== ================================================================
offset bytes field
====== ===== ================================================================
0      8     magic, ``KVMANI`` and a line break (CR, LF)
8      4     version of the format, 1
12     8     the next number for a segment; no number is ever used twice
20     8     a sequence number that every record to come exceeds
28     4     how many sealed segments follow
32     20 n  each: number (8), seed (4), length in bytes (8)
...    20    the segment that takes new records: up to this length it is on the disk,
             and all records after it are to come
...    4     CRC-32 of everything before it
====== ===== ================================================================

LevelDB's MANIFEST is a log of changes, which suits a store of ten thousand files. Ours is
written whole at each change: a store of 64 GiB has a thousand segments, and a manifest of
20 KB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvstore.errors import CorruptionError, ForeignDirectoryError, NewerFormatError
from kvstore.filesystem import Directory, FileSystem
from kvstore.record import CHECKSUM, MAX_SEQUENCE, RESIDUE
from kvstore.segment import SegmentMeta

MANIFEST = "MANIFEST"
MANIFEST_ASIDE = "MANIFEST.new"
MANIFEST_MAGIC = b"KVMANI\r\n"
MANIFEST_VERSION = 1
MANIFEST_HEAD = Struct("<8sIQQI")
MANIFEST_ROW = Struct("<QIQ")
MAX_NEXT_NUMBER = 10**17  # names of segments have at most 17 digits


class Manifest(NamedTuple):
    """The segments that make up a store: the sealed ones, and the one being written.

    `rows` are the sealed ones as they stand in the file: a rotation adds one, and with ten
    thousand it should not touch all the others.
    """

    next_number: int
    sequence: int
    rows: bytes
    active: SegmentMeta

    @property
    def sealed(self) -> tuple[SegmentMeta, ...]:
        """Return the segments that take no more records, in the order of the file."""
        return tuple(map(SegmentMeta._make, MANIFEST_ROW.iter_unpack(self.rows)))

    def rotated(
        self, sealed: SegmentMeta, active: SegmentMeta, sequence: int
    ) -> Manifest:
        """Return the manifest after the active segment was sealed and a new one made."""
        next_number = max(self.next_number, active.number + 1)
        rows = self.rows + MANIFEST_ROW.pack(*sealed)
        return Manifest(next_number, sequence, rows, active)

    def compacted(
        self, sources: Collection[int], results: Collection[SegmentMeta]
    ) -> Manifest:
        """Return the manifest after some sealed segments were merged into new ones."""
        kept = [segment for segment in self.sealed if segment.number not in sources]
        next_number = max([self.next_number, *(each.number + 1 for each in results)])
        rows = rows_of((*kept, *results))
        return Manifest(next_number, self.sequence, rows, self.active)

    def advanced(
        self, sequence: int, active: SegmentMeta, next_number: int = 0
    ) -> Manifest:
        """Return the manifest with the log as far as it is safe, and perhaps more numbers."""
        next_number = max(self.next_number, next_number)
        return Manifest(next_number, sequence, self.rows, active)

    def possible(self) -> bool:
        """Say whether every number is one that a store can have come to."""
        numbers = [each.number for each in (*self.sealed, self.active)]
        return (
            len(set(numbers)) == len(numbers)
            and max(numbers) < self.next_number <= MAX_NEXT_NUMBER
            and self.sequence <= MAX_SEQUENCE
        )

    @property
    def size(self) -> int:
        """Return how many bytes the file has."""
        return MANIFEST_HEAD.size + len(self.rows) + MANIFEST_ROW.size + CHECKSUM.size

    def encode(self) -> bytes:
        """Return the file's bytes."""
        head = MANIFEST_HEAD.pack(
            MANIFEST_MAGIC,
            MANIFEST_VERSION,
            self.next_number,
            self.sequence,
            len(self.rows) // MANIFEST_ROW.size,
        )
        body = head + self.rows + MANIFEST_ROW.pack(*self.active)
        return body + CHECKSUM.pack(crc32(body))


def rows_of(sealed: Iterable[SegmentMeta]) -> bytes:
    """Return what the manifest says of sealed segments."""
    return b"".join(MANIFEST_ROW.pack(*each) for each in sealed)


def decode_manifest(raw: bytes, path: str) -> Manifest:
    """Return the manifest in the bytes of the file at `path`.

    Raises `ForeignDirectoryError` if this is no manifest at all, `NewerFormatError` for a
    version that this module does not know, and `CorruptionError` for damage, and for
    numbers that no store can have.
    """
    if raw[: len(MANIFEST_MAGIC)] != MANIFEST_MAGIC:
        raise ForeignDirectoryError(
            f"{path} is not the manifest of a store; choose another directory (or, if it "
            f"was one and is damaged, use kvstore.salvage)"
        )
    if len(raw) < MANIFEST_HEAD.size + MANIFEST_ROW.size + CHECKSUM.size:
        raise CorruptionError(path, len(raw), "the file is too short for a manifest")
    _, version, next_number, sequence, count = MANIFEST_HEAD.unpack_from(raw)
    if version < 1 or crc32(raw) != RESIDUE:
        raise CorruptionError(path, 0, "the checksum does not match the manifest")
    if version > MANIFEST_VERSION:
        raise NewerFormatError(
            f"{path} has format {version}, this program knows up to {MANIFEST_VERSION}; "
            f"open it with a newer version of kvstore"
        )
    if len(raw) != MANIFEST_HEAD.size + MANIFEST_ROW.size * (count + 1) + CHECKSUM.size:
        raise CorruptionError(
            path, 28, f"{count} segments do not fit the file's length"
        )
    end = MANIFEST_HEAD.size + MANIFEST_ROW.size * count
    rows = raw[MANIFEST_HEAD.size : end]
    active = SegmentMeta._make(MANIFEST_ROW.unpack_from(raw, end))
    manifest = Manifest(next_number, sequence, rows, active)
    if not manifest.possible():
        raise CorruptionError(path, 12, "no store has such numbers")
    return manifest


def read_manifest(filesystem: FileSystem, directory: Directory) -> Manifest:
    """Return the manifest of the store in `directory`.

    Raises `FileNotFoundError` if there is none, and what `decode_manifest` raises.
    """
    file = directory.open(MANIFEST)
    raw = filesystem.read(file, filesystem.size(file), 0)
    return decode_manifest(raw, f"{directory.path}/{MANIFEST}")


def write_manifest_aside(
    filesystem: FileSystem, directory: Directory, manifest: Manifest
) -> None:
    """Write the new manifest beside the old one, and make it durable.

    An error here changes nothing.
    """
    if directory.exists(MANIFEST_ASIDE):
        directory.remove(MANIFEST_ASIDE)
    file = directory.create(MANIFEST_ASIDE)
    try:
        filesystem.write(file, manifest.encode(), 0)
        filesystem.sync(file)
    except OSError as error:
        error.filename = f"{directory.path}/{MANIFEST_ASIDE}"
        directory.remove(MANIFEST_ASIDE)
        raise


def install_manifest(directory: Directory) -> None:
    """Let the manifest that was written aside take the place of the old one.

    If this raises, nobody knows which of the two is on the disk.
    """
    directory.rename(MANIFEST_ASIDE, MANIFEST)
    directory.sync()
