"""One file of records: append, read at a place, scan, and no change ever after.

A segment begins with a header of 32 bytes (all numbers little-endian):

====== ===== ==============================================================
offset bytes field
====== ===== ==============================================================
0      8     magic, ``KVSEGM`` and a line break (CR, LF)
8      4     version of the format, 1
12     8     number of the segment
20     8     random bytes, so that no two segments are alike
28     4     CRC-32 of the 28 bytes before it
====== ===== ==============================================================

and goes on with records, one after the other, their sequence numbers rising. The
header's checksum is also the seed of every record's checksum. So an old record that
comes to light after a torn write, because the file system gave this file a block of
another, does not pass for one of ours. (RocksDB puts the number of the log into each
record for this reason, where it uses old log files again.)

It follows the segments of Bitcask (Sheehy and Smith, 2010) and of log-structured file
systems (Rosenblum and Ousterhout, 1992). It leaves out blocks of fixed size, which let
LevelDB's log skip over damage and start again at the next block; we pay with a slower
search when a damaged file has to be salvaged.

The segment that takes records keeps its file open. A sealed one is opened when somebody
reads from it, and let go again when too many are open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvstore.errors import (
    BadRecordError,
    CorruptionError,
    NewerFormatError,
)
from kvstore.filesystem import Bytes, Directory, File, FileSystem
from kvstore.record import (
    CHECKSUM,
    CONTINUED,
    DELETE,
    MAX_KEY_BYTES,
    RECORD_HEAD,
    RESIDUE,
    parse_head,
)

SEGMENT_MAGIC = b"KVSEGM\r\n"
SEGMENT_VERSION = 1
SEGMENT_HEADER = Struct("<8sIQ8s")
SEGMENT_HEADER_BYTES = SEGMENT_HEADER.size + CHECKSUM.size

SEGMENT_NAME = re.compile(r"(\d{8}|[1-9]\d{8,16})\.segment", re.ASCII)


def segment_name(number: int) -> str:
    """Return the file name of a segment: eight digits, and more from 100,000,000 on."""
    return f"{number:08d}.segment"


def segment_numbers(names: Iterable[str]) -> list[int]:
    """Return the numbers of the segments among some file names, rising."""
    matches = [SEGMENT_NAME.fullmatch(name) for name in names]
    return sorted(int(match[1]) for match in matches if match)


class SegmentMeta(NamedTuple):
    """What a finished segment looks like from outside, to tell whether this is the one."""

    number: int
    seed: int
    length: int


class Entry(NamedTuple):
    """One record that a scan came past: all but its value."""

    kind: int
    sequence: int
    key: bytes
    offset: int
    length: int

    @property
    def continued(self) -> bool:
        """Say whether the batch of this record goes on after it."""
        return bool(self.kind & CONTINUED)

    @property
    def deletes(self) -> bool:
        """Say whether this record is a tombstone."""
        return self.kind & ~CONTINUED == DELETE


MAP_STEP = 1 << 20  # how many bytes may follow the mapped part before it is mapped anew
WINDOW_BYTES = 1 << 20  # how much of a file a scan holds in memory at a time
LONGEST_START = RECORD_HEAD.size + MAX_KEY_BYTES  # a record without its value


class Segment:
    """A segment, numbered and seeded, `size` bytes long."""

    __slots__ = (
        "__weakref__",
        "_directory",
        "_file",
        "_filesystem",
        "_is_sealed",
        "_map",
        "_pwrite",
        "name",
        "number",
        "path",
        "seed",
        "size",
    )

    def __init__(
        self,
        filesystem: FileSystem,
        directory: Directory,
        meta: SegmentMeta,
        file: File | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._pwrite = filesystem.pwrite
        self.number, self.seed, self.size = meta
        self.name = segment_name(self.number)
        self.path = f"{directory.path}/{self.name}"
        self._file = file  # held while records are added, or when the name may go
        self._map: Bytes = b""
        self._is_sealed = file is None

    @classmethod
    def create(
        cls, filesystem: FileSystem, directory: Directory, number: int
    ) -> Segment:
        """Make a new segment with nothing but a header, and make file and name durable."""
        name = segment_name(number)
        header = SEGMENT_HEADER.pack(
            SEGMENT_MAGIC, SEGMENT_VERSION, number, filesystem.random_bytes(8)
        )
        seed = crc32(header)
        file = directory.create(name)
        try:
            filesystem.write(file, header + CHECKSUM.pack(seed), 0)
            filesystem.sync(file)
            directory.sync()
        except BaseException as error:
            if isinstance(error, OSError):
                error.filename = f"{directory.path}/{name}"
            directory.remove(name)
            raise
        meta = SegmentMeta(number, seed, SEGMENT_HEADER_BYTES)
        return cls(filesystem, directory, meta, file)

    @classmethod
    def open(
        cls,
        filesystem: FileSystem,
        directory: Directory,
        number: int,
        *,
        writable: bool = False,
        sealed: bool = False,
        hold: bool = False,
    ) -> Segment:
        """Open a segment that exists, after a look at its header only.

        The file of a sealed one is opened again when it is read, unless it is held: a
        writer in another process may take its name away.
        """
        name = segment_name(number)
        file = directory.open(name, writable=writable)
        header = filesystem.read(file, SEGMENT_HEADER_BYTES, 0)
        seed = check_header(f"{directory.path}/{name}", header, number)
        meta = SegmentMeta(number, seed, filesystem.size(file))
        segment = cls(filesystem, directory, meta, file)
        segment._is_sealed = sealed
        if not sealed:
            segment._grow_map(file)
        elif not hold:
            segment._file = None
        return segment

    def append(self, raw: bytes) -> int:
        """Write `raw` after the last record, and return its offset.

        The bytes are in the kernel when this returns, and outlive the process. They count
        when the caller sets `size`; if this raises, or if that is not done, `cut` has to
        come before the next append.
        """
        offset = self.size
        assert self._file is not None
        written = self._pwrite(self._file.descriptor, raw, offset)
        if written < len(raw):
            self._filesystem.write(self._file, raw[written:], offset + written)
        return offset

    def value(self, offset: int, length: int, key: bytes) -> bytes:
        """Return the value of the record at `offset`, `length` bytes long, of this key.

        Checks the checksum and the key at every read. Raises `CorruptionError`.
        """
        raw = self._map[offset : offset + length]
        if len(raw) != length:
            raw = self._read_unmapped(offset, length)
        if crc32(raw, self.seed) != RESIDUE:
            raise self._damage(offset, "the checksum does not match the record")
        key_end = RECORD_HEAD.size + len(key)
        key_bytes = RECORD_HEAD.unpack_from(raw)[2]
        if key_bytes != len(key) or raw[RECORD_HEAD.size : key_end] != key:
            raise self._damage(offset, "a record of another key stands here")
        return raw[key_end : -CHECKSUM.size]

    def _read_unmapped(self, offset: int, length: int) -> bytes:
        """Read a record that the map does not cover yet, and let the map grow in steps."""
        file = self._opened()
        if self._is_sealed or self.size - len(self._map) >= MAP_STEP:
            self._grow_map(file)
        return self._read(file, offset, length)

    def _grow_map(self, file: File) -> None:
        """Map what there is of the file, if that can be done: reading works without."""
        with suppress(OSError, ValueError):  # ValueError: the file is empty by now
            self._map = self._filesystem.map(file, self.size)
            if self._is_sealed:
                self._filesystem.budget.note(self)

    def map_all(self) -> None:
        """Map all there is, for somebody who reads much of it: no system call a record."""
        self._grow_map(self._opened())

    def _opened(self) -> File:
        """Return the file, opened for the moment if nobody holds it."""
        try:
            return self._file or self._directory.open(self.name)
        except FileNotFoundError:
            why = self._directory.why_missing
            if why is not None:
                raise type(why)(*why.args) from None
            raise self._damage(0, MISSING) from None

    def let_go(self) -> None:
        """Drop the map of a sealed segment. Somebody who is reading keeps it so long."""
        self._map = b""

    def hold(self) -> None:
        """Keep the file open, so that it can be read when its name is gone."""
        self._file = self._opened()

    def close(self) -> None:
        """Drop the file and the map."""
        self._file, self._map = None, b""

    def _read(self, file: File, offset: int, length: int) -> bytes:
        data = self._filesystem.read(file, length, offset)
        if len(data) != length:
            raise self._too_short(offset + len(data))
        return data

    def _too_short(self, end: int) -> CorruptionError:
        return self._damage(
            end, f"the file ends here, and {self.size} bytes were expected"
        )

    def _damage(self, offset: int, reason: str) -> CorruptionError:
        return CorruptionError(self.path, offset, reason)

    def scan(self, start: int = SEGMENT_HEADER_BYTES) -> Iterator[Entry]:
        """Yield every record from `start` to the end, each one checked.

        Raises `CorruptionError` at the first bytes that are not a whole record, or a
        record whose sequence number does not rise. Reads the file, not the map: a disk
        that fails raises an `OSError` here. Holds 1 MiB at a time, however large the
        values are, and no descriptor from one record to the next.
        """
        size = self.size  # as it is now: others may append meanwhile
        end = min(size, self._filesystem.size(self._opened()))
        offset, newest = start, -1
        window, window_start = b"", start
        while offset < end:
            window_end = window_start + len(window)
            if window_end < min(offset + LONGEST_START, end):
                wanted = min(WINDOW_BYTES, end - offset)
                window = self._filesystem.read(self._opened(), wanted, offset)
                window_start = offset
                if len(window) < wanted:  # a writer has cut a torn tail off meanwhile
                    end = offset + len(window)
                    continue
            entry = self._entry(window, offset - window_start, offset, end)
            if entry.sequence <= newest:
                raise self._damage(offset, "the sequence number does not rise")
            yield entry
            offset, newest = offset + entry.length, entry.sequence
        if end < size:
            raise self._too_short(end)

    def _entry(self, window: bytes, place: int, offset: int, end: int) -> Entry:
        """Check the record at `place` in the window, which is `offset` in the file."""
        try:
            head = parse_head(window, place, end - offset)
        except BadRecordError as error:
            raise self._damage(offset, str(error)) from None
        if self._checksum(window, place, offset, head.length) != RESIDUE:
            raise self._damage(offset, "the checksum does not match the record")
        key_start = place + RECORD_HEAD.size
        key = window[key_start : key_start + head.key_bytes]
        return Entry(head.kind, head.sequence, key, offset, head.length)

    def _checksum(self, window: bytes, place: int, offset: int, length: int) -> int:
        """Return the CRC-32 of a record, read piece by piece if the window is too short."""
        checksum = crc32(memoryview(window)[place : place + length], self.seed)
        done = min(length, len(window) - place)
        while done < length:
            wanted = min(WINDOW_BYTES, length - done)
            piece = self._read(self._opened(), offset + done, wanted)
            checksum = crc32(piece, checksum)
            done += len(piece)
        return checksum

    def check_header(self) -> None:
        """Read the header again, and raise if it is not what it was."""
        header = self._filesystem.read(self._opened(), SEGMENT_HEADER_BYTES, 0)
        check_header(self.path, header, self.number)

    def excess_bytes(self) -> int:
        """Return how many bytes the file has after the last record; 0 is right."""
        return self._filesystem.size(self._opened()) - self.size

    def is_whole_at(self, offset: int, length: int) -> bool:
        """Say whether these bytes pass for a whole record, judged by the checksum."""
        try:
            window = self._read(self._opened(), offset, min(length, WINDOW_BYTES))
            return self._checksum(window, 0, offset, length) == RESIDUE
        except CorruptionError:  # the file is shorter than it was
            return False

    def sync(self) -> None:
        """Return when every record appended so far is on the disk."""
        self._filesystem.sync(self._opened())

    def cut(self, length: int) -> None:
        """Drop everything from `length` on."""
        if length < len(self._map):  # reading a byte that is gone ends the process
            self._map = b""
        self._filesystem.truncate(self._opened(), length)
        self.size = length

    def rewrite(self, start: int) -> None:
        """Write the bytes from `start` on once more, where they are, and sync them.

        After an fsync that failed the kernel may believe that pages are on the disk
        which are not. A second fsync would skip them; bytes written anew it can't skip.
        """
        file, offset = self._opened(), start
        for piece in self.pieces(start):
            self._filesystem.write(file, piece, offset)
            offset += len(piece)
        self.sync()

    def pieces(self, start: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to the end, at most 1 MiB at a time."""
        file = self._opened()
        for offset in range(start, self.size, WINDOW_BYTES):
            length = min(WINDOW_BYTES, self.size - offset)
            yield self._filesystem.read(file, length, offset)

    def seal(self) -> SegmentMeta:
        """Make the segment durable for good, and say what it looks like.

        The cut matters after an append that was interrupted between its last two steps.
        """
        self.cut(self.size)
        self.sync()
        return self.meta()

    def takes_no_more(self) -> None:
        """Let go of the file after the last record: from now on it is opened for reading."""
        self._is_sealed, self._file = True, None
        self._filesystem.budget.note(self)

    def meta(self) -> SegmentMeta:
        """Say what the segment looks like from outside."""
        return SegmentMeta(self.number, self.seed, self.size)


MISSING = "the segment is missing"


def check_header(path: str, raw: bytes, number: int) -> int:
    """Return the seed in a segment's header, or raise if it is not the one expected.

    `NewerFormatError` for a version that this module does not know, `CorruptionError`
    for everything else that is wrong.
    """
    if len(raw) < SEGMENT_HEADER_BYTES:
        raise CorruptionError(path, len(raw), "the file ends inside its header")
    magic, version, own_number, _ = SEGMENT_HEADER.unpack_from(raw)
    (seed,) = CHECKSUM.unpack_from(raw, SEGMENT_HEADER.size)
    if magic != SEGMENT_MAGIC:
        raise CorruptionError(path, 0, "this is not a segment: the magic is missing")
    if version < 1 or crc32(raw) != RESIDUE:
        raise CorruptionError(path, 0, "the checksum does not match the header")
    if version > SEGMENT_VERSION:
        raise NewerFormatError(
            f"{path} has format {version}, this program knows up to {SEGMENT_VERSION}; "
            f"open it with a newer version of kvstore"
        )
    if own_number != number:
        raise CorruptionError(path, 12, f"this is segment {own_number}, not {number}")
    return int(seed)
