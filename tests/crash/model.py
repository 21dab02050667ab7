"""A store and a dict are told the same, and hold the same, whatever they are told.

Hypothesis draws the story: every operation of the store in any order, and between them
processes that are killed, power cuts, failed fsyncs and full disks. The dict beside the
store remembers more than its contents: every state since the last one that is known to be
on the disk. After a crash the store has to hold one of those, and goes on from there.

A case is the seed of some stories.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from textwrap import shorten
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from proof import Broken, Contents, Tally

import kvstore
from kvstore.manifest import MANIFEST, read_manifest
from kvstore.mark import MARK
from kvstore.record import OVERHEAD_BYTES
from kvstore.segment import HEADER_BYTES, segment_name
from kvstore.simdisk import Image, Operation, Picks, PowerCut, SimulatedDisk, no_fault
from kvstore.store import Flag, Sync

NAME = "model"
CASES = [str(number) for number in range(1, 17)]

ONE_WRITER = "T1, one writer: there is one at a time, and readers change nothing"
ONE_MOMENT = "T2, one moment: the files change, and what they hold does not"
NEWEST = "T3, the newest, checked: a store answers as a dict does"
STILL = "T4, a still picture: who reads sees what was there when the reading began"
WHOLE = "T5, all or nothing: a batch is made wholly or not at all"
ONLY_THE_END = "T6, only the end: what a crash takes is the end of the history"
SAFE = "T7, safe when you say: no crash takes what was acknowledged"
NO_GUESSES = "T8, no guesses: the store says what is so, or raises the right error"

PATH = "store"
MANIFEST_PATH = f"{PATH}/{MANIFEST}"
MARK_PATH = f"{PATH}/{MARK}"
HOUR = 3600.0  # an interval that does not end while a story lasts
ABSENT = b"absent"
OUTCOMES = 5  # how many are looked at of each power cut

# Hypothesis mixes in constants that it finds in the modules that happen to be loaded, none
# of them below 100. With small numbers and lists they don't change the story of a seed.
SEEDS = st.integers(0, 99)
KEYS = st.sampled_from([b"", b"\0", *(b"%d" % number for number in range(8))])
# Half of the values are equally long. So a record that a crash took fits the place where it
# lay when the next ones are written, and could come back unnoticed.
VALUES = st.sampled_from(
    [bytes([letter]) * n for n in (1, 1, 1, 1, 0, 30, 700) for letter in b"abcdefghij"]
)
UPDATES = st.dictionaries(KEYS, VALUES, max_size=4)
CHANGES = st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=5)
SYNCS = st.sampled_from(["os", "always", HOUR])
SIZES = st.sampled_from([5000, 5000, 200, 60, 1])
SHARES = st.sampled_from([0.0, 0.3, 0.5, 0.7])

Changes = list[tuple[bytes, bytes | None]]  # None: the key is deleted, if it is there

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    max_examples=16,
    stateful_step_count=40,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


class Unkept(AssertionError):
    """A promise that was broken, and how."""

    def __init__(self, promise: str, state: str) -> None:
        super().__init__(promise, state)
        self.promise = promise
        self.state = state


@contextmanager
def keeps(promise: str) -> Iterator[None]:
    """Take whatever goes wrong for this promise broken, unless another is named."""
    try:
        yield
    except Unkept:
        raise
    except Exception as error:
        raise Unkept(promise, f"{type(error).__name__}: {error}") from error


def equal(found: object, expected: object, what: str) -> None:
    """Compare, and say what differs."""
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, expected was {expected!r}")


def raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    """Make a call that has to raise an error."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what} raised no {error.__name__}")


def after(state: Contents, changes: Iterable[tuple[bytes, bytes | None]]) -> Contents:
    """Return what a state becomes by some changes."""
    result = dict(state)
    for key, value in changes:
        if value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


