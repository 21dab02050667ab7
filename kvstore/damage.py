"""Reading on after what can't be read.

Recovery stops at the first bytes that are not a record. Somebody who asks what is damaged,
or wants to save what is left, reads on. Lengths that may be damaged can't be trusted to
lead to the next record, so every place is tried that looks like the start of one.

LevelDB's log restarts at a block of 32 KiB instead, and loses what is left of the block;
our records stand where they stand, and finding the next one costs a search. It is
bounded, since a hostile file could be all likely places.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import NamedTuple

from kvstore.errors import BadRecordError, CorruptionError, NewerFormatError
from kvstore.record import RECORD_HEAD, parse_head
from kvstore.segment import MISSING, SEGMENT_HEADER_BYTES, Entry, Segment


class Damage(NamedTuple):
    """A stretch of a file that holds nothing that can be read."""

    path: str
    offset: int
    length: int
    reason: str


def scan_past_damage(segment: Segment) -> Iterator[Entry | Damage]:
    """Yield every whole record of a segment, and the damage between them.

    Where the disk can't read any more, the rest of the segment is damage.
    """
    offset = 0
    try:
        for found in scan_what_can_be_read(segment):
            yield found
            offset = found.offset + found.length
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        reason = f"the disk can't read it: {error}"
        yield Damage(segment.path, offset, segment.size - offset, reason)


def scan_what_can_be_read(segment: Segment) -> Iterator[Entry | Damage]:
    """Yield every whole record, and the damage between them. A bad sector raises."""
    try:
        segment.check_header()
    except (CorruptionError, NewerFormatError) as error:
        if isinstance(error, CorruptionError) and error.reason == MISSING:
            yield Damage(segment.path, 0, segment.size, MISSING)
            return
        reason = "the header is not what it was"
        yield Damage(segment.path, 0, SEGMENT_HEADER_BYTES, reason)
    offset, effort = SEGMENT_HEADER_BYTES, SEARCH_EFFORT * max(segment.size, MEBIBYTE)
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
        tail = window[1 - RECORD_HEAD.size :]
    return segment.size, effort


def claimed_length(window: bytes, place: int, available: int) -> int:
    """Return how long the record at a place says it is, or 0 if it can't be one."""
    try:
        return parse_head(window, place, available).length
    except BadRecordError:
        return 0
