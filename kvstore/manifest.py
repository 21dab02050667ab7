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
             and all records behind it are to come
...    4     CRC-32 of everything before it
====== ===== ================================================================

LevelDB's MANIFEST is a log of changes, which suits a store of ten thousand files. Ours is
written whole at each change: a store of 64 GiB has a thousand segments, and a manifest of
20 KB.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from struct import Struct
from zlib import crc32

from kvstore.errors import CorruptionError, ForeignDirectoryError, NewerFormatError
from kvstore.filesystem import FileSystem
from kvstore.mark import MARK, MarkFile
from kvstore.record import CHECKSUM, MAX_SEQUENCE, RESIDUE
from kvstore.segment import (
    HEADER_BYTES,
    Description,
    Segment,
    segment_name,
    segment_numbers,
)

MANIFEST = "MANIFEST"
MANIFEST_ASIDE = "MANIFEST.new"
MANIFEST_MAGIC = b"KVMANI\r\n"
MANIFEST_VERSION = 1
MANIFEST_HEAD = Struct("<8sIQQI")
DESCRIPTION = Struct("<QIQ")
MAX_NEXT_NUMBER = 10**17  # names of segments have at most 18 digits


@dataclass(frozen=True)
class Manifest:
    """The segments that make up a store: the sealed ones, and the one being written."""

    next_number: int
    sequence: int
    sealed: tuple[Description, ...]
    active: Description

    def rotated(
        self, sealed: Description, active: Description, sequence: int
    ) -> Manifest:
        """Return the manifest after the active segment was sealed and a new one made."""
        return replace(
            self,
            next_number=max(self.next_number, active.number + 1),
            sequence=sequence,
            sealed=(*self.sealed, sealed),
            active=active,
        )

    def compacted(
        self, sources: Collection[int], results: Collection[Description]
    ) -> Manifest:
        """Return the manifest after some sealed segments were merged into new ones."""
        kept = tuple(
            segment for segment in self.sealed if segment.number not in sources
        )
        return replace(
            self,
            next_number=max([self.next_number, *(each.number + 1 for each in results)]),
            sealed=(*kept, *results),
        )

    def advanced(
        self, next_number: int, sequence: int, active: Description
    ) -> Manifest:
        """Return the manifest with both counters, and the log as far as it is safe."""
        next_number = max(self.next_number, next_number)
        return replace(self, next_number=next_number, sequence=sequence, active=active)

    def possible(self) -> bool:
        """Say whether every number is one that a store can have come to."""
        numbers = [each.number for each in (*self.sealed, self.active)]
        return (
            len(set(numbers)) == len(numbers)
            and max(numbers) < self.next_number <= MAX_NEXT_NUMBER
            and self.sequence <= MAX_SEQUENCE
        )

    def encode(self) -> bytes:
        """Return the file's bytes."""
        head = MANIFEST_HEAD.pack(
            MANIFEST_MAGIC,
            MANIFEST_VERSION,
            self.next_number,
            self.sequence,
            len(self.sealed),
        )
        body = head + b"".join(
            DESCRIPTION.pack(*each) for each in (*self.sealed, self.active)
        )
        return body + CHECKSUM.pack(crc32(body))


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
    if len(raw) < MANIFEST_HEAD.size + DESCRIPTION.size + CHECKSUM.size:
        raise CorruptionError(path, len(raw), "the file is too short for a manifest")
    _, version, next_number, sequence, count = MANIFEST_HEAD.unpack_from(raw)
    if version < 1 or crc32(raw) != RESIDUE:
        raise CorruptionError(path, 0, "the checksum does not match the manifest")
    if version > MANIFEST_VERSION:
        raise NewerFormatError(
            f"{path} has format {version}, this program knows up to {MANIFEST_VERSION}; "
            f"open it with a newer version of kvstore"
        )
    if len(raw) != MANIFEST_HEAD.size + DESCRIPTION.size * (count + 1) + CHECKSUM.size:
        raise CorruptionError(
            path, 28, f"{count} segments do not fit the file's length"
        )
    body = raw[MANIFEST_HEAD.size : -CHECKSUM.size]
    *sealed, active = map(Description._make, DESCRIPTION.iter_unpack(body))
    manifest = Manifest(next_number, sequence, tuple(sealed), active)
    if not manifest.possible():
        raise CorruptionError(path, 12, "no store has such numbers")
    return manifest


