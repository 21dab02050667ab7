"""The store: a mapping from bytes to bytes that outlives the process.

    with kvstore.open("people") as db:
        db[b"ada"] = b"1815"
        db[b"ada"]

It is a log-structured hash table after Bitcask (Sheehy and Smith, 2010): writes go to the
end of a log, reads go through an index in memory. To Bitcask it adds batches that are
whole or not there, a mark that tells a torn tail from damage, and a manifest. It leaves
out ranges of keys in order, compression, expiry and replication. What that costs: every
key is in memory, opening reads the whole log, and iteration follows no order.

One process writes, with any number of threads; others may open the store read-only beside
it, and see it as it was at that moment.

Four locks, always taken in this order: one compaction at a time, one change of files at a
time, one fsync at a time, one write at a time. Reads take none.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import (
    ItemsView,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from contextlib import contextmanager, suppress
from os import PathLike, fspath
from types import TracebackType
from typing import Literal, Self

from kvstore.compaction import Compaction, Merge, merge, worth_compacting
from kvstore.errors import (
    ClosedError,
    CorruptionError,
    KVStoreError,
    LimitError,
    ReadOnlyError,
    StoreNotFoundError,
    WriteRefusedError,
)
from kvstore.filesystem import DISK, FileSystem, Lock
from kvstore.index import MASK, OFFSET_SHIFT, SEGMENT_SHIFT, Index, pack, unpack
from kvstore.manifest import (
    LOCK,
    MANIFEST,
    Manifest,
    begin,
    commit,
    find_store,
    leftovers,
    read_manifest,
    stage,
)
from kvstore.mark import MARK, MARK_BYTES, Mark, MarkFile, read_mark
from kvstore.record import (
    CONTINUED,
    DELETE,
    MAX_SEQUENCE,
    OVERHEAD_BYTES,
    PUT,
    check,
    encode,
    wrong_type,
)
from kvstore.recovery import Cut, Damage, Recovered, recover, survey
from kvstore.reports import Stats, Verification, counted
from kvstore.segment import HEADER_BYTES, Description, Segment, segment_numbers

MEBIBYTE = 1 << 20
MAX_SEGMENT_BYTES = 1 << 30
MAX_BATCH_BYTES = (1 << 31) - 4096  # what one write call takes on Linux
LOST_AT_MOST = 1 << 28  # more records than fit the 4 GiB that an offset can reach
MOVES_AT_A_TIME = 1000

Flag = Literal["r", "w", "c", "n"]
Sync = Literal["os", "always"] | float

logger = logging.getLogger("kvstore")


def open(
    path: str | PathLike[str],
    flag: Flag = "c",
    *,
    sync: Sync = "os",
    segment_bytes: int = 64 * MEBIBYTE,
    filesystem: FileSystem = DISK,
) -> Store:
    """Open the store in the directory `path`, and make it if need be.

    flag
        ``"r"`` reads only, ``"w"`` reads and writes a store that exists, ``"c"`` makes it
        if it does not, ``"n"`` begins with an empty one, whatever store was there.
    sync
        When a write is on the disk. ``"os"``: when the operating system sees fit; the
        write outlives this process, but perhaps not a power cut. ``"always"``: before
        the call returns. A number: at most about that many seconds later.
    segment_bytes
        A segment that has reached this length in bytes takes no more records.
    filesystem
        What stands for the operating system: another one in tests.

    Raises `StoreNotFoundError`, `ForeignDirectoryError`, `LockedError`,
    `NewerFormatError`, `CorruptionError`; `ValueError` for options that make no sense.
    """
    check_options(flag, sync, segment_bytes)
    directory = fspath(path)
    if flag == "r":
        return Store(
            filesystem, directory, *load_beside_a_writer(filesystem, directory)
        )
    if not find_or_raise(filesystem, directory, flag):
        filesystem.make_directory(directory)
    lock = filesystem.lock(f"{directory}/{LOCK}")
    try:
        found = find_or_raise(filesystem, directory, flag)  # it may just have been made
        if flag == "n" or not found:
            begin(filesystem, directory, manifest_unless_damaged(filesystem, directory))
        manifest, recovered = load_alone(filesystem, directory)
        return Store(
            filesystem, directory, manifest, recovered, lock, sync, segment_bytes
        )
    except BaseException:
        lock.release()  # now, and not when the last traceback is forgotten
        raise


def check_options(flag: str, sync: Sync, segment_bytes: int) -> None:
    """Raise `ValueError`, with what would make sense, for options that do not."""
    if flag not in ("r", "w", "c", "n"):
        raise ValueError(
            f'flag is {flag!r}; "r" reads only, "w" writes an existing store, "c" makes it '
            f'if need be, "n" begins with an empty one'
        )
    seconds = (
        sync if isinstance(sync, int | float) and not isinstance(sync, bool) else 0
    )
    if sync not in ("os", "always") and not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError(
            f'sync is {sync!r}; use "os", "always" or a number of seconds above 0'
        )
    if type(segment_bytes) is not int or not 1 <= segment_bytes <= MAX_SEGMENT_BYTES:
        raise ValueError(
            f"segment_bytes is {segment_bytes!r}; use a whole number of bytes from 1 to "
            f"{MAX_SEGMENT_BYTES:,}"
        )


def find_or_raise(filesystem: FileSystem, directory: str, flag: Flag) -> bool:
    """Say whether there is a store, or raise where the flag asks for one and none is.

    Nothing is touched before this has found that the directory is a store's.
    """
    found = find_store(filesystem, directory)
    if found:
        manifest_unless_damaged(filesystem, directory)  # raises for a foreign one
    if not found and flag in ("r", "w"):
        raise StoreNotFoundError(
            f'there is no store at {directory}; flag="c" makes one, flag={flag!r} does not'
        )
    return found


def manifest_unless_damaged(filesystem: FileSystem, directory: str) -> Manifest | None:
    """Return the manifest, or None for a damaged one, which an empty store may replace.

    Raises `ForeignDirectoryError` and `NewerFormatError` for what is not ours to touch.
    """
    with suppress(FileNotFoundError, CorruptionError):
        return read_manifest(filesystem, directory)
    return None


def load(
    filesystem: FileSystem, directory: str, manifest: Manifest, *, writable: bool
) -> tuple[Mark | None, Recovered]:
    """Read the mark, and then the segments that a manifest names.

    The mark comes first: it must not speak of bytes that were written after the
    segments were read.
    """
    mark = read_mark(filesystem, directory)
    synced = mark.synced if mark else None
    return mark, recover(
        filesystem,
        directory,
        manifest.sealed,
        manifest.active,
        synced,
        manifest.sequence,
        writable=writable,
    )


def load_beside_a_writer(
    filesystem: FileSystem, directory: str
) -> tuple[Manifest, Recovered]:
    """Read a store without changing anything, while another process may write to it.

    A compaction there may take a segment away before it is opened here. Then the
    manifest has changed as well, and the new one leads to where its records went.
    """
    find_or_raise(filesystem, directory, "r")
    while True:
        manifest = read_manifest(filesystem, directory)
        try:
            return manifest, load(filesystem, directory, manifest, writable=False)[1]
        except CorruptionError:
            if read_manifest(filesystem, directory) == manifest:
                raise


def load_alone(filesystem: FileSystem, directory: str) -> tuple[Manifest, Recovered]:
    """Read a store, mend what a crash left, and make sure that all of it is on the disk.

    Where the last writer did not end with `close`, records may have been lost whose
    sequence numbers we can't know. A gap makes sure that none is given out twice, and the
    manifest notes it with the place where the log goes on: a lost record that comes to
    light there is known by its number. And before a file is removed, the manifest that
    leaves it out is surely on the disk.
    """
    manifest = read_manifest(filesystem, directory)
    mark, recovered = load(filesystem, directory, manifest, writable=True)
    recovered.sequence = max(recovered.sequence, manifest.sequence)
    if recovered.sequence > MAX_SEQUENCE - 2 * LOST_AT_MOST:
        raise LimitError(
            f"{directory} has no sequence numbers left; copy it into a new store"
        )
    left_behind = leftovers(filesystem, directory, manifest)
    active = recovered.active.describe()
    if left_behind or mark != Mark(active, closed=True):
        recovered.sequence += LOST_AT_MOST
        highest = segment_numbers(filesystem.names(directory))[-1]
        manifest = manifest.advanced(highest + 1, recovered.sequence, active)
        stage(filesystem, directory, manifest)
        commit(filesystem, directory)
    for path in left_behind:
        filesystem.remove(path)
    if recovered.cut is not None:
        logger.warning("%s", recovered.cut)
    return manifest, recovered


class Store(MutableMapping[bytes, bytes]):
    """An open store. `open` makes one; use it in a ``with`` block, or call `close`."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: str,
        manifest: Manifest,
        recovered: Recovered,
        lock: Lock | None = None,
        sync: Sync = "os",
        segment_bytes: int = MAX_SEGMENT_BYTES,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._manifest = manifest
        self._index = recovered.index
        self._segments = recovered.segments
        self._active = recovered.active
        self._sequence = self._synced = recovered.sequence
        self._reached = self._active.describe()  # what the last fsync reached
        self._numbers = itertools.count(manifest.next_number)
        self._segment_bytes = segment_bytes
        self._full = self._active.size >= segment_bytes
        self._sync_always = sync == "always"
        self._closing = threading.Event()
        self._make_locks()
        self.torn_tail: Cut | None = recovered.cut
        self._refusal: KVStoreError | None = None
        self._lock = lock
        _open_stores[id(self)] = self
        if lock is None:
            self._refusal = ReadOnlyError(
                f'{directory} is open with flag="r"; open it with "w"'
            )
            return
        self._mark = MarkFile(filesystem, directory)
        self._mark.write(self._active.describe())
        self._mark.sync()
        filesystem.sync_directory(directory)
        if not isinstance(sync, str):
            weakref.finalize(self, self._closing.set)  # if nobody closes it
            arguments = (weakref.ref(self), self._closing, sync)
            threading.Thread(
                target=sync_now_and_then, args=arguments, daemon=True
            ).start()

    def _make_locks(self) -> None:
        self._compacting = threading.Lock()
        self._changing_files = threading.Lock()
        self._syncing = threading.Lock()
        self._writing = threading.Lock()

    def __getitem__(self, key: bytes) -> bytes:
        """Return the value of a key, after checking its checksum.

        Raises `KeyError` if there is none, and `CorruptionError` for damage.
        """
        location = self._index.get(key)
        if location is None:
            raise self._missing(key)
        segment = self._segments.get(location >> SEGMENT_SHIFT)
        if segment is None:  # a compaction moved the record between the two look-ups
            return self[key]
        return segment.value(location >> OFFSET_SHIFT & MASK, location & MASK, key)

    def _missing(self, key: object) -> Exception:
        """Return the error for a key that is not in the index."""
        if isinstance(self._refusal, ClosedError):
            return self._refused()
        return KeyError(key) if isinstance(key, bytes) else wrong_type("key", key)

    def __contains__(self, key: object) -> bool:
        """Say whether there is such a key, without reading its value."""
        if key in self._index:
            return True
        error = self._missing(key)
        if not isinstance(error, KeyError):
            raise error
        return False

    def __len__(self) -> int:
        """Return the number of keys."""
        self._check_open()
        return len(self._index)

    def _check_open(self) -> None:
        if isinstance(self._refusal, ClosedError):
            raise self._refused()

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys that there are now, whatever is written meanwhile."""
        return iter(self._snapshot()[0])

    def keys(self) -> KeysView[bytes]:
        """Return a view; each iteration over it sees the store as it was when it began."""
        return StoreKeys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """Return a view; each iteration over it sees the store as it was when it began."""
        return StoreItems(self)

    def values(self) -> ValuesView[bytes]:
        """Return a view; each iteration over it sees the store as it was when it began."""
        return StoreValues(self)

    def _snapshot(self) -> tuple[Index, dict[int, Segment]]:
        """Return the index as it is now, and the segments that it points into.

        Whoever holds a segment can read it, even when a compaction has removed its file.
        """
        with self._writing:
            self._check_open()
            return Index(self._index), self._segments.copy()

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Put a value under a key. `open` says when that is on the disk.

        Raises `TypeError` and `LimitError` before anything is written, an `OSError` of
        the system (a full disk) with nothing changed, and `WriteRefusedError`.
        """
        check(key, value)
        sequence = self._log(PUT, key, value)
        if self._sync_always:
            self._sync_through(sequence)

    def __delitem__(self, key: bytes) -> None:
        """Delete a key. Raises `KeyError` if there is none, and what a put raises."""
        sequence = self._log(DELETE, key, b"")
        if self._sync_always:
            self._sync_through(sequence)

    def _log(self, kind: int, key: bytes, value: bytes) -> int:
        """Write one record where there is room for it; return its sequence number."""
        while True:
            with self._writing:
                if not self._full:
                    return self._append(kind, key, value)
            self._rotate()

    def _append(self, kind: int, key: bytes, value: bytes) -> int:
        """Write one record, and let the index follow. The lock for writes is held."""
        if kind == DELETE and key not in self._index:
            raise self._missing(key)
        if self._refusal is not None:
            raise self._refused()
        active = self._active
        self._sequence += 1  # before the write: a number that failed is not used again
        raw = encode(kind, self._sequence, key, value, active.seed)
        location = pack(active.number, self._write(active, raw), len(raw))
        if kind == PUT:
            self._index[key] = location
        else:
            del self._index[key]
        return self._sequence

    def _write(self, active: Segment, raw: bytes) -> int:
        """Append to the log. Where that fails, `_rotate` comes before the next record."""
        try:
            offset = active.append(raw)
        except BaseException as error:
            self._full = True
            if isinstance(error, WriteRefusedError):
                self._refusal = error
            raise
        self._full = active.size >= self._segment_bytes
        return offset

    def _refused(self) -> KVStoreError:
        """Return the reason why writes are refused, as a new error to raise."""
        refusal = self._refusal
        assert refusal is not None
        return type(refusal)(*refusal.args)

    def _refuse(self, what: str, error: BaseException) -> None:
        """Take no more writes: nobody knows what of the last ones is on the disk."""
        if self._refusal is None:
            self._refusal = WriteRefusedError(
                f"{self._directory} takes no more writes, since {what} failed ({error!r}); "
                f"reading goes on. Mend the cause, close the store and open it again"
            )

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove some key, and return it with its value. An empty store: `KeyError`."""
        with self._writing:
            self._check_open()
            key = next(reversed(self._index), None)
        if key is None:
            raise KeyError("the store is empty")
        return key, self.pop(key)

    def clear(self) -> None:
        """Delete every key that there is now."""
        for key in self:
            with suppress(KeyError):  # another thread deleted it
                del self[key]

    def batch(self) -> Batch:
        """Return a batch: what happens in its ``with`` block is done wholly or not at all."""
        return Batch(self)

    def _apply(self, changes: dict[bytes, bytes | None]) -> None:
        """Write a batch as one run of records, and let readers see it when it is whole."""
        size = sum(
            OVERHEAD_BYTES + len(key) + len(value or b"")
            for key, value in changes.items()
        )
        if size > MAX_BATCH_BYTES:
            raise LimitError(
                f"the batch has {size:,} bytes, at most {MAX_BATCH_BYTES:,} are possible; "
                f"use several batches"
            )
        sequence = self._log_batch(changes)
        if self._sync_always:
            self._sync_through(sequence)

    def _log_batch(self, changes: dict[bytes, bytes | None]) -> int:
        """Write a batch where there is room for it; return its last sequence number."""
        while True:
            with self._writing:
                if not self._full:
                    return self._append_batch(changes)
            self._rotate()

    def _append_batch(self, changes: dict[bytes, bytes | None]) -> int:
        """Write a batch, and let the index follow. The lock for writes is held."""
        if self._refusal is not None:
            raise self._refused()
        present = {
            k: v for k, v in changes.items() if v is not None or k in self._index
        }
        if present:
            places = self._append_run(present)
            self._index.update(places)
            for key in present.keys() - places.keys():
                del self._index[key]
        return self._sequence

    def _append_run(self, changes: dict[bytes, bytes | None]) -> dict[bytes, int]:
        """Write some records with one call, and return the locations of the puts."""
        active, run, places = self._active, [], {}
        offset = active.size
        for left, (key, value) in zip(
            range(len(changes))[::-1], changes.items(), strict=True
        ):
            self._sequence += 1
            kind = (DELETE if value is None else PUT) | (CONTINUED if left else 0)
            raw = encode(kind, self._sequence, key, value or b"", active.seed)
            if value is not None:
                places[key] = pack(active.number, offset, len(raw))
            run.append(raw)
            offset += len(raw)
        self._write(active, b"".join(run))
        return places

    def sync(self) -> None:
        """Return when everything written so far is on the disk."""
        self._check_open()
        self._sync_through(self._sequence)

    def _sync_through(self, sequence: int) -> None:
        """Return when all records up to a sequence number are on the disk.

        Threads that wait here for the lock mostly find, when they get it, that the fsync
        of the one before them covered their records too.
        """
        with self._syncing:
            if self._synced >= sequence:
                return
            with self._writing:
                if self._refusal is not None:
                    raise self._refused()
                active, reached = self._active, self._active.describe()
                newest = self._sequence
            try:
                active.sync()
            except OSError as error:
                self._refuse("an fsync", error)
                raise
            self._synced, self._reached = newest, reached
            self._move_mark(reached)

    def _move_mark(self, reached: Description) -> None:
        """Note how far the fsync reached, if that can be noted.

        An error here is no error of the sync: the records are on the disk, and a mark that
        stays behind is only too modest.
        """
        try:
            self._mark.write(reached)
        except OSError as error:
            logger.warning(
                "%s: the mark could not be moved: %s", self._directory, error
            )

    def _rotate(self) -> None:
        """Make the log ready for a record, if no other thread did so meanwhile."""
        with self._changing_files, self._syncing, self._writing:
            if self._refusal is not None:
                raise self._refused()
            if self._append_failed():
                self._note_the_end()
            elif self._full:
                self._begin_segment()

    def _append_failed(self) -> bool:
        """Say whether an append has failed, and nothing has been written since."""
        return self._full and self._active.size < self._segment_bytes

    def _note_the_end(self) -> None:
        """Go on behind an append that failed. All three locks are held.

        The next record stands where that one was begun. A power cut may show sectors of
        one beside sectors of the other, so the manifest notes which numbers are gone.
        """
        end = self._seal()
        next_number = self._manifest.next_number
        manifest = self._manifest.advanced(next_number, self._sequence, end)
        stage(self._filesystem, self._directory, manifest)
        with self._whole_or_refused("the change of the manifest"):
            commit(self._filesystem, self._directory)
            self._manifest = manifest
        self._full = False

    def _begin_segment(self) -> None:
        """Seal the active segment and begin another. All three locks are held.

        No other fsync runs meanwhile: of two at a time, the kernel tells only one that
        the disk has failed.
        The order matters: what is sealed is on the disk before the manifest says so, and
        the manifest is on the disk before the new segment takes a record.
        """
        sealed = self._seal()
        fresh = self._new_segment()
        manifest = self._manifest.rotated(sealed, fresh.describe(), self._sequence)
        try:
            stage(self._filesystem, self._directory, manifest)
        except OSError:
            self._filesystem.remove(fresh.path)
            raise
        with self._whole_or_refused("the change to a new segment"):
            commit(self._filesystem, self._directory)
            self._manifest = manifest
            self._segments[fresh.number] = fresh
            self._active = fresh
            self._full = False
        self._synced = self._sequence  # the seal's fsync covered them all
        self._reached = fresh.describe()

    def _seal(self) -> Description:
        try:
            return self._active.seal()
        except OSError as error:
            self._refuse("the fsync of a segment", error)
            raise

    def _new_segment(self) -> Segment:
        return Segment.create(self._filesystem, self._directory, next(self._numbers))

    @contextmanager
    def _whole_or_refused(self, what: str) -> Iterator[None]:
        """Refuse writes from now on if the block ends early, for whatever reason."""
        try:
            yield
        except BaseException as error:
            self._refuse(what, error)
            raise

    def compact(self, least_dead: float = 0.0) -> Compaction:
        """Merge segments in which something is dead, and give their room back.

        `least_dead` is the share of dead bytes, 0.0 to 1.0, from which on a segment is
        worth it. Readers and writers go on meanwhile. If there is no room for the new
        segments the system's error is raised, and nothing has changed.
        """
        if not 0 <= least_dead <= 1:
            raise ValueError(
                f"least_dead is {least_dead!r}; use a share from 0.0 to 1.0"
            )
        with self._compacting:
            sources, others = self._choose(least_dead)
            merged = Merge()
            if sources:
                self._merge(sources, others, merged)
                self._replace(sources, merged)
        return Compaction(
            segments_before=len(sources),
            segments_after=len(merged.results),
            bytes_before=sum(segment.size for segment in sources),
            bytes_after=sum(segment.size for segment in merged.results),
            records_kept=merged.kept,
            records_dropped=merged.dropped,
        )

    def _choose(self, least_dead: float) -> tuple[list[Segment], list[Segment]]:
        """Return the sealed segments to compact and those to leave as they are."""
        with self._writing:  # as short as can be: the counting comes behind it
            index = Index(self._index)
            sizes = {number: each.size for number, each in self._segments.items()}
        worth = worth_compacting(sizes, index.live_bytes(), least_dead)
        with self._changing_files, self._syncing, self._writing:
            if self._refusal is not None:
                raise self._refused()
            if self._active.number in worth:
                self._begin_segment()
            sealed = [self._segments[each.number] for each in self._manifest.sealed]
        sources = [segment for segment in sealed if segment.number in worth]
        return sources, [segment for segment in sealed if segment.number not in worth]

    def _merge(
        self, sources: list[Segment], others: list[Segment], merged: Merge
    ) -> None:
        """Write the new segments; if that can't be done, leave nothing of them."""
        size = self._segment_bytes
        try:
            merge(self._index, sources, others, self._new_segment, size, merged)
        except Exception:
            self._remove(merged.results)
            raise

    def _replace(self, sources: list[Segment], merged: Merge) -> None:
        """Let the new segments take the place of the old: on disk, then in memory."""
        numbers = {segment.number for segment in sources}
        with self._changing_files:
            try:
                manifest = self._without(numbers, merged)
                stage(self._filesystem, self._directory, manifest)
            except Exception:
                self._remove(merged.results)
                raise
            with self._whole_or_refused("the change to compacted segments"):
                commit(self._filesystem, self._directory)
                self._manifest = manifest
                self._switch(numbers, merged)
        self._remove(sources)

    def _without(self, numbers: set[int], merged: Merge) -> Manifest:
        """Sync the log for what made records dead, and return the manifest without them.

        The manifest notes how far the log was synced, since from now on there is no
        older record to fall back on.
        """
        self._sync_through(self._sequence)
        with self._syncing:
            if self._refusal is not None:  # of a write in another thread meanwhile
                raise self._refused()
            safe = self._synced, self._reached
        manifest = self._manifest.compacted(numbers, merged.descriptions())
        return manifest.advanced(manifest.next_number, *safe)

    def _switch(self, numbers: set[int], merged: Merge) -> None:
        """Point the index to the new segments, some keys at a time, then drop the old."""
        self._segments |= {segment.number: segment for segment in merged.results}
        for start in range(0, len(merged.moves), MOVES_AT_A_TIME):
            with self._writing:
                for key, old, new in merged.moves[start : start + MOVES_AT_A_TIME]:
                    self._index.move(key, old, new)
        with self._writing:
            for number in numbers:
                del self._segments[number]

    def _remove(self, segments: list[Segment]) -> None:
        """Remove the files of segments. One that can't be removed goes at the next open."""
        for segment in segments:
            with suppress(OSError):
                self._filesystem.remove(segment.path)

    def stats(self) -> Stats:
        """Count keys and bytes. Takes time in proportion to the number of keys."""
        index, segments = self._snapshot()
        live = index.live_bytes().total()
        sizes = [segment.size for segment in segments.values()]
        return Stats(
            keys=len(index),
            segments=len(segments),
            bytes_on_disk=sum(sizes) + len(self._manifest.encode()) + MARK_BYTES,
            live_bytes=live,
            dead_bytes=sum(sizes) - live - HEADER_BYTES * len(sizes),
        )

    def verify(self) -> Verification:
        """Read every byte of every file, and report what is damaged. Changes nothing."""
        _, segments = self._snapshot()
        sealed = {each.number for each in self._manifest.sealed}
        damage = list(self._verify_manifest())
        records = 0
        for segment in segments.values():
            for found in survey(segment):
                if isinstance(found, Damage):
                    damage.append(found)
                else:
                    records += 1
            excess = segment.excess_bytes()
            if excess > 0 and segment.number in sealed:
                reason = "the file goes on behind its last record"
                damage.append(Damage(segment.path, segment.size, excess, reason))
        size = sum(segment.size for segment in segments.values())
        return Verification(len(segments), records, size, tuple(damage))

    def _verify_manifest(self) -> Iterator[Damage]:
        """Read the manifest and the mark once more."""
        size = len(self._manifest.encode())
        try:
            read_manifest(self._filesystem, self._directory)
        except (KVStoreError, FileNotFoundError) as error:
            yield Damage(f"{self._directory}/{MANIFEST}", 0, size, str(error))
        if read_mark(self._filesystem, self._directory) is None and self._lock:
            path = f"{self._directory}/{MARK}"
            yield Damage(path, 0, MARK_BYTES, "the mark can't be read")

    def close(self) -> None:
        """Make everything durable, and let go of the store. Closing twice is fine.

        Raises `WriteRefusedError`, after letting go, if the store had to refuse writes:
        what was written last may not be on the disk.
        """
        self._closing.set()
        with self._compacting, self._changing_files, self._syncing, self._writing:
            if isinstance(self._refusal, ClosedError):
                return
            try:
                if self._refusal is None:
                    self._sync_for_good()
                elif isinstance(self._refusal, WriteRefusedError):
                    raise self._refused()
            finally:
                self._let_go()

    def _sync_for_good(self) -> None:
        """Make everything durable, the mark too, and say in it that we closed.

        If an append has failed just before, the next open has to note the end as it does
        after a crash.
        """
        end = self._seal()
        self._mark.write(end, closed=not self._append_failed())
        self._mark.sync()

    def _let_go(self) -> None:
        """Drop every file. Iterations that are under way keep those that they need."""
        self._refusal = ClosedError(f"{self._directory} is closed; open it again")
        self._index, self._segments, self._full = Index(), {}, False
        del self._active
        if self._lock is not None:
            del self._mark
            self._lock.release()

    def _disown(self) -> None:
        """In a forked child: this store is the parent's. Reading is all that is left."""
        self._make_locks()
        if self._lock is not None:
            self._lock.release()  # here only; the parent holds it all the same
        if self._refusal is None:
            self._refusal = ReadOnlyError(
                f"{self._directory} belongs to the process that forked this one; "
                f"it can write here when it was opened here"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except WriteRefusedError:
            if error is None:  # or else the error on its way says it already
                raise

    def __repr__(self) -> str:
        if isinstance(self._refusal, ClosedError):
            return f"<kvstore.Store {self._directory!r}: closed>"
        size = sum(segment.size for segment in self._segments.copy().values())
        keys, size_in_words = counted(len(self._index), "key"), counted(size, "byte")
        return f"<kvstore.Store {self._directory!r}: {keys}, {size_in_words}>"


_open_stores: weakref.WeakValueDictionary[int, Store] = weakref.WeakValueDictionary()


def _disown_all() -> None:
    """In a forked child: no store of the parent may be written to."""
    for store in list(_open_stores.values()):
        store._disown()


DISK.after_fork(_disown_all)


def sync_now_and_then(
    reference: weakref.ref[Store], closing: threading.Event, seconds: float
) -> None:
    """Sync a store at intervals, until it is closed, refuses, or nobody holds it."""
    while not closing.wait(seconds):
        store = reference()
        if store is None:
            return
        try:
            store.sync()
        except (KVStoreError, OSError) as error:
            if not closing.is_set():
                logger.error("the sync in the background failed: %s", error)
            return
        del store


def read_all(
    index: Index, segments: dict[int, Segment]
) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key of an index with its value."""
    for key, location in index.items():
        number, offset, length = unpack(location)
        yield key, segments[number].value(offset, length, key)


class StoreKeys(KeysView[bytes]):
    """The keys of a store."""

    _mapping: Store

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._mapping)


class StoreItems(ItemsView[bytes, bytes]):
    """The items of a store."""

    _mapping: Store

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return read_all(*self._mapping._snapshot())


class StoreValues(ValuesView[bytes]):
    """The values of a store."""

    _mapping: Store

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in StoreItems(self._mapping))

    def __contains__(self, value: object) -> bool:
        return any(value == each for each in self)


class Batch:
    """Changes that are made together, when the ``with`` block ends without an error.

    After a crash, however it comes, either all of them are there or none.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes: dict[bytes, bytes | None] | None = None

    def __enter__(self) -> Self:
        self._changes = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        changes, self._changes = self._open_changes(), None
        if kind is None:
            self._store._apply(changes)

    def _open_changes(self) -> dict[bytes, bytes | None]:
        if self._changes is None:
            raise ClosedError(
                "a batch takes changes inside its with block, and only there"
            )
        return self._changes

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Put a value under a key when the block ends."""
        check(key, value)
        self._open_changes()[key] = value

    def __delitem__(self, key: bytes) -> None:
        """Delete a key when the block ends. Raises `KeyError` if there is none now."""
        changes = self._open_changes()
        if (changes[key] is None) if key in changes else (key not in self._store):
            raise KeyError(key)
        changes[key] = None

    def __len__(self) -> int:
        """Return how many keys the batch changes."""
        return len(self._open_changes())
