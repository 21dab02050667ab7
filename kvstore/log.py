"""The end of the store, where everything is written: append, sync, rotate.

A record is in the store when three things say so: the bytes in the file, the length up
to which they count, and the index. The bytes come first. Until the length has moved they
are nothing, and an append that fails or is interrupted cuts them off again. Length and
index then change in one assignment.

Two locks, always taken in this order, after the lock for changing files: one fsync at a
time, since of two the kernel tells only one that the disk has failed; and one write at a
time. Threads that wait for an fsync share it: the group commit of DeWitt and others
(1984). What is left out is a buffer of our own. A put costs a system call, and outlives
the process when it returns.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Final, Literal, NamedTuple, TypeVar

from kvstore.engine import Changes
from kvstore.errors import ClosedError, ReentrantError
from kvstore.files import Files
from kvstore.health import Health, reentrant
from kvstore.index import GONE, OFFSET_SHIFT, SEGMENT_SHIFT, Index, Layer, Moment, pack
from kvstore.record import CONTINUED, DELETE, PUT, encode
from kvstore.segment import Segment, SegmentMeta
from kvstore.watermark import WatermarkFile

T = TypeVar("T")
State = Literal["ready", "busy", "full", "rotating", "failed", "broken"]
READY: Final = "ready"  # for a record
BUSY: Final = "busy"  # a record is on its way
FULL: Final = "full"  # the next record goes to a new segment
ROTATING: Final = "rotating"  # to a new segment; meanwhile the old one takes records
FAILED: Final = "failed"  # cut off what it left, and have the manifest note the end
BROKEN: Final = "broken"  # an interrupt came while a write was being undone

logger = logging.getLogger("kvstore")


class Durable(NamedTuple):
    """How far the log is known to be on the disk."""

    sequence: int
    meta: SegmentMeta


class Log:
    """The active segment, and the two locks for it."""

    def __init__(
        self,
        files: Files,
        index: Index,
        health: Health,
        active: Segment,
        sequence: int,
        segment_bytes: int,
        *,
        sync_always: bool,
    ) -> None:
        self.files = files
        self.index = index
        self.health = health
        self.active = active
        self.sequence = sequence  # of the last record that was written or has failed
        self.segment_bytes = segment_bytes
        self.sync_always = sync_always
        self.durable = Durable(sequence, active.meta())
        self._watermark: WatermarkFile | None = None  # of a writer
        self.state: State = self._state_at(active.size)
        self._inside: dict[int, None] = {}  # threads, by their numbers
        self.make_locks()

    def make_locks(self) -> None:
        """Make the locks."""
        self.syncing = threading.RLock()
        self.writing = threading.RLock()

    def disown(self) -> None:
        """In a forked child: the threads that held the locks, or were writing, are not here."""
        self.make_locks()
        self._inside = {}
        self.state = READY
        if self._watermark is not None:
            self.active.takes_no_more()

    def _state_at(self, size: int) -> State:
        return READY if size < self.segment_bytes else FULL

    def put(self, key: bytes, value: bytes) -> None:
        """Write one record.

        The straight way. What stands in it (a full segment, an index in several layers)
        is left to `write`.
        """
        with self.writing:
            index, active = self.index, self.active
            trouble = self.health.trouble
            if self.state is READY and not index.frozen and trouble is None:
                self.state = BUSY
                try:
                    self.sequence += 1  # first: a number that fails is used up
                    raw = encode(PUT, self.sequence, key, value, active.seed)
                    offset = active.append(raw)
                    place = active.number << SEGMENT_SHIFT | offset << OFFSET_SHIFT
                    place |= len(raw)
                    end = offset + len(raw)
                    after: State = READY if end < self.segment_bytes else FULL
                    index.top[key], active.size, self.state = place, end, after
                except BaseException as error:
                    try:
                        self._cut_off(error)
                    except BaseException:  # one more interrupt
                        self.state = BROKEN
                        raise
                    raise
                return
        self.write(lambda: {key: value})

    def _cut_off(self, error: BaseException) -> None:
        """Cut off what a failed append has left. The next one waits for a manifest.

        Without that a power cut could bring up a piece of what failed in the place of what
        comes next.
        """
        active = self.active
        if isinstance(error, OSError):
            error.filename = active.path
        try:
            active.cut(active.size)
        except OSError as cause:
            what = f"cutting {active.path} to {active.size} bytes"
            self.health.trouble = what, cause
            self.health.check()
        self.state = FAILED

    def write(self, decide: Callable[[], Changes]) -> None:
        """Write changes as one run of records; with `sync_always`, wait for the disk.

        `decide` returns them. It is called when nothing else can be written before them,
        so it can look at what the store holds, and may raise: then nothing is written.
        """
        self.enter(lambda: self._write(decide))

    def enter(self, work: Callable[[], T]) -> T:
        """Do some work that takes locks, unless this thread is inside already.

        A signal handler or a finalizer runs inside whatever its thread is doing. If that
        holds a lock, and the handler waits for it or for one before it, it waits for
        ever. Raises `ReentrantError` instead, before anything is done.
        """
        thread = get_ident()
        with self.writing:
            if self.state is BUSY or thread in self._inside:
                raise reentrant()
        self._inside[thread] = None
        try:
            return work()
        finally:
            self._inside.pop(thread, None)  # a child has none

    def _write(self, decide: Callable[[], Changes]) -> None:
        while not self._append_now(decide):
            self._make_ready()
        if self.sync_always:
            self.sync_through(self.sequence)

    def _append_now(self, decide: Callable[[], Changes]) -> bool:
        """Append, if a record can be appended as things are; say whether it could."""
        with self.writing:
            takes_records = self._takes_records()
            if takes_records:
                self._append(decide)
        return takes_records

    def _takes_records(self) -> bool:
        """Say whether a record can be appended as things are, or raise why none ever can."""
        self.health.check()
        if self.state is BUSY:
            raise reentrant()
        if self.state is BROKEN:
            twice = InterruptedError("interrupted twice")
            self.health.trouble = "undoing a write", twice
            self.health.check()
        if self.state is ROTATING:
            return self.active.size < 2 * self.segment_bytes
        return self.state is READY

    def _append(self, decide: Callable[[], Changes]) -> None:
        """Write what is decided, all of it or nothing. The lock for writes is held."""
        active, before = self.active, self.state
        after = before
        began = False
        places: Layer | None = None  # until the bytes count
        self.state = BUSY
        try:
            changes = decide()
            if changes:
                run, new_places = self._run_of(changes)
                end = active.size + len(run)
                after = before if before is ROTATING else self._state_at(end)
                began = True
                active.append(run)
                places, active.size = new_places, end
                self.index.apply(places)
            self.state = after
        except BaseException as error:
            try:
                if places is not None:
                    self.index.apply(places)
                    self.state = after
                elif began:
                    self._cut_off(error)
                else:
                    self.state = before
            except BaseException:  # one more interrupt
                self.state = BROKEN
                raise
            raise
        self.index.fold()

    def _run_of(self, changes: Changes) -> tuple[bytes, Layer]:
        """Return changes as records, and where each key will be when they are written."""
        active, run, places = self.active, [], {}
        offset, left = active.size, len(changes)
        for key, value in changes.items():
            left -= 1
            self.sequence += 1
            kind = (DELETE if value is None else PUT) | (CONTINUED if left else 0)
            raw = encode(kind, self.sequence, key, value or b"", active.seed)
            place = pack(active.number, offset, len(raw))
            places[key] = GONE if value is None else place
            run.append(raw)
            offset += len(raw)
        return b"".join(run), places

    def sync(self) -> None:
        """Return when everything written so far is on the disk, under a name."""
        self.health.check_open()
        self.sync_through(self.sequence)
        self.files.check_directory()

    def sync_through(self, sequence: int) -> None:
        """Return when all records up to a sequence number are on the disk.

        Threads that wait here for the lock mostly find, when they get it, that the fsync
        of the one before them covered their records too.
        """
        with self.syncing:
            if self.durable.sequence >= sequence:
                return
            with self.writing:
                self.health.check()
                if self.state is BUSY:
                    raise reentrant()
                reached = Durable(self.sequence, self.active.meta())
            self._sync_active()
            self.durable = reached
            self._move_watermark(reached.meta)
            self.files.check_directory()

    def _sync_active(self) -> None:
        """Sync the active segment. The lock for syncing is held.

        If that fails, nobody knows which of the last records are on the disk.
        """
        try:
            self.active.sync()
        except (OSError, MemoryError) as error:
            self.health.trouble = "an fsync", error
            if isinstance(error, OSError):
                error.filename = self.active.path
            raise

    def _move_watermark(self, reached: SegmentMeta) -> None:
        """Note how far the fsync reached, if that can be noted.

        An error here is no error of the sync: the records are on the disk, and a watermark
        that stays where it was is only too modest.
        """
        assert self._watermark is not None
        try:
            self._watermark.write(reached)
        except OSError as error:
            path = self.files.directory.path
            logger.warning("%s: the watermark could not be moved: %s", path, error)

    def begin(self) -> None:
        """Note that the store is in use, before the first record."""
        self._watermark = WatermarkFile(self.files.filesystem, self.files.directory)
        self._watermark.write(self.active.meta())
        self._watermark.sync()
        self.files.directory.sync()

    def _make_ready(self, *, rotate: bool = False) -> None:
        """Make the log ready for a record, if no other thread did so meanwhile."""
        with self.files.changing, self.syncing:
            with self.writing:
                self._takes_records()
                if self.state is FAILED:
                    self._note_the_end()
                if self.state is READY and not rotate:
                    return
                self.state = ROTATING
            self._rotate()

    def _note_the_end(self) -> None:
        """Have the manifest say where the next record begins, after an append has failed."""
        self.active.cut(self.active.size)
        self._sync_active()
        reached = Durable(self.sequence, self.active.meta())
        manifest = self.files.manifest.advanced(*reached)
        self.files.write_aside(manifest)
        try:
            self.files.install(manifest)
            self.durable, self.state = reached, self._state_at(self.active.size)
        except BaseException as error:
            self.health.trouble = "the change of the manifest", error
            raise

    def rotate(self) -> None:
        """Seal the active segment, full or not, and begin another."""
        self._make_ready(rotate=True)

    def _rotate(self) -> None:
        """Begin a new segment, while others still write to the old one."""
        fresh: list[Segment] = []
        try:
            fresh.append(self.files.new_segment())
            if self._unsynced_bytes() > MUCH:
                self._sync_active()  # so that little is left when others have to wait
            with self.writing:
                self._switch_to(fresh[0])
        except BaseException:
            with self.writing:
                if self.state is ROTATING:
                    self.state = FULL
            if self.health.trouble is None:  # or else nobody knows what it names
                self.files.discard(fresh)
            raise
        self.sweep()

    def sweep(self) -> None:
        """Remove retired segments that no iteration needs any more."""
        self.files.sweep(self._alone(self.index.oldest_moment))

    def _unsynced_bytes(self) -> int:
        number, _, length = self.durable.meta
        return self.active.size - (length if number == self.active.number else 0)

    def _switch_to(self, fresh: Segment) -> None:
        """Seal the active segment, and go on in a new one. All three locks are held.

        The order matters: what is sealed is on the disk before the manifest says so, and
        the manifest is on the disk before the new segment takes a record.
        """
        self._takes_records()
        old = self.active
        old.cut(old.size)
        self._sync_active()
        reached = Durable(self.sequence, fresh.meta())
        manifest = self.files.manifest.rotated(old.meta(), fresh.meta(), self.sequence)
        self.files.write_aside(manifest)
        try:
            self.files.install(manifest, [fresh])
            self.active, self.durable, self.state = fresh, reached, READY
        except BaseException as error:
            self.health.trouble = "the change to a new segment", error
            raise
        old.takes_no_more()

    def moment(self) -> Moment:
        """Return what the index holds now, for somebody who wants to go through all of it."""
        layers = self.index.merge_layers()
        return self._alone(lambda: self.index.moment(*layers))

    def _alone(self, work: Callable[[], T]) -> T:
        """Do some work while nobody writes, from inside neither."""
        with self.writing:
            if self.state is BUSY:
                raise reentrant()
            self.health.check_open()
            before = self.state
            self.state = BUSY
            try:
                return work()
            finally:
                self.state = before

    def pin(self) -> tuple[Moment, Segment, list[Segment]]:
        """Return the active segment and the sealed ones.

        As long as somebody has the moment that comes with them, their files stay.
        """
        with self.files.changing, self.writing:
            self.health.check_open()
            return self.index.pin(), self.active, self.files.sealed()

    def fold(self) -> None:
        """Fold what was changed during an iteration, while others write between the steps."""
        with suppress(ReentrantError, ClosedError):  # it can wait, or need not be done
            while self._alone(self.index.fold):
                pass

    def move_records(self, moves: list[tuple[bytes, int, int]]) -> None:
        """Point the index to where a compaction has copied records, some at a time."""
        for start in range(0, len(moves), MOVES_AT_A_TIME):
            some = moves[start : start + MOVES_AT_A_TIME]
            self._alone(lambda some=some: self.index.move(some))  # type: ignore[misc]

    def finish(self) -> None:
        """Make everything durable, the watermark too, and say in it that we closed.

        If an append has failed just before, the next open has to note the end as it does
        after a crash.
        """
        with self.files.changing, self.syncing, self.writing:
            self._takes_records()
            closed = self.state is not FAILED
            self.state = FULL if closed else FAILED  # so a put from inside has to ask
            self._alone(lambda: self._finish(closed))

    def _finish(self, closed: bool) -> None:
        self.active.cut(self.active.size)
        self._sync_active()
        self.durable = Durable(self.sequence, self.active.meta())
        assert self._watermark is not None
        self._watermark.write(self.durable.meta, closed=closed)
        self._watermark.sync()

    @property
    def is_durable(self) -> bool:
        """Say whether everything written is on the disk."""
        return self.health.trouble is None and self.durable.sequence == self.sequence

    def let_go(self) -> None:
        """Drop every file, but keep for an iteration that goes on what it needs."""
        if self.index.is_needed:
            self.files.hold_for_iterations()
        else:
            self.active.close()
            self.files.let_go()
        self._watermark = None
        self.index = self.index.emptied()


MUCH = 1 << 20  # bytes to sync, which take longer than the rest of a rotation
MOVES_AT_A_TIME = 1000