def read_manifest(filesystem: FileSystem, directory: str) -> Manifest:
    """Return the manifest of the store in `directory`.

    Raises `FileNotFoundError` if there is none, and what `decode_manifest` raises.
    """
    path = f"{directory}/{MANIFEST}"
    file = filesystem.open(path)
    return decode_manifest(filesystem.read(file, filesystem.size(file), 0), path)


def stage(filesystem: FileSystem, directory: str, manifest: Manifest) -> None:
    """Write the new manifest aside and make it durable. An error here changes nothing."""
    path = f"{directory}/{MANIFEST_ASIDE}"
    if filesystem.exists(path):
        filesystem.remove(path)
    file = filesystem.create(path)
    try:
        filesystem.write(file, manifest.encode(), 0)
        filesystem.sync(file)
    except OSError:
        filesystem.remove(path)
        raise


def commit(filesystem: FileSystem, directory: str) -> None:
    """Let the manifest that was staged take the place of the old one.

    If this raises an `OSError`, nobody knows which of the two is on the disk.
    """
    filesystem.rename(f"{directory}/{MANIFEST_ASIDE}", f"{directory}/{MANIFEST}")
    filesystem.sync_directory(directory)


LOCK = "LOCK"  # the file that the one writer holds locked


def find_store(filesystem: FileSystem, directory: str) -> bool:
    """Say whether there is a store at this path. If not, there is room for one.

    Raises `ForeignDirectoryError` for a directory of other files, `CorruptionError` for a
    store whose manifest is gone.
    """
    if not filesystem.exists(directory):
        return False
    try:
        names = [
            name for name in filesystem.names(directory) if not name.startswith(".")
        ]
    except NotADirectoryError:
        raise ForeignDirectoryError(
            f"{directory} is a file; a store is a directory"
        ) from None
    if MANIFEST in names or unfinished(filesystem, directory, names):
        return MANIFEST in names
    if filesystem.exists(f"{directory}/{MANIFEST}"):
        return True  # another process has made the store meanwhile
    if MARK in names or segment_numbers(names):
        raise CorruptionError(
            f"{directory}/{MANIFEST}",
            0,
            "the manifest is missing, and segments are there",
        )
    raise ForeignDirectoryError(
        f"{directory} holds other files ({names[0]}, for one) and is not a store; "
        f"choose an empty or a new directory"
    )


def unfinished(filesystem: FileSystem, directory: str, names: Collection[str]) -> bool:
    """Say whether these are at most the traces of a store whose making was interrupted."""
    first = segment_name(1)
    if not {LOCK, MANIFEST_ASIDE, first}.issuperset(names):
        return False
    if first not in names:
        return True
    try:
        file = filesystem.open(f"{directory}/{first}")
    except FileNotFoundError:  # another process begins the making anew
        return True
    return filesystem.size(file) <= HEADER_BYTES


def begin(filesystem: FileSystem, directory: str, previous: Manifest | None) -> None:
    """Make an empty store in a directory, in place of the one there, if there is one.

    The new manifest is the moment at which it happens. Before it, nothing is changed.
    """
    number = 1 if previous is None else previous.next_number
    names = filesystem.names(directory)
    if MANIFEST in names:
        number = max(number, *(taken + 1 for taken in segment_numbers(names)), 1)
    elif segment_name(1) in names:
        filesystem.remove(f"{directory}/{segment_name(1)}")
    first = Segment.create(filesystem, directory, number)
    sequence = previous.sequence if previous else 0
    fresh = Manifest(number + 1, sequence, (), first.describe())
    stage(filesystem, directory, fresh)
    commit(filesystem, directory)
    MarkFile(filesystem, directory).write(first.describe(), closed=True)


def leftovers(filesystem: FileSystem, directory: str, manifest: Manifest) -> list[str]:
    """Return the paths of segments that an interrupted change left behind."""
    counted = {segment.number for segment in (*manifest.sealed, manifest.active)}
    found = segment_numbers(filesystem.names(directory))
    return [f"{directory}/{segment_name(n)}" for n in found if n not in counted]
