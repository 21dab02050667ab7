"""Many segments to fewer: what is dead is left out.

A put of a key that was there before, and a delete, leave a dead record in some older
segment. Compaction reads sealed segments in the order of their sequence numbers and
copies the live records into new ones. It holds to three rules:

1. A record is copied if the index points to it. Whatever happens to its key meanwhile,
   the copy keeps its sequence number, so it can't win over anything newer.
2. A tombstone is copied if it is the last word on its key and an older record of the key
   lies in a segment that is not being merged. Without it that record would come back.
3. Nothing is given up for a record that is not on the disk yet. The log is synced
   after the copying and before the manifest that forgets the old segments.

This is Bitcask's merge (Sheehy and Smith, 2010) and the cleaner of log-structured file
systems (Rosenblum and Ousterhout, 1992), with segments picked by their share of dead
bytes alone. Weighing in their age too, as the latter paper does, would write less where a
few keys are written far more often than the others.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.files import Files
from kvstore.index import Index, pack
from kvstore.log import Log
from kvstore.record import DELETE, PUT, encode
from kvstore.reports import CompactionReport
from kvstore.segment import SEGMENT_HEADER_BYTES, Entry, Segment, SegmentMeta


def dead_share(size: int, live_bytes: int) -> float:
    """Return the share of a segment's record bytes that nobody needs, 0.0 to 1.0."""
    record_bytes = size - SEGMENT_HEADER_BYTES
    return (record_bytes - live_bytes) / record_bytes if record_bytes else 0.0


def worth_compacting(
    sizes: Mapping[int, int], live: Mapping[int, int], least_dead: float
) -> set[int]:
    """Return the segments in which something is dead, and at least that share of it.

    `sizes` and `live` give the length of each segment and of its live records in bytes.
    """
    shares = {n: dead_share(size, live.get(n, 0)) for n, size in sizes.items()}
    return {n for n, share in shares.items() if share > 0 and share >= least_dead}


def in_order(sources: Iterable[Segment]) -> Iterator[tuple[Segment, Entry]]:
    """Yield the records of several segments in the order of their sequence numbers.

    In each segment they rise, so a merge needs one window of each in memory, no more.
    """

    def pairs(segment: Segment) -> Iterator[tuple[Segment, Entry]]:
        return ((segment, entry) for entry in segment.scan())

    return heapq.merge(*map(pairs, sources), key=lambda pair: pair[1].sequence)


def needed_tombstones(
    index: Index, sources: Iterable[Segment], others: Iterable[Segment]
) -> dict[bytes, int]:
    """Return the tombstones among `sources` that must be kept: key to sequence number.

    Those are the last word on a key of which `others` hold an older record.
    """
    last_word: dict[bytes, int] = {}
    for _, entry in in_order(sources):
        if entry.deletes and not index.get(entry.key):
            last_word[entry.key] = entry.sequence
    needed: dict[bytes, int] = {}
    for segment in others if last_word else ():
        for entry in segment.scan():
            if entry.sequence < last_word.get(entry.key, 0):
                needed[entry.key] = last_word[entry.key]
    return needed


@dataclass
class Merge:
    """What a merge wrote: new segments, and the way of each live record into them."""

    results: list[Segment] = field(default_factory=list)
    moves: list[tuple[bytes, int, int]] = field(default_factory=list)
    kept: int = 0
    dropped: int = 0

    def metas(self) -> list[SegmentMeta]:
        """Say what the new segments look like from outside."""
        return [segment.meta() for segment in self.results]


