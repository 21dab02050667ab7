"""The log store: a mapping from bytes to bytes that outlives the process.

It is a log-structured hash table after Bitcask (Sheehy and Smith, 2010): writes go to the
end of a log, reads go through an index in memory. To Bitcask it adds batches that are
whole or not there, a watermark that tells a torn tail from damage, and a manifest. It
leaves out ranges of keys in order, compression, expiry and replication. What that costs:
every key is in memory, opening reads the whole log, and iteration follows no order.

One process writes, with any number of threads; others may open the store for reading beside
it, and see it as it was at that moment. Reads take no lock.
"""

from __future__ import annotations

import queue
import warnings
from collections.abc import Iterator
from typing import TypeVar, overload

from kvstore.compaction import Compactor
from kvstore.damage import Damage, scan_past_damage
from kvstore.engine import Changes, Store, Sync, check_changes
from kvstore.errors import (
    ClosedError,
    CorruptionError,
    KVStoreError,
    ReadOnlyError,
    WriteRefusedError,
)
from kvstore.files import Files
from kvstore.filesystem import Directory, FileSystem, Lock
from kvstore.health import Health
from kvstore.index import MASK, OFFSET_SHIFT, SEGMENT_SHIFT, Moment, unpack
from kvstore.interval import sync_at_intervals
from kvstore.log import Log
from kvstore.manifest import MANIFEST, Manifest, read_manifest
from kvstore.record import check, wrong_type
from kvstore.recovery import Recovered
from kvstore.reports import CompactionReport, Stats, VerificationReport, counted
from kvstore.segment import SEGMENT_HEADER_BYTES, Segment
from kvstore.watermark import WATERMARK, WATERMARK_BYTES, read_watermark

T = TypeVar("T")
MISSING_KEY = object()  # stands for a default that nobody gave


