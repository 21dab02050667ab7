"""From files to an index, and what to do about bytes that are not a record.

Recovery reads every segment from front to back and keeps, for each key, the record with
the highest sequence number. Where a record can't be read there are two answers. In a
sealed segment, or below the watermark, the bytes were once known to be safe: that is
damage, and an error. Above the watermark, at the end of the segment that was being
written, it is a torn tail: the log ends there, the bytes after it are kept in a file of
their own, and the fact is reported.

It can be interrupted at any point and run again. It follows the recovery of ARIES (Mohan
and others, 1992) in that it repeats history from the log, and leaves out all that ARIES
needs for undoing transactions and for pages that were half written: segments are only
appended to, and a batch is applied when its last record has been seen. The price is the
time to read every byte of the store at every start.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstore.errors import CorruptionError
from kvstore.filesystem import Directory, FileSystem
from kvstore.index import GONE, Index, IndexBuilder, pack
from kvstore.manifest import Manifest
from kvstore.segment import (
    MISSING,
    SEGMENT_HEADER_BYTES,
    Entry,
    Segment,
    SegmentMeta,
    segment_name,
)


class Flaw(NamedTuple):
    """What is wrong with the bytes at an offset of a segment."""

    offset: int
    reason: str

    def error(self, segment: Segment) -> CorruptionError:
        """Return it as an error to raise."""
        return CorruptionError(segment.path, self.offset, self.reason)


@dataclass
class Replay:
    """What reading one segment came to."""

    end: int = SEGMENT_HEADER_BYTES  # the offset after the last whole batch
    records: int = 0
    sequence: int = 0
    flaw: Flaw | None = None  # why not all of the file counts


def replay(
    segment: Segment, builder: IndexBuilder, old_until: int = 0, sequence: int = -1
) -> Replay:
    """Take note of every record of a segment, batch by batch, up to the first bad one.

    From the offset `old_until` on a record is bad too if its number is not above
    `sequence`: it was lost once, and comes to light where a new one should be.
    """
    result = Replay()
    batch: list[Entry] = []
    try:
        for entry in segment.scan():
            if entry.offset >= old_until and entry.sequence <= sequence:
                result.flaw = Flaw(entry.offset, LOST_BEFORE)
                break
            batch.append(entry)
            if entry.continued:
                continue
            for each in batch:
                note(builder, segment.number, each)
            result.end = entry.offset + entry.length
            result.records += len(batch)
            result.sequence = entry.sequence
            batch.clear()
    except CorruptionError as error:
        result.flaw = Flaw(error.offset, error.reason)
    if batch and result.flaw is None:
        result.flaw = Flaw(result.end, "the batch that begins here has no end")
    return result


LOST_BEFORE = "a record that was lost before stands in the place of a new one"


def note(builder: IndexBuilder, segment: int, entry: Entry) -> None:
    """Take note of one record of a segment."""
    gone = entry.deletes
    location = GONE if gone else pack(segment, entry.offset, entry.length)
    builder.add(entry.sequence, entry.key, location)


class TornTail(NamedTuple):
    """A torn tail that was cut off: where, how many bytes, why, and where they are now.

    `kept_as` is None in a store that was opened for reading: nothing was changed.
    """

    path: str
    offset: int
    length: int
    reason: str
    kept_as: str | None

    def __str__(self) -> str:
        where = (
            f"{self.path}: a torn tail of {self.length:,} bytes at offset {self.offset}"
        )
        kept = f"cut off and kept as {self.kept_as}" if self.kept_as else "left out"
        return f"{where} ({self.reason}) was {kept}"


@dataclass
class Recovered:
    """A store as its files tell it."""

    active: Segment
    segments: dict[int, Segment]  # by number, the active one included
    index: Index = field(default_factory=Index)
    sequence: int = 0
    records: int = 0
    torn_tail: TornTail | None = None

    def add(self, outcome: Replay) -> Replay:
        """Add what reading one segment came to."""
        self.records += outcome.records
        self.sequence = max(self.sequence, outcome.sequence)
        return outcome


def recover(
    filesystem: FileSystem,
    directory: Directory,
    manifest: Manifest,
    synced: SegmentMeta | None,
    *,
    writable: bool,
) -> Recovered:
    """Build the index of a store from the segments that its manifest names.

    The sealed ones must be whole, the active one up to its length and up to what `synced`,
    from the watermark, says. After its length every record has a number above that of the
    manifest.
    With `writable` a torn tail is cut off, and all that was accepted is on the disk when
    this returns. Raises `CorruptionError`, and `OSError` where the disk fails: a disk
    that can't be read is no reason to cut anything.
    """
    builder = IndexBuilder()
    result = open_segments(filesystem, directory, manifest, writable=writable)
    last, active = result.active, manifest.active
    for meta in manifest.sealed:
        segment = result.segments[meta.number]
        check_sealed(segment, meta, result.add(replay(segment, builder)))
    # A length of 0 is from a manifest that did not note it yet.
    sequence = manifest.sequence if active.length else 0
    outcome = result.add(replay(last, builder, active.length, sequence))
    safe = max(active.length, synced_length(last, synced))
    if outcome.end < safe:
        reason = f"the file ends here, and {safe} bytes of it were on the disk"
        raise (outcome.flaw or Flaw(outcome.end, reason)).error(last)
    if outcome.flaw is not None:
        result.torn_tail = cut_tail(
            filesystem, directory, last, outcome, writable=writable
        )
    if writable:
        last.rewrite(safe)
    result.index = Index(builder.locations())
    return result


def open_segments(
    filesystem: FileSystem, directory: Directory, manifest: Manifest, *, writable: bool
) -> Recovered:
    """Open every segment that a manifest names, and make sure that each is the one."""
    segments = {}
    for meta in (*manifest.sealed, manifest.active):
        sealed = meta is not manifest.active
        try:
            segment = Segment.open(
                filesystem,
                directory,
                meta.number,
                writable=writable and not sealed,
                sealed=sealed,
                hold=not writable,
            )
        except FileNotFoundError:
            path = f"{directory.path}/{segment_name(meta.number)}"
            raise CorruptionError(path, 0, MISSING) from None
        except OSError as error:
            if error.errno == errno.EMFILE and not writable:
                error.strerror = (
                    f"too many open files: a store that is open for reading keeps one for "
                    f"each of its {len(manifest.sealed) + 1:,} segments, since a writer may "
                    f"take their names away; raise the limit (ulimit -n), or compact it"
                )
            raise
        if segment.seed != meta.seed:
            raise CorruptionError(segment.path, 20, "this is another store's segment")
        segments[meta.number] = segment
    return Recovered(segments[manifest.active.number], segments)


def check_sealed(segment: Segment, meta: SegmentMeta, outcome: Replay) -> None:
    """Raise `CorruptionError` unless a sealed segment is whole, to its last byte."""
    if outcome.flaw is not None:
        raise outcome.flaw.error(segment)
    if segment.size != meta.length:
        reason = f"the file has {segment.size} bytes, it was sealed with {meta.length}"
        raise Flaw(min(segment.size, meta.length), reason).error(segment)


def synced_length(segment: Segment, synced: SegmentMeta | None) -> int:
    """Return how many bytes of the segment are known to have been on the disk."""
    if synced is None or synced[:2] != segment.meta()[:2]:
        return SEGMENT_HEADER_BYTES
    return synced.length


def cut_tail(
    filesystem: FileSystem,
    directory: Directory,
    segment: Segment,
    outcome: Replay,
    *,
    writable: bool,
) -> TornTail:
    """End the segment after its last whole batch, and keep what was there aside."""
    offset, length = outcome.end, segment.size - outcome.end
    reason = outcome.flaw.reason if outcome.flaw else ""
    if not writable:
        segment.size = offset
        return TornTail(segment.path, offset, length, reason, None)
    name = keep_aside(filesystem, directory, segment, offset)
    directory.sync()
    segment.cut(offset)
    kept_as = f"{directory.path}/{name}"
    return TornTail(segment.path, offset, length, reason, kept_as)


def keep_aside(
    filesystem: FileSystem, directory: Directory, segment: Segment, start: int
) -> str:
    """Copy the bytes from `start` on into a new file, durable, and return its name.

    Of the files that were kept before, the newest stay: a machine that crashes every night
    should not fill the disk with them.
    """
    kept = [name for name in directory.names() if KEPT_TAIL.fullmatch(name)]
    name = f"{segment.name}.cut-{start}"
    same = [age for age in map(age_of_kept, kept) if age[:2] == age_of_kept(name)[:2]]
    name += f".{max(same)[2] + 1}" if same else ""
    file, offset = directory.create(name), 0
    try:
        for piece in segment.pieces(start):
            filesystem.write(file, piece, offset)
            offset += len(piece)
        filesystem.sync(file)
    except OSError:
        directory.remove(name)
        raise
    for old in sorted(kept, key=age_of_kept)[: 1 - MOST_KEPT]:
        directory.remove(old)
    return name


KEPT_TAIL = re.compile(r"(\d{8,17})\.segment\.cut-(\d+)(?:\.(\d+)|\+*)", re.ASCII)
MOST_KEPT = 10


def age_of_kept(name: str) -> tuple[int, int, int]:
    """Return what sorts the names of kept tails: the older first, as far as it shows."""
    match = KEPT_TAIL.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2]), int(match[3] or name.count("+"))