def merge(
    index: Index,
    sources: Sequence[Segment],
    others: Sequence[Segment],
    new_segment: Callable[[], Segment],
    segment_bytes: int,
    result: Merge,
) -> None:
    """Copy what is live in `sources` into new segments, and make those durable.

    `result` says at every moment which segments were made, so that the caller can remove
    them if this raises.
    """
    needed = needed_tombstones(index, sources, others)
    for source, entry in in_order(sources):
        if entry.deletes:
            old, live = 0, needed.get(entry.key) == entry.sequence
        else:
            old = pack(source.number, entry.offset, entry.length)
            live = index.get(entry.key) == old
        if not live:
            result.dropped += 1
            continue
        if not result.results or result.results[-1].size >= segment_bytes:
            result.results.append(new_segment())
        new = copy_record(source, entry, result.results[-1])
        result.kept += 1
        if old:
            result.moves.append((entry.key, old, new))
    for segment in result.results:
        segment.seal()


def copy_record(source: Segment, entry: Entry, target: Segment) -> int:
    """Copy one record with its sequence number, and return its new location.

    The batch it came with is complete long since, so the copy stands alone.
    """
    kind = DELETE if entry.deletes else PUT
    value = source.value(entry.offset, entry.length, entry.key)
    raw = encode(kind, entry.sequence, entry.key, value, target.seed)
    offset = target.append(raw)
    target.size = offset + len(raw)
    return pack(target.number, offset, entry.length)


class Compactor:
    """Compacts an open store, one compaction at a time.

    Its lock comes before that for changing files, and is held while records are copied;
    readers and writers go on meanwhile.
    """

    def __init__(self, files: Files, log: Log) -> None:
        self._files = files
        self._log = log
        self.make_lock()

    def make_lock(self) -> None:
        """Make the lock, and in a forked child make it anew."""
        self.compacting = threading.RLock()

    def run(self, least_dead: float) -> CompactionReport:
        """Compact the segments of which at least that share is dead."""
        with self.compacting:
            sources, others = self._choose(least_dead)
            merged = Merge()
            if sources:
                try:
                    self._merge(sources, others, merged)
                    self._replace(sources, merged)
                except BaseException:
                    if self._log.health.trouble is None:  # nothing names them yet
                        self._files.discard(merged.results)
                    raise
            self._log.sweep()
        return CompactionReport(
            segments_before=len(sources),
            segments_after=len(merged.results),
            bytes_before=sum(segment.size for segment in sources),
            bytes_after=sum(segment.size for segment in merged.results),
            records_kept=merged.kept,
            records_dropped=merged.dropped,
        )

    def _choose(self, least_dead: float) -> tuple[list[Segment], list[Segment]]:
        """Return the sealed segments to compact and those to leave as they are."""
        self._log.health.check()
        sizes = self._files.sizes()  # first: what is written meanwhile is not dead
        live = self._log.moment().live_bytes()
        self._log.fold()
        worth = worth_compacting(sizes, live, least_dead)
        if self._log.active.number in worth:
            self._log.rotate()
        with self._files.changing:
            sealed = self._files.sealed()
        sources = [segment for segment in sealed if segment.number in worth]
        return sources, [segment for segment in sealed if segment.number not in worth]

    def _merge(
        self, sources: list[Segment], others: list[Segment], merged: Merge
    ) -> None:
        """Write the new segments."""
        new, size = self._files.new_segment, self._log.segment_bytes
        merge(self._log.index, sources, others, new, size, merged)
        for segment in merged.results:
            segment.takes_no_more()

    def _replace(self, sources: list[Segment], merged: Merge) -> None:
        """Let the new segments take the place of the old: on disk, then in memory.

        Before that the log is synced, for what made records dead, and the manifest notes
        how far: from now on there is no older record to fall back on.
        """
        numbers = {segment.number for segment in sources}
        log, files = self._log, self._files
        with files.changing:
            with log.syncing:
                log.sync_through(log.sequence)
                log.health.check()
                compacted = files.manifest.compacted(numbers, merged.metas())
                manifest = compacted.advanced(*log.durable)
                files.write_aside(manifest)
            try:
                files.install(manifest, merged.results)
                log.move_records(merged.moves)
                files.retire(sources, self._log.index.next_moment())
            except BaseException as error:
                log.health.trouble = "the change to compacted segments", error
                raise