class LogStore(Store):
    """A store in a log. `kvstore.open` makes one."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: Directory,
        manifest: Manifest,
        recovered: Recovered,
        segment_bytes: int,
        lock: Lock | None = None,
        sync: Sync = "os",
    ) -> None:
        self._is_open = False
        self._path = directory.path
        self._health = Health(self._path)
        self._index = recovered.index
        self._segments = recovered.segments
        self._files = Files(filesystem, directory, manifest, self._segments)
        self._log = Log(
            self._files,
            self._index,
            self._health,
            recovered.active,
            recovered.sequence,
            segment_bytes,
            sync_always=sync == "always",
        )
        self._compactor = Compactor(self._files, self._log)
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.torn_tail = recovered.torn_tail
        self._lock = lock
        self._unsafe: KVStoreError | None = None  # why closing it was no success
        if lock is None:
            self._health.trouble = ReadOnlyError(
                f'{self._path} is open with flag="r"; open it with "w"'
            )
        else:
            self._log.begin()
            if not isinstance(sync, str):
                sync_at_intervals(self, self._log, self._stop, sync)
        filesystem.tell_children(self)
        self._is_open = True

    def __getitem__(self, key: bytes) -> bytes:
        """Return the value of a key, after checking its checksum.

        Raises `KeyError` if there is none, and `CorruptionError` for damage.
        """
        location = self._index.get(key)
        if not location:
            raise self._missing(key)
        segment = self._segments.get(location >> SEGMENT_SHIFT)
        if segment is None:  # a compaction moved the record between the two look-ups
            return self[key]
        try:
            return segment.value(location >> OFFSET_SHIFT & MASK, location & MASK, key)
        except (CorruptionError, OSError):
            self._health.check_open()
            if self._index.get(key) == location:
                raise
            return self[key]  # it was moved, and then its old file was removed

    def _missing(self, key: object) -> Exception:
        """Return the error for a key that is not in the index."""
        if self._health.is_closed:
            return ClosedError(f"{self._path} is closed; open it again")
        return KeyError(key) if isinstance(key, bytes) else wrong_type("key", key)

    def _check_key(self, key: object) -> None:
        """Raise if there can't be such a key, whatever the store holds."""
        self._health.check_open()
        if not isinstance(key, bytes):
            raise wrong_type("key", key)

    @overload
    def get(self, key: bytes, /) -> bytes | None: ...
    @overload
    def get(self, key: bytes, /, default: bytes) -> bytes: ...
    @overload
    def get(self, key: bytes, /, default: T) -> bytes | T: ...
    def get(self, key: bytes, /, default: object = None) -> object:
        """Return the value of a key, or `default` if there is none."""
        if not self._index.get(key):
            self._check_key(key)
            return default
        try:
            return self[key]
        except KeyError:  # deleted meanwhile
            return default

    def __contains__(self, key: object) -> bool:
        """Say whether there is such a key, without reading its value."""
        if self._index.get(key):  # type: ignore[arg-type]
            return True
        self._check_key(key)
        return False

    def __len__(self) -> int:
        """Return the number of keys."""
        number = len(self._index)
        self._health.check_open()
        return number

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Put a value under a key. `open` says when that is on the disk.

        Raises `TypeError` and `LimitError` before anything is written, an `OSError` of
        the system (a full disk) with nothing changed, and `WriteRefusedError`.
        """
        check(key, value)
        if self._log.sync_always:
            self._log.write(lambda: {key: value})
        else:
            self._log.put(key, value)

    def __delitem__(self, key: bytes) -> None:
        """Delete a key. Raises `KeyError` if there is none, and what a put raises."""

        def delete() -> Changes:
            if not self._index.get(key):
                raise self._missing(key)
            check(key, b"")
            return {key: None}

        self._log.write(delete)

    def change(self, changes: Changes) -> None:
        """Make changes, all of them or none. `LimitError`: one write can't hold them."""
        check_changes(changes)

        def present() -> Changes:
            return {
                key: value
                for key, value in changes.items()
                if value is not None or self._index.get(key)
            }

        self._log.write(present)

    @overload
    def pop(self, key: bytes, /) -> bytes: ...
    @overload
    def pop(self, key: bytes, /, default: bytes) -> bytes: ...
    @overload
    def pop(self, key: bytes, /, default: T) -> bytes | T: ...
    def pop(self, key: bytes, /, default: object = MISSING_KEY) -> object:
        """Delete a key and return the value that it had, in one step.

        Without the key: return `default`, or raise `KeyError` if none is given.
        """
        found: list[object] = []

        def take() -> Changes:
            if not self._index.get(key):
                if default is MISSING_KEY:
                    raise self._missing(key)
                self._check_key(key)
                found.append(default)
                return {}
            found.append(self[key])
            return {key: None}

        self._log.write(take)
        return found[0]

    def popitem(self) -> tuple[bytes, bytes]:
        """Delete some key, and return it with its value. An empty store: `KeyError`."""
        found: list[tuple[bytes, bytes]] = []

        def take() -> Changes:
            key = self._index.some_key()
            if key is None:
                raise KeyError("the store is empty")
            found.append((key, self[key]))
            return {key: None}

        self._log.write(take)
        return found[0]

    def setdefault(self, key: bytes, default: bytes = b"", /) -> bytes:
        """Return the value of a key, after putting `default` there if it has none."""
        check(key, default)
        found: list[bytes] = []

        def put_if_missing() -> Changes:
            if self._index.get(key):
                found.append(self[key])
                return {}
            found.append(default)
            return {key: default}

        self._log.write(put_if_missing)
        return found[0]

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys that there are now, whatever is written meanwhile."""
        return self._keys(self._moment())

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys that there are now, and their values."""
        segments = self._segments  # first: a close puts others in their place
        moment = self._moment()
        self._log.active.map_all()
        return self._pairs(moment, segments)

    def _moment(self) -> Moment:
        return self._log.enter(self._log.moment)

    def _keys(self, moment: Moment) -> Iterator[bytes]:
        for key, _ in moment.layers.locations():
            yield key
        del moment  # nobody needs it any more, so what was changed can be folded
        self._log.fold()

    def _pairs(
        self, moment: Moment, segments: dict[int, Segment]
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, location in moment.layers.locations():
            number, offset, length = unpack(location)
            yield key, segments[number].value(offset, length, key)
        del moment
        self._log.fold()

    def check_writable(self) -> None:
        """Raise the reason, if there is one to refuse writes."""
        self._health.check()

    def sync(self) -> None:
        """Return when everything written so far is on the disk.

        Raises `StoreRemovedError` if the directory was removed meanwhile, and
        `WriteRefusedError` after an fsync that failed.
        """
        self._health.check_open()
        self._log.enter(self._log.sync)

    def compact(self, least_dead: float = 0.0) -> CompactionReport:
        """Merge segments in which something is dead, and give their space back.

        `least_dead` is the share of dead bytes, 0.0 to 1.0, from which on a segment is
        worth it. Readers and writers go on meanwhile. If there is no space for the new
        segments the system's error is raised, and nothing has changed. A file that an
        iteration still reads from goes when the iteration has ended.
        """
        if not 0 <= least_dead <= 1:
            raise ValueError(
                f"least_dead is {least_dead!r}; use a share from 0.0 to 1.0"
            )
        return self._log.enter(lambda: self._compactor.run(least_dead))

    def stats(self) -> Stats:
        """Count keys and bytes. Takes time in proportion to the number of keys."""
        moment = self._moment()
        keys, live = len(self), moment.live_bytes().total()
        del moment
        self._log.fold()
        sizes = self._files.sizes()
        size = sum(sizes.values())
        return Stats(
            keys=keys,
            segments=len(sizes),
            bytes_on_disk=size + self._files.manifest.size + WATERMARK_BYTES,
            live_bytes=live,
            dead_bytes=size - live - SEGMENT_HEADER_BYTES * len(sizes),
        )

    def verify(self) -> VerificationReport:
        """Read every byte of every file, and report what is damaged. Changes nothing."""
        pinned, active, sealed = self._log.enter(self._log.pin)
        damage = list(self._verify_manifest())
        records = 0
        for segment in (*sealed, active):
            for found in scan_past_damage(segment):
                if isinstance(found, Damage):
                    damage.append(found)
                else:
                    records += 1
        for segment in sealed:
            if not any(each.path == segment.path for each in damage):
                excess = segment.excess_bytes()
                if excess > 0:
                    reason = "the file goes on after its last record"
                    damage.append(Damage(segment.path, segment.size, excess, reason))
        size = sum(segment.size for segment in (*sealed, active))
        del pinned  # until here no file was removed
        return VerificationReport(len(sealed) + 1, records, size, tuple(damage))

    def _verify_manifest(self) -> Iterator[Damage]:
        """Read the manifest and the watermark once more."""
        filesystem, directory = self._files.filesystem, self._files.directory
        size = self._files.manifest.size
        try:
            read_manifest(filesystem, directory)
        except (KVStoreError, FileNotFoundError) as error:
            yield Damage(f"{self._path}/{MANIFEST}", 0, size, str(error))
        if self._lock and read_watermark(filesystem, directory) is None:
            path = f"{self._path}/{WATERMARK}"
            yield Damage(path, 0, WATERMARK_BYTES, "the watermark can't be read")

    def close(self) -> None:
        """Make everything durable, and let go of the store. Closing again does no harm.

        Raises `WriteRefusedError`, after letting go, if the store had to refuse writes:
        what was written last may not be on the disk; closing again raises it again.
        Raises `StoreRemovedError` if its directory was removed.
        """
        self._log.enter(self._close)

    def _close(self) -> None:
        log, files = self._log, self._files
        with self._compactor.compacting, files.changing, log.syncing, log.writing:
            if not self._health.is_closed:
                try:
                    self._finish()
                except BaseException as error:
                    self._give_up(error)
                    raise
            self._let_go()
            if self._unsafe is not None:  # the close before this one has failed
                raise type(self._unsafe)(*self._unsafe.args)

    def _finish(self) -> None:
        """Make everything durable, and then say in the watermark that we closed."""
        if self._health.trouble is None:
            self._log.sweep()
            self._files.check_directory()
            self._log.finish()
        elif not isinstance(self._health.trouble, ReadOnlyError):
            self._health.check()

    def _give_up(self, error: BaseException) -> None:
        """Let go after a close that failed. After an interrupt that came too early, don't."""
        if isinstance(error, KVStoreError) or not self._log.is_durable:
            if not isinstance(error, OSError | MemoryError | KVStoreError):
                return  # the store is open, and can be closed again
            self._unsafe = WriteRefusedError(
                f"closing {self._path} failed ({error!r}), and what was written last may "
                f"not be on the disk; open it again"
            )
        self._let_go()

    def _let_go(self) -> None:
        """Drop every file, but those that an iteration still needs. Safe to do again."""
        self._is_open = False
        closed = ClosedError(f"{self._path} is closed; open it again")
        self._health.trouble = self._files.directory.why_missing = closed
        self._log.let_go()
        self._index, self._segments = self._log.index, {}
        self._stop.put(None)
        if self._lock is not None:
            self._lock.release()

    def disown(self) -> None:
        """In a forked child: this store is the parent's. Reading is all that is left."""
        self._is_open = False
        self._stop = queue.SimpleQueue()
        self._log.disown()
        self._files.make_lock()
        self._compactor.make_lock()
        parents = ReadOnlyError(f"{self._path} belongs to the parent; open it here too")
        self._files.directory.why_missing = parents
        self._health.trouble = self._health.trouble or parents

    def __repr__(self) -> str:
        if self._health.is_closed:
            return f"<kvstore.Store {self._path!r}: closed>"
        size = sum(self._files.sizes().values())
        keys, size_in_words = counted(len(self._index), "key"), counted(size, "byte")
        return f"<kvstore.Store {self._path!r}: {keys}, {size_in_words}>"

    def __del__(self) -> None:
        if self._is_open:
            words = f"nobody closed {self!r}; use it in a with block, or call close()"
            warnings.warn(words, ResourceWarning, stacklevel=2)