class History:
    """The states of a store: the last that is known to be on the disk, and all since."""

    def __init__(self) -> None:
        self.states: list[Contents] = [{}]
        self._older: list[Contents] = []

    @property
    def now(self) -> Contents:
        """Return what the store holds."""
        return self.states[-1]

    def becomes(self, state: Contents) -> None:
        """Note a change that is made, or may be."""
        self.states.append(state)

    def forget(self) -> None:
        """Take back the last change: it was not made."""
        self.states.pop()

    def is_safe(self) -> None:
        """Note that no crash may take anything of what the store holds now."""
        self._older += self.states[:-1]
        self.states = [self.now]

    def check(self, found: Contents, crash: str) -> None:
        """See that what a crash has left is a state that it may leave."""
        if found not in self.states:
            possible = " or ".join(map(repr, self.states))
            state = f"after {crash} it holds {found!r}, possible was {possible}"
            raise Unkept(self._broken(found), state)

    def goes_on_from(self, found: Contents, crash: str) -> None:
        """Go on with what a crash has left."""
        self.check(found, crash)
        self._older += self.states[: self.states.index(found)]
        self.states = [found]

    def _broken(self, found: Contents) -> str:
        """Return the promise that a store broke which holds this after a crash."""
        if found in self._older:
            return SAFE
        steps = itertools.pairwise(self._older + self.states)
        return WHOLE if any(between(found, *step) for step in steps) else ONLY_THE_END


def between(found: Contents, before: Contents, then: Contents) -> bool:
    """Say whether a part of the changes from one state to the next is there."""
    keys = found.keys() | before.keys() | then.keys()
    return all(found.get(k) in (before.get(k), then.get(k)) for k in keys)


class FailingSync:
    """A disk whose fsync fails once, after so many that succeed."""

    def __init__(self, successes: int) -> None:
        self._successes = successes
        self.struck: Operation | None = None

    def __call__(self, operation: Operation) -> int | None:
        if operation.name == "sync" and self.struck is None:
            if not self._successes:
                self.struck = operation
                raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)
            self._successes -= 1
        return None


