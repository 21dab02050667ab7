"""From files to an index, and what to do about bytes that are not a record.

Recovery reads every segment from front to back and keeps, for each key, the record with
the highest sequence number. Where a record can't be read there are two answers. In a
sealed segment, or below the mark, the bytes were once known to be safe: that is damage,
and an error. Above the mark, at the end of the segment that was being written, it is a
torn tail: the log ends there, the bytes behind are kept in a file of their own, and the
fact is reported.

It can be interrupted at any point and run again. It follows the recovery of ARIES (Mohan
and others, 1992) in that it repeats history from the log, and leaves out all that ARIES
needs for undoing transactions and for pages that were written half: segments are only
appended to, and a batch is applied when its last record has been seen. The price is the
time to read every byte of the store at every start.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kvstore.errors import BadRecordError, CorruptionError, NewerFormatError
from kvstore.filesystem import FileSystem
from kvstore.index import SEGMENT_SHIFT, Index, pack
from kvstore.record import HEAD, parse_head
from kvstore.segment import HEADER_BYTES, Description, Entry, Segment

SEQUENCE_SHIFT = 2 * SEGMENT_SHIFT
PLACE_MASK = (1 << SEQUENCE_SHIFT) - 1


class Newest:
    """The newest record of every key among those seen so far, in whatever order.

    Sequence number and location are packed into one integer, the sequence number on top.
    So the larger integer is the newer record. A deleted key has no location.
    """

    def __init__(self) -> None:
        self._records: dict[bytes, int] = {}

    def add(self, segment: int, entry: Entry) -> None:
        """Take note of a record, if it is newer than what is known of its key."""
        place = 0 if entry.deletes else pack(segment, entry.offset, entry.length)
        known = self._records.get(entry.key, 0)
        self._records[entry.key] = max(known, entry.sequence << SEQUENCE_SHIFT | place)

    def index(self) -> Index:
        """Return the index: the keys that are not deleted, and where they are."""
        return Index(
            (key, record & PLACE_MASK)
            for key, record in self._records.items()
            if record & PLACE_MASK
        )


@dataclass
class Replay:
    """What reading one segment came to."""

    end: int = HEADER_BYTES  # the offset behind the last whole batch
    records: int = 0
    sequence: int = 0
    trouble: CorruptionError | None = (
        None  # what stands at `end`, if not the file's end
    )


def replay(
    segment: Segment, newest: Newest, old_until: int = 0, sequence: int = 0
) -> Replay:
    """Take note of every record of a segment, batch by batch, up to the first bad one.

    Behind the offset `old_until` a record is bad too if its number is not above
    `sequence`: it was lost once, and comes to light where a new one should stand.
    """
    result = Replay()
    batch: list[Entry] = []
    try:
        for entry in segment.scan():
            if entry.offset >= old_until and entry.sequence <= sequence:
                raise CorruptionError(segment.path, entry.offset, LOST_BEFORE)
            batch.append(entry)
            if entry.continued:
                continue
            for each in batch:
                newest.add(segment.number, each)
            result.end = entry.offset + entry.length
            result.records += len(batch)
            result.sequence = entry.sequence
            batch.clear()
    except CorruptionError as error:
        result.trouble = error
    if batch and result.trouble is None:
        reason = "the batch that begins here has no end"
        result.trouble = CorruptionError(segment.path, result.end, reason)
    return result


LOST_BEFORE = "a record that was lost before stands in the place of a new one"


@dataclass(frozen=True)
class Cut:
    """A torn tail that was cut off: where, how many bytes, why, and where they are now."""

    path: str
    offset: int
    length: int
    reason: str
    kept_as: (
        str | None
    )  # None in a store that was opened read-only: nothing was changed

    def __str__(self) -> str:
        where = (
            f"{self.path}: a torn tail of {self.length:,} bytes at offset {self.offset}"
        )
        kept = f"cut off and kept as {self.kept_as}" if self.kept_as else "left out"
        return f"{where} ({self.reason}) was {kept}"


@dataclass
class Recovered:
    """A store as its files tell it."""

    index: Index
    active: Segment
    segments: dict[int, Segment]  # by number, the active one included
    sequence: int = 0
    records: int = 0
    cut: Cut | None = None


def recover(
    filesystem: FileSystem,
    directory: str,
    sealed: Collection[Description],
    active: Description,
    synced: Description | None,
    sequence: int = 0,
    *,
    writable: bool,
) -> Recovered:
    """Build the index of a store from its segments.

    `sealed` must be whole, `active` up to its length and up to what `synced`, from the
    mark, says. Behind its length every record has a number above `sequence`.
    With `writable` a torn tail is cut off, and all that was accepted is on the disk when
    this returns. Raises `CorruptionError`, and `OSError` where the disk fails: a disk
    that can't be read is no reason to cut anything.
    """
    newest = Newest()
    segments = [open_described(filesystem, directory, each) for each in sealed]
    last = open_described(filesystem, directory, active, writable=writable)
    result = Recovered(Index(), last, {each.number: each for each in (*segments, last)})
    for description, segment in zip(sealed, segments, strict=True):
        check_sealed(segment, description, note(result, replay(segment, newest)))
    if active.length == 0:  # a manifest from before this length was noted
        sequence = 0
    outcome = note(result, replay(last, newest, active.length, sequence))
    safe = max(active.length, synced_length(last, synced))
    if outcome.end < safe:
        reason = f"the file ends here, and {safe} bytes of it were on the disk"
        raise outcome.trouble or CorruptionError(last.path, outcome.end, reason)
    if outcome.trouble is not None:
        result.cut = cut_tail(filesystem, directory, last, outcome, writable=writable)
    if writable:
        last.rewrite(safe)
    result.index = newest.index()
    return result


def note(result: Recovered, outcome: Replay) -> Replay:
    """Add what reading one segment came to."""
    result.records += outcome.records
    result.sequence = max(result.sequence, outcome.sequence)
    return outcome


def open_described(
    filesystem: FileSystem,
    directory: str,
    description: Description,
    *,
    writable: bool = False,
) -> Segment:
    """Open the segment that a description names, and make sure that it is the one."""
    number = description.number
    try:
        segment = Segment.open(filesystem, directory, number, writable=writable)
    except FileNotFoundError as error:
        raise CorruptionError(
            str(error.filename), 0, "the segment is missing"
        ) from None
    if segment.seed != description.seed:
        raise CorruptionError(segment.path, 20, "this is another store's segment")
    return segment


def check_sealed(segment: Segment, description: Description, outcome: Replay) -> None:
    """Raise `CorruptionError` unless a sealed segment is whole, to its last byte."""
    if outcome.trouble is not None:
        raise outcome.trouble
    if segment.size != description.length:
        reason = f"the file has {segment.size} bytes, it was sealed with {description.length}"
        raise CorruptionError(
            segment.path, min(segment.size, description.length), reason
        )


def synced_length(segment: Segment, synced: Description | None) -> int:
    """Return how many bytes of the segment are known to have been on the disk."""
    if synced is None or synced[:2] != segment.describe()[:2]:
        return HEADER_BYTES
    return synced.length


def cut_tail(
    filesystem: FileSystem,
    directory: str,
    segment: Segment,
    outcome: Replay,
    *,
    writable: bool,
) -> Cut:
    """End the segment behind its last whole batch, and keep what stood there aside."""
    offset, length = outcome.end, segment.size - outcome.end
    reason = outcome.trouble.reason if outcome.trouble else ""
    if not writable:
        segment.size = offset
        return Cut(segment.path, offset, length, reason, None)
    kept_as = keep_aside(filesystem, segment, offset)
    filesystem.sync_directory(directory)
    segment.cut(offset)
    return Cut(segment.path, offset, length, reason, kept_as)


def keep_aside(filesystem: FileSystem, segment: Segment, start: int) -> str:
    """Copy the bytes from `start` on into a new file, durable, and return its path."""
    path = f"{segment.path}.cut-{start}"
    while filesystem.exists(path):
        path += "+"
    file, offset = filesystem.create(path), 0
    for piece in segment.pieces(start):
        filesystem.write(file, piece, offset)
        offset += len(piece)
    filesystem.sync(file)
    return path


@dataclass(frozen=True)
class Damage:
    """A stretch of a file that holds nothing that can be read."""

    path: str
    offset: int
    length: int
    reason: str


def survey(segment: Segment) -> Iterator[Entry | Damage]:
    """Yield every whole record of a segment, and the damage between them."""
    try:
        segment.check_header()
    except (CorruptionError, NewerFormatError):
        yield Damage(segment.path, 0, HEADER_BYTES, "the header is not what it was")
    offset, effort = HEADER_BYTES, SEARCH_EFFORT * max(segment.size, MEBIBYTE)
    while offset < segment.size:
        try:
            for entry in segment.scan(offset):
                yield entry
                offset = entry.offset + entry.length
        except CorruptionError as error:
            offset, effort = next_whole_record(segment, error.offset, effort)
            yield Damage(
                segment.path, error.offset, offset - error.offset, error.reason
            )


# What the fixed part of a record looks like: a kind, a sequence number whose highest byte
# is zero, and a value length of at most 1 GiB. The look-ahead finds overlapping places.
LIKELY_HEAD = re.compile(rb"(?s)(?=[\x01\x02\x81\x82].{7}\0.{5}[\x00-\x40])")

MEBIBYTE = 1 << 20
SEARCH_EFFORT = 64  # how often searches in a file may read it over before they give up
GUESS_BYTES = 1024  # what looking at one likely place costs, in bytes read


def next_whole_record(segment: Segment, start: int, effort: int) -> tuple[int, int]:
    """Return the offset of the next whole record at or after `start`, and the effort left.

    Lengths that may be damaged can't be trusted to lead there. So every place is tried
    that looks like the start of a record. If there is none, or the effort (in bytes
    read) is spent, the offset is the file's end.
    """
    offset, tail = start, b""
    for piece in segment.pieces(start):
        window = tail + piece
        for likely in LIKELY_HEAD.finditer(window):
            place = offset - len(tail) + likely.start()
            claimed = claimed_length(window, likely.start(), segment.size - place)
            effort -= GUESS_BYTES + claimed
            if effort < 0:
                return segment.size, effort
            if claimed and segment.is_whole_at(place, claimed):
                return place, effort
        offset += len(piece)
        tail = window[1 - HEAD.size :]
    return segment.size, effort


def claimed_length(window: bytes, place: int, available: int) -> int:
    """Return how long the record at a place says it is, or 0 if it can't be one."""
    try:
        return parse_head(window, place, available).length
    except BadRecordError:
        return 0