class FullDisk:
    """A disk that has room for so many bytes, and is mended after its first error.

    The mark is written over where it stands, which takes no room.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self.struck: Operation | None = None

    def __call__(self, operation: Operation) -> int | None:
        if operation.name not in ("write", "create") or operation.path == MARK_PATH:
            return None
        if self.struck is not None:
            return None
        if not self._room:
            self.struck = operation
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)
        taken = min(self._room, operation.length)
        self._room -= taken
        return taken


@contextmanager
def failing(disk: SimulatedDisk, fault: FailingSync | FullDisk) -> Iterator[None]:
    """Have a disk fail while the block lasts."""
    disk.fault = fault
    try:
        yield
    finally:
        disk.fault = no_fault


def log_path(disk: SimulatedDisk) -> str:
    """Return the segment that takes new records."""
    return f"{PATH}/{segment_name(read_manifest(disk, PATH).active.number)}"


def segments(disk: SimulatedDisk) -> Image:
    """Return the segments on a disk."""
    image = disk.image()
    return {path: raw for path, raw in image.items() if path.endswith(".segment")}


def records(disk: SimulatedDisk) -> bytes:
    """Return the records on a disk, those of all segments in a row."""
    return b"".join(raw[HEADER_BYTES:] for _, raw in sorted(segments(disk).items()))


def changed(before: Image, after: Image) -> list[str]:
    """Return the files that differ."""
    paths = sorted(before.keys() | after.keys())
    return [path for path in paths if before.get(path) != after.get(path)]


def in_words(cut: PowerCut, picks: Picks) -> str:
    """Say which outcome of a power cut this is."""
    return f"a power cut ({shorten(cut.describe(picks), 300)})"


def bytes_last(cut: PowerCut) -> Picks:
    """Return the outcome where all has arrived but the bytes behind what files held."""
    return tuple(
        0 if doubt.ways[0] == "never written" else len(doubt.ways) - 1
        for doubt in cut.doubts
    )


def readable(db: kvstore.Store) -> dict[bytes, bytes | None]:
    """Return what a store holds, None for a value that it says is damaged."""
    found: dict[bytes, bytes | None] = dict.fromkeys(db)
    for key in found:
        with suppress(kvstore.CorruptionError):
            found[key] = db[key]
    return found


def agrees(found: dict[bytes, bytes | None], state: Contents) -> bool:
    """Say whether what can be read is what a state says."""
    return found.keys() == state.keys() and all(
        value in (None, state[key]) for key, value in found.items()
    )


def record_bytes(key: bytes, value: bytes) -> int:
    """Return how long a record is."""
    return OVERHEAD_BYTES + len(key) + len(value)


def make(db: kvstore.Store, changes: Changes) -> None:
    """Make some changes as one batch."""
    with db.batch() as batch:
        fill(batch, dict(db), changes)


@keeps(WHOLE)
def fill(batch: kvstore.Batch, before: Contents, changes: Changes) -> None:
    """Put and delete in a batch; to delete what is not there is a `KeyError`."""
    for number, (key, value) in enumerate(changes):
        if value is not None:
            batch[key] = value
        elif key in after(before, changes[:number]):
            del batch[key]
        else:
            raises(KeyError, partial(batch.__delitem__, key), f"del batch[{key!r}]")


def update_in_batch(db: kvstore.Store, update: Contents) -> None:
    """Put several keys as one batch."""
    with db.batch() as batch:
        for key, value in update.items():
            batch[key] = value


def writes(db: kvstore.Store) -> dict[str, Callable[[], object]]:
    """Return ways to write to a store that has to refuse them all."""
    ways: dict[str, Callable[[], object]] = {
        "a put": lambda: db.__setitem__(b"1", b""),
        "setdefault": lambda: db.setdefault(ABSENT, b""),
        "update": lambda: db.update({b"1": b""}),
        "a batch": lambda: update_in_batch(db, {ABSENT: b""}),
        "a compaction": db.compact,
    }
    return ways | {f"del db[{key!r}]": partial(db.__delitem__, key) for key in db}


def wrong_types(db: kvstore.Store, text: Any) -> dict[str, Callable[[], object]]:
    """Return calls with something that is not bytes."""
    return {
        "db[text]": lambda: db[text],
        "get": lambda: db.get(text),
        "in": lambda: text in db,
        "put of a key": lambda: db.__setitem__(text, b""),
        "put of a value": lambda: db.__setitem__(b"1", text),
        "del": lambda: db.__delitem__(text),
        "pop": lambda: db.pop(text, None),
        "setdefault of a key": lambda: db.setdefault(text, b""),
        "setdefault of a value": lambda: db.setdefault(ABSENT, text),
        "update": lambda: db.update({text: b""}),
        "a batch": lambda: update_in_batch(db, {b"1": b"", b"2": text}),
    }


def uses(db: kvstore.Store) -> dict[str, Callable[[], object]]:
    """Return every way to use a store, for one that is closed."""
    return {
        "get": lambda: db.get(b"1"),
        "in": lambda: b"1" in db,
        "len": lambda: len(db),
        "iter": lambda: iter(db),
        "keys": lambda: list(db.keys()),
        "items": lambda: list(db.items()),
        "values": lambda: list(db.values()),
        "put": lambda: db.__setitem__(b"1", b""),
        "del": lambda: db.__delitem__(b"1"),
        "pop": lambda: db.pop(b"1", None),
        "popitem": db.popitem,
        "setdefault": lambda: db.setdefault(b"1", b""),
        "update": lambda: db.update({b"1": b""}),
        "clear": db.clear,
        "a batch": lambda: update_in_batch(db, {b"1": b""}),
        "sync": db.sync,
        "compact": db.compact,
        "stats": db.stats,
        "verify": db.verify,
    }


class StoreAndDict(RuleBasedStateMachine):
    """What can be done to a store, done to a dict as well."""

    tally: ClassVar[Tally]
    disk: SimulatedDisk
    db: kvstore.Store
    sync_mode: Sync
    segment_bytes: int
    steps: int = 0

    @initialize(sector=st.sampled_from([1, 512, 4096]), sync=SYNCS, size=SIZES)
    @keeps(NEWEST)
    def begin(self, sector: int, sync: Sync, size: int) -> None:
        """Begin with nothing."""
        self.sync_mode, self.segment_bytes = sync, size
        self.disks = itertools.count(1)
        self.disk = SimulatedDisk(sector_bytes=sector)
        self.history = History()
        self.open()

    def open(self, flag: Flag = "c") -> None:
        """Open the store."""
        self.db = kvstore.open(
            PATH,
            flag,
            sync=self.sync_mode,
            segment_bytes=self.segment_bytes,
            filesystem=self.disk,
        )

    def close(self) -> None:
        """Close the store. From then on all that it holds is safe."""
        self.db.close()
        self.history.is_safe()

    def is_done(self) -> None:
        """Note that a change has returned."""
        if self.sync_mode == "always":
            self.history.is_safe()

    def becomes(self, *changes: tuple[bytes, bytes | None]) -> None:
        """Change the dict as the store was changed."""
        self.history.becomes(after(self.history.now, changes))
        self.is_done()

    @rule(key=KEYS, value=VALUES)
    @keeps(NEWEST)
    def put(self, key: bytes, value: bytes) -> None:
        """Put a key."""
        self.db[key] = value
        self.becomes((key, value))

    @rule(key=KEYS)
    @keeps(NEWEST)
    def delete(self, key: bytes) -> None:
        """Delete a key, or fail if it is not there."""
        if key in self.history.now:
            del self.db[key]
            self.becomes((key, None))
        else:
            raises(KeyError, partial(self.db.__delitem__, key), f"del db[{key!r}]")

    @rule(key=KEYS)
    @keeps(NEWEST)
    def pop(self, key: bytes) -> None:
        """Remove a key and get its value, or the default."""
        equal(self.db.pop(key, None), self.history.now.get(key), f"pop({key!r})")
        self.becomes((key, None))

    @rule()
    @keeps(NEWEST)
    def popitem(self) -> None:
        """Remove some key, or fail if there is none."""
        if self.history.now:
            key, value = self.db.popitem()
            equal(self.history.now.get(key), value, f"popitem, for {key!r},")
            self.becomes((key, None))
        else:
            raises(KeyError, self.db.popitem, "popitem of an empty store")

    @rule(key=KEYS, value=VALUES)
    @keeps(NEWEST)
    def setdefault(self, key: bytes, value: bytes) -> None:
        """Put a key if it is not there."""
        value_now = self.history.now.get(key, value)
        equal(self.db.setdefault(key, value), value_now, f"setdefault({key!r})")
        if key not in self.history.now:
            self.becomes((key, value))

    @rule(update=UPDATES)
    @keeps(NEWEST)
    def update(self, update: Contents) -> None:
        """Put several keys, one after the other."""
        self.db.update(update)
        for change in update.items():
            self.becomes(change)

    @rule()
    @keeps(NEWEST)
    def clear(self) -> None:
        """Delete everything, one key after the other."""
        keys = list(self.db)
        self.db.clear()
        for key in keys:
            self.becomes((key, None))

    @rule(changes=CHANGES, end=st.sampled_from(["whole", "an error", "a wrong type"]))
    @keeps(WHOLE)
    def batch(self, changes: Changes, end: str) -> None:
        """Change several keys, wholly or not at all."""
        before = self.history.now
        text: Any = "text"
        with suppress(ZeroDivisionError, TypeError), self.db.batch() as batch:
            fill(batch, before, changes)
            changed = {
                key for key, value in changes if value is not None or key in before
            }
            equal(len(batch), len(changed), "the length of the batch")
            equal(dict(self.db), before, "the store, before the batch ends,")
            if end == "an error":
                raise ZeroDivisionError
            if end == "a wrong type":
                batch[b"1"] = text
        raises(kvstore.ClosedError, lambda: len(batch), "a batch behind its block")
        if end == "whole":
            self.becomes(*changes)

    def change(self, changes: Changes) -> None:
        """Put and delete, one after the other."""
        for key, value in changes:
            if value is None:
                self.db.pop(key, None)
            else:
                self.db[key] = value
            self.becomes((key, value))

    @rule(changes=CHANGES, then=st.sampled_from(["go on", "compact", "reopen"]))
    @keeps(STILL)
    def iterate(self, changes: Changes, then: str) -> None:
        """Write in the middle of an iteration, which does not see it."""
        expected = list(self.db.items())
        items, keys = iter(self.db.items()), iter(self.db)
        values = iter(self.db.values())
        begun = list(itertools.islice(items, 1))
        self.change(changes)
        self.call(then)
        equal(begun + list(items), expected, "the items")
        equal(list(keys), [key for key, _ in expected], "the keys")
        equal(list(values), [value for _, value in expected], "the values")

    @rule(changes=CHANGES, then=st.sampled_from(["go on", "compact", "reopen"]))
    @keeps(STILL)
    def read_beside(self, changes: Changes, then: str) -> None:
        """Open the store beside its writer, for reading only."""
        before, image = self.history.now, self.disk.image()
        with kvstore.open(PATH, "r", filesystem=self.disk) as reader:
            equal(dict(reader), before, "the reader")
            self.change(changes)
            self.call(then)
            image = self.disk.image()
            equal(dict(reader), before, "the reader, after the writer went on,")
            equal(reader.torn_tail, None, "the tail that the reader saw")
            raises(kvstore.ReadOnlyError, lambda: reader.update({b"1": b""}), "a put")
        with keeps(ONE_WRITER):
            equal(changed(image, self.disk.image()), [], "what the reader has changed")

    @rule()
    @keeps(SAFE)
    def sync(self) -> None:
        """Make all that is done safe."""
        self.call("sync")

    @rule(least_dead=SHARES)
    @keeps(ONE_MOMENT)
    def compact(self, least_dead: float) -> None:
        """Compact, and see that what is gone is what was taken up and was dead."""
        before = sum(map(len, segments(self.disk).values()))
        done = self.compacted(least_dead)
        left = sum(map(len, segments(self.disk).values()))
        gone = done.bytes_before - done.bytes_after
        if before - left not in (gone, gone - HEADER_BYTES):  # of a segment it began
            raise AssertionError(f"{done} freed {before - left} bytes")
        if not least_dead:
            equal(self.db.stats().dead_bytes, 0, "the dead bytes that are left")

    def compacted(self, least_dead: float) -> kvstore.Compaction:
        """Compact, and see that the files hold what they held."""
        done = self.db.compact(least_dead)
        if done.segments_before:
            self.history.is_safe()
        with keeps(ONE_MOMENT), kvstore.open(PATH, "r", filesystem=self.disk) as reader:
            equal(dict(reader), self.history.now, "the files, after a compaction,")
        return done

    def call(self, what: str) -> None:
        """Make one call on the store as a whole."""
        if what == "sync":
            self.db.sync()
            self.history.is_safe()
        elif what == "compact":
            self.compacted(0.5)
        elif what == "reopen":
            self.close()
            self.open()

    @rule()
    @keeps(NO_GUESSES)
    def report(self) -> None:
        """Hold what the store says of itself against its files."""
        now, image, files = self.history.now, self.disk.image(), segments(self.disk)
        size = sum(map(len, files.values()))
        live = sum(record_bytes(*item) for item in now.items())
        stats = kvstore.Stats(
            keys=len(now),
            segments=len(files),
            bytes_on_disk=size + len(image[MANIFEST_PATH]) + len(image[MARK_PATH]),
            live_bytes=live,
            dead_bytes=size - live - HEADER_BYTES * len(files),
        )
        equal(self.db.stats(), stats, "stats")
        found = self.db.verify()
        read = (found.ok, found.segments, found.bytes_read)
        equal(read, (True, len(files), size), "ok, segments and bytes of verify")
        keys = "1 key" if len(now) == 1 else f"{len(now)} keys"
        words = f"<kvstore.Store {PATH!r}: {keys}, {size:,} bytes>"
        equal(repr(self.db), words, "repr")

    @rule()
    @keeps(NO_GUESSES)
    def salvage(self) -> None:
        """Salvage the store, of which nothing is damaged."""
        copy = SimulatedDisk(self.disk.image())
        report = kvstore.salvage(PATH, "rescued", filesystem=copy)
        equal(report.keys, len(self.history.now), "the keys of the salvage")
        equal((report.manifest_read, report.left_out), (True, ()), "the salvage")
        with kvstore.open("rescued", "r", filesystem=copy) as rescued:
            equal(dict(rescued), self.history.now, "what was rescued")

    @rule(flag=st.sampled_from(["c", "w", "n"]))
    @keeps(ONE_WRITER)
    def open_twice(self, flag: Flag) -> None:
        """Open the store for writing while it is open."""
        image = self.disk.image()
        raises(kvstore.LockedError, lambda: self.open(flag), "a second open")
        equal(changed(image, self.disk.image()), [], "what a second open has changed")

    @rule(wrong=st.sampled_from(["text", None, 7, bytearray(b"1")]))
    @keeps(NO_GUESSES)
    def mistake_types(self, wrong: object) -> None:
        """Use what is not bytes."""
        before = records(self.disk)
        for what, call in wrong_types(self.db, wrong).items():
            raises(TypeError, call, f"{what} with {wrong!r}")
        equal(records(self.disk), before, "the records")

    @rule()
    @keeps(NO_GUESSES)
    def use_after_close(self) -> None:
        """Close the store, use it all the same, and open it again."""
        self.close()
        self.db.close()
        for what, call in uses(self.db).items():
            raises(kvstore.ClosedError, call, f"{what} after close")
        equal(repr(self.db), f"<kvstore.Store {PATH!r}: closed>", "repr")
        self.open()

    @rule(flag=st.sampled_from(["c", "w"]), sync=SYNCS, size=SIZES)
    @keeps(SAFE)
    def reopen(self, flag: Flag, sync: Sync, size: int) -> None:
        """Close the store, and open it with other options."""
        self.close()
        self.sync_mode, self.segment_bytes = sync, size
        self.open(flag)
        equal(self.db.torn_tail, None, "the tail of a store that was closed")

    @rule()
    @keeps(ONE_MOMENT)
    def begin_anew(self) -> None:
        """Close the store, and begin with an empty one in its place."""
        self.close()
        self.open("n")
        self.history.becomes({})
        self.history.is_safe()

    @rule()
    @keeps(SAFE)
    def kill(self) -> None:
        """End the process. Everything that has returned is there."""
        self.tally["kills of the model*"] += 1
        self.disk.end_process()
        self.history.is_safe()
        self.recover("a kill")
        equal(self.db.torn_tail, None, "the tail after a kill")

    @rule(
        changes=CHANGES,
        together=st.booleans(),
        closed=st.sampled_from([False, False, False, True]),
        seed=SEEDS,
    )
    @keeps(ONLY_THE_END)
    def lose_power(
        self, changes: Changes, together: bool, closed: bool, seed: int
    ) -> None:
        """Write and lose power. What is lost is the end of what was not known to be safe."""
        if together:
            make(self.db, changes)
            self.becomes(*changes)
        else:
            self.change(changes)
        if closed:
            self.close()
        self.recover(self.power_cut(seed))

    @rule(synced=st.integers(0, 3), seed=SEEDS)
    @keeps(ONLY_THE_END)
    def lose_power_twice(self, synced: int, seed: int) -> None:
        """Lose records, write others of the same length in their places, and lose those."""
        self.change([(b"%d" % number, b"a") for number in range(4)])
        self.recover(self.power_cut(seed))
        self.change([(b"%d" % number, b"b") for number in range(synced)])
        self.call("sync")
        self.change([(b"%d" % number, b"b") for number in range(synced, 4)])
        self.recover(self.power_cut(seed))

    def power_cut(self, seed: int) -> str:
        """Look at outcomes of a power cut, and start the machine on one of them.

        If one has torn the log, it is that. What is lost may turn up later where it was, in
        a place that is not written anew.
        """
        self.tally["power cuts of the model*"] += 1
        cut = self.disk.power_cut()
        late = bytes_last(cut)
        left: list[tuple[bool, Picks, Image]] = []
        for picks, image in (*cut.images(OUTCOMES, seed), (late, cut.image(late))):
            with kvstore.open(PATH, "r", filesystem=SimulatedDisk(image)) as reader:
                self.history.check(dict(reader), in_words(cut, picks))
                left.append((reader.torn_tail is not None, picks, image))
        _, picks, image = max(left, key=itemgetter(0))
        self.disk = SimulatedDisk(
            image,
            sector_bytes=self.disk.sector_bytes,
            seed=next(self.disks),
            older=self.disk.image(),
        )
        return in_words(cut, picks)

    def recover(self, crash: str) -> None:
        """Open what a crash has left, and go on with it."""
        before, log = self.disk.image(), log_path(self.disk)
        self.open()
        self.history.goes_on_from(dict(self.db), crash)
        with keeps(NO_GUESSES):
            self.check_tail(before[log], self.disk.image(), log)

    def check_tail(self, whole: bytes, after: Image, log: str) -> None:
        """See that what the log has lost is reported, and kept."""
        tail = self.db.torn_tail
        if tail is None:
            equal(after[log], whole, "the log, of which no tail is reported,")
            return
        self.tally["torn tails of the model*"] += 1
        equal((tail.path, tail.offset + tail.length), (log, len(whole)), "the tail")
        equal(after[log], whole[: tail.offset], "the log")
        equal(after[tail.kept_as or ""], whole[tail.offset :], "what was kept")

    @rule(
        successes=st.sampled_from([0, 0, 1, 2, 3]),
        drops=st.booleans(),
        changes=CHANGES,
        then=st.sampled_from(["sync", "compact", "reopen"]),
        end=st.sampled_from(["close", "kill", "power cut"]),
        seed=SEEDS,
    )
    @keeps(NO_GUESSES)
    def fail_to_sync(
        self,
        successes: int,
        drops: bool,
        changes: Changes,
        then: str,
        end: str,
        seed: int,
    ) -> None:
        """Have one fsync fail. If it was the log's, the store takes no more writes."""
        fault = FailingSync(successes)
        self.disk.drops_pages = drops
        if not self.meet(fault, changes, then, drops):
            return
        self.tally["failed fsyncs of the model*"] += 1
        if fault.struck is not None and fault.struck.path == log_path(self.disk):
            self.check_refusal()
            self.recover(self.end(end, seed))

    @rule(
        room=st.sampled_from(range(0, 400, 5)),
        changes=CHANGES,
        then=st.sampled_from(["go on", "sync", "compact", "reopen"]),
    )
    @keeps(NO_GUESSES)
    def fill_the_disk(self, room: int, changes: Changes, then: str) -> None:
        """Have the disk full, once. The change is not made, and the store goes on."""
        if self.meet(FullDisk(room), changes, then, drops=False):
            self.tally["full disks of the model*"] += 1

    def meet(
        self, fault: FailingSync | FullDisk, changes: Changes, then: str, drops: bool
    ) -> bool:
        """Make a batch and a call on a disk that fails.

        Say whether there was an error and the store is open all the same.
        """
        before, returned = self.history.now, False
        self.history.becomes(after(before, changes))
        try:
            with failing(self.disk, fault):
                make(self.db, changes)
                self.is_done()
                returned = True
                self.call(then)
        except OSError:
            if returned and then == "reopen":
                self.recover(f"an error in {fault.struck}")
                return False
            self.check_change(before, returned, drops)
            return True
        equal(fault.struck, None, "the call that failed, and nobody was told,")
        return False

    def check_change(self, before: Contents, returned: bool, drops: bool) -> None:
        """See whether a batch was made on a disk that failed, and whether it should be.

        Where each change has to be on the disk, one may be made that can't be made safe.
        """
        then, found = self.history.now, readable(self.db)
        possible = [then] if returned or self.sync_mode == "always" else []
        possible += [] if returned else [before]
        right = [state for state in possible if agrees(found, state)]
        if not right or (None in found.values() and not drops):
            raise AssertionError(f"it holds {found!r}, possible was {possible!r}")
        if then not in right:
            self.history.forget()

    def check_refusal(self) -> None:
        """See that nothing can be written any more, and that nothing is called safe."""
        image = self.disk.image()
        for what, call in writes(self.db).items():
            raises(kvstore.WriteRefusedError, call, f"{what} after a failed fsync")
        equal(changed(image, self.disk.image()), [], "what refused writes have changed")
        with suppress(kvstore.WriteRefusedError):
            self.call("sync")  # where it returns, it is held to that

    def end(self, how: str, seed: int) -> str:
        """End the process after a failed fsync, and say how."""
        if how == "power cut":
            return self.power_cut(seed)
        if how == "kill":
            self.disk.end_process()
        else:
            raises(kvstore.WriteRefusedError, self.db.close, "close")
        return f"a failed fsync and a {how}"

    @invariant()
    @keeps(NEWEST)
    def same(self) -> None:
        """Compare all that can be asked."""
        self.steps += 1
        db, now = self.db, self.history.now
        equal(dict(db), now, "the store")
        equal(len(db), len(now), "its length")
        equal(set(db.keys()), now.keys(), "its keys")
        equal(sorted(db.values()), sorted(now.values()), "its values")
        equal((db == now, db == {ABSENT: b""}), (True, False), "==")
        for key in (b"", b"3", ABSENT):
            equal(db.get(key), now.get(key), f"get({key!r})")
            equal(key in db, key in now, f"{key!r} in it")
        for value in (b"", b"a"):
            equal(value in db.values(), value in now.values(), f"{value!r} in values")

    def teardown(self) -> None:
        """Count the story if it came to its end; some are given up while they are drawn."""
        if self.steps == SETTINGS.stateful_step_count:
            self.tally["stories of the model"] += 1
            self.tally["steps of the model"] += self.steps


def another(seed: int) -> str:
    """Return a case that nobody has run yet."""
    return str(seed)


def run(case: str) -> Tally:
    """Tell the stories of a seed, and count."""

    @seed(int(case))
    class Told(StoreAndDict):
        tally: ClassVar[Tally] = Counter()

    try:
        run_state_machine_as_test(Told, settings=SETTINGS)
    except Unkept as error:
        steps = "\n    ".join(error.__notes__)
        raise Broken(
            error.promise, f"{error.state}\n    {steps}", f"{NAME} {case}"
        ) from error
    return Told.tally
