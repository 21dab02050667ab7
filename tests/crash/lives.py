"""Short lives of a store: scripts that between them touch everything it can do.

A life tells the history before it tells the store. It runs on a simulated disk, so that
others can look at the disk after every single call.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from history import Changes, History, in_words
from proof import Contents
from support import record_bytes

import kvstore
from kvstore.segment import HEADER_BYTES
from kvstore.simdisk import Image, Operation, SimulatedDisk
from kvstore.store import Flag, Sync

PATH = "store"
HOUR = 3600.0  # an interval that does not end while a life lasts: `Life.sync` ends it
MODES: dict[str, Sync] = {"os": "os", "always": "always", "interval": HOUR}


class Life:
    """A store on a simulated disk, and the history that it is part of."""

    def __init__(
        self, disk: SimulatedDisk, history: History, sync: Sync, chance: random.Random
    ) -> None:
        self.disk = disk
        self.history = history
        self.sync_mode = sync
        self.chance = chance
        self.segment_bytes = 120
        self.db: kvstore.Store

    def open(self, flag: Flag = "c") -> None:
        """Open the store. What an open accepts is on the disk when it returns."""
        if flag == "n":
            self.history.plan(dict.fromkeys(self.history.states[-1]))
        self.db = kvstore.open(
            PATH,
            flag,
            sync=self.sync_mode,
            segment_bytes=self.segment_bytes,
            filesystem=self.disk,
        )
        self.history.founded = self.history.mended = True
        self.history.is_done()
        self.history.is_safe()

    def change(self, changes: Changes) -> None:
        """Put and delete: one key at a time, or several as a batch."""
        self.history.plan(changes)
        make(self.db, changes)
        self.history.is_done()
        if self.sync_mode == "always":
            self.history.is_safe()

    def put(self, key: bytes, value: bytes) -> None:
        """Put one key."""
        self.change({key: value})

    def delete(self, key: bytes) -> None:
        """Delete one key."""
        self.change({key: None})

    def sync(self) -> None:
        """Make all that is done safe: a sync, or the interval of `sync=seconds` ends."""
        self.db.sync()
        self.history.is_safe()

    def compact(self, least_dead: float = 0.0) -> None:
        """Compact the store."""
        self.db.compact(least_dead)

    def compact_and_meanwhile(self, *work: Changes) -> None:
        """Compact, and make a change before each of the first records that are copied."""
        left, fault = list(work), self.disk.fault

        def change_first(operation: Operation) -> int | None:
            if left and operation.name == "write" and operation.offset >= HEADER_BYTES:
                self.disk.fault = fault  # what the change itself writes is no copy
                self.change(left.pop(0))
                self.disk.fault = change_first
            return fault(operation)

        self.disk.fault = change_first
        self.compact()
        self.disk.fault = fault
        for changes in left:  # of a compaction that failed early
            self.change(changes)
        self.agree()

    def agree(self) -> None:
        """See that the store holds what it should."""
        held = dict(self.db.items())
        assert held == self.history.states[-1], (
            "T3, the newest: a get sees an older record"
        )

    def run_out_of_room(self, changes: Changes, room: int) -> None:
        """Try changes for which the disk has only so many bytes left, and get an error."""
        parts, fault = [room], self.disk.fault

        def take_what_fits(operation: Operation) -> int | None:
            if operation.name != "write":
                return fault(operation)
            if not parts:
                raise OSError(errno.ENOSPC, "No space left on device", operation.path)
            return parts.pop()

        self.disk.fault, self.history.mended = take_what_fits, False
        try:
            make(self.db, changes)
        except (OSError, kvstore.KVStoreError):
            self.disk.fault, self.history.mended = fault, True
        else:
            raise AssertionError("T8, no guesses: a write that did not fit is no error")

    def close(self) -> None:
        """Close the store."""
        self.db.close()
        self.history.is_safe()

    def kill(self) -> None:
        """End the process; the machine goes on."""
        self.disk.end_process()

    def lose_power(self, everything: bool = False) -> None:
        """Lose power, and go on with one outcome: drawn by chance, or with all that may go gone.

        What was on its way to a file may turn up later, where nothing was written.
        """
        before, cut = self.disk, self.disk.power_cut()
        ((_, image),) = cut.images(1, self.chance.getrandbits(32))
        if everything:
            image = cut.image((0,) * len(cut.doubts))
        self.disk = SimulatedDisk(
            image,
            sector_bytes=before.sector_bytes,
            seed=self.chance.getrandbits(32),
            older=before.image(),
        )
        self.disk.watch, self.disk.fault = before.watch, before.fault
        found = contents(image)
        self.hold(found, self.history.after_a_power_cut)
        self.history.goes_on_from(found)
        self.history.mended = False

    def hold(self, found: Contents, verdict: Callable[[Contents], str | None]) -> None:
        """Hold what was found against the history."""
        broken = verdict(found)
        assert broken is None, f"{broken}; found: {in_words(found)}"


def make(db: kvstore.Store, changes: Changes) -> None:
    """Make one change, or several as a batch."""
    if len(changes) == 1:
        apply(db, changes)
    else:
        with db.batch() as batch:
            apply(batch, changes)


def apply(target: kvstore.Store | kvstore.Batch, changes: Changes) -> None:
    """Put and delete, one after the other."""
    for key, value in changes.items():
        if value is None:
            del target[key]
        else:
            target[key] = value


def contents(image: Image) -> Contents:
    """Return what a store on a disk holds, for a reader that changes nothing."""
    with kvstore.open(PATH, "r", filesystem=SimulatedDisk(image)) as db:
        return dict(db)


def founding(life: Life) -> None:
    """Make a store, and open it again and again."""
    for _ in range(3):
        life.open()
        life.close()


def puts(life: Life) -> None:
    """Put, overwrite, sync, close; open and put again."""
    life.segment_bytes = 10_000
    life.open()
    for number in range(4):
        life.put(b"%d" % (number % 3), b"first" * number)
    life.sync()
    for number in range(5):
        life.put(b"%d" % (number % 3), b"second" * (4 - number))
    life.close()
    life.open()
    life.put(b"0", b"third")
    life.sync()
    life.put(b"0", b"fourth")


def deletes(life: Life) -> None:
    """Put, delete, put anew."""
    life.open()
    for key in (b"a", b"b", b""):
        life.put(key, b"1" + key)
    life.delete(b"a")
    life.sync()
    life.delete(b"")
    life.put(b"a", b"2")
    life.delete(b"b")
    life.put(b"", b"")
    life.delete(b"a")
    life.close()


def batches(life: Life) -> None:
    """Change several keys at once, in runs of many sectors too."""
    life.segment_bytes = 5_000
    life.open()
    life.change({b"a": b"1", b"b": b"1", b"c": b"1"})
    life.change({b"a": None, b"b": b"2"})
    life.sync()
    life.change({b"a": b"3" * 700, b"b": b"3" * 600, b"c": None})
    life.change({b"d": b"4", b"b": None})
    life.put(b"d", b"5")
    life.change({b"d": b"6", b"e": b"6", b"a": b""})
    life.close()


def rotation(life: Life) -> None:
    """Fill segment after segment."""
    life.segment_bytes = 90
    life.open()
    for number in range(9):
        life.put(b"%d" % (number % 4), b"r" * (7 + 5 * number))
        if number % 4 == 3:
            life.sync()
    life.change({b"0": b"in a batch" * 9, b"1": None, b"2": b""})
    life.put(b"3", b"behind it")
    life.close()


def compaction(life: Life) -> None:
    """Make records dead, and compact them away."""
    life.open()
    for key in (b"a", b"b", b"c", b"d"):
        life.put(key, b"1" * 30)
    life.sync()
    life.put(b"a", b"2" * 30)
    life.delete(b"b")
    life.compact()
    life.change({b"c": b"3" * 40, b"e": b"3"})
    life.delete(b"e")
    life.put(b"d", b"4" * 60)
    life.compact(0.6)
    life.put(b"b", b"5")
    life.sync()
    life.delete(b"b")
    life.compact()
    life.put(b"f", b"6")
    life.close()


def tombstones(life: Life) -> None:
    """Compact a tombstone whose key has an older record elsewhere, twice."""
    life.open()
    life.put(b"large", b"1" * 60)
    life.put(b"small", b"1" * 20)
    life.delete(b"small")
    for number in range(3):
        life.put(b"again", b"%d" % number * 30)
    life.compact(0.6)
    life.sync()
    life.put(b"again", b"3" * 60)
    life.compact(0.6)
    life.put(b"large", b"2")
    life.compact()
    life.close()


def meanwhile(life: Life) -> None:
    """Put, delete and fill segments while a compaction copies what was there before."""
    life.segment_bytes = 160
    life.open()
    for number in range(12):
        life.put(b"%d" % number, b"old" * 9)
    for key in (b"0", b"4", b"8"):
        life.put(key, b"newer" * 9)
    life.compact_and_meanwhile(
        {b"7": b"while it copies" * 4},
        {b"2": None},
        {b"3": b"in a batch" * 6, b"5": b"of three" * 6, b"0": None},
        {b"7": b"again" * 9},
    )
    life.kill()
    life.open()
    life.compact()
    life.close()


def reopening(life: Life) -> None:
    """Let the process end without a close, twice in a row, and with work between."""
    life.open()
    life.put(b"a", b"1" * 30)
    life.kill()
    life.open()
    life.kill()
    life.open()
    life.change({b"a": b"2" * 50, b"b": b"2" * 50})
    life.put(b"c", b"3")
    life.kill()
    life.open()
    life.delete(b"a")
    life.close()
    life.open()
    life.compact()
    life.kill()
    life.open("w")
    life.close()


def recoveries(life: Life) -> None:
    """Lose power again and again, and go on each time with what is left."""
    life.open()
    for number in range(4):
        life.put(b"a", b"%d" % number * 9)
        life.change({b"b": b"%d" % number * 20, b"c": b"%d" % number})
        if number % 2 == 1:
            life.sync()
        life.put(b"%d" % number, b"last")
        life.lose_power()
        life.open()
    life.compact()
    life.close()


def ghosts(life: Life) -> None:
    """Write records that are lost, then others of the same length in their places.

    A record has 32 bytes, as long as the smallest of sectors but one.
    """
    life.segment_bytes = 10_000
    life.open()
    life.put(b"0", b"%012d" % 0)
    life.sync()
    for number in range(4):
        for key in (b"1", b"2", b"3"):
            life.put(key, b"%012d" % number)
        life.lose_power(everything=True)
        life.open()
    life.close()


def shortages(life: Life) -> None:
    """Run out of room within a batch, and go on with others of the same lengths.

    A record has 32 bytes here too, and all of the first one gets through.
    """
    life.segment_bytes = 10_000
    life.open()
    life.put(b"0", b"%012d" % 0)
    life.sync()
    for number in range(1, 4):
        life.run_out_of_room({b"1": b"lost, and so", b"2": b"is all of it"}, 32)
        if number == 2:
            life.close()
            life.open()
        life.change({b"1": b"%012d" % number, b"2": b"%012d" % number})
    life.close()


def anew(life: Life) -> None:
    """Begin with an empty store in place of a full one."""
    life.open()
    for key in (b"a", b"b", b"c"):
        life.put(key, b"old" * 20)
    life.close()
    life.open("n")
    life.put(b"a", b"new")
    life.sync()
    life.delete(b"a")
    life.kill()
    life.open("n")
    life.close()


def by_chance(life: Life) -> None:
    """Do what chance says."""
    chance = life.chance
    life.segment_bytes = chance.choice((1, 60, 120, 400, 5_000))
    life.open()
    for _ in range(chance.randrange(10, 40)):
        what = chance.choice(
            ("put", "put", "change", "change", "no room", "sync", "compact", "end")
        )
        if what == "put":
            life.put(b"%d" % chance.randrange(6), some_bytes(chance))
        elif what == "change":
            life.change(some_changes(chance, life.history.states[-1]))
        elif what == "no room":
            changes = some_changes(chance, life.history.states[-1])
            sizes = [record_bytes(key, value or b"") for key, value in changes.items()]
            life.run_out_of_room(changes, some_room(chance, sizes))
        elif what == "sync":
            life.sync()
        elif what == "compact":
            life.compact(chance.choice((0.0, 0.3, 0.7)))
        else:
            chance.choice((life.close, life.kill, life.lose_power))()
            life.open()
    life.close()


def some_changes(chance: random.Random, state: Contents) -> Changes:
    """Return a batch that fits what the store holds."""
    changes: Changes = {}
    for key in chance.sample(range(6), chance.randrange(1, 5)):
        name = b"%d" % key
        deletes = name in state and chance.random() < 0.4
        changes[name] = None if deletes else some_bytes(chance)
    return changes


def some_room(chance: random.Random, sizes: list[int]) -> int:
    """Return less room than some records need: often enough for all but the last."""
    return chance.choice((chance.randrange(sum(sizes)), sum(sizes[:-1])))


def some_bytes(chance: random.Random) -> bytes:
    """Return a value: mostly short, now and then longer than a sector."""
    return chance.randbytes(chance.choice((0, 1, 20, 20, 40, 90, 600)))


LIVES: dict[str, Callable[[Life], None]] = {
    "founding": founding,
    "puts": puts,
    "deletes": deletes,
    "batches": batches,
    "rotation": rotation,
    "compaction": compaction,
    "tombstones": tombstones,
    "meanwhile": meanwhile,
    "reopening": reopening,
    "recoveries": recoveries,
    "ghosts": ghosts,
    "shortages": shortages,
    "anew": anew,
    "by-chance": by_chance,
}


def by_name(name: str) -> tuple[Callable[[Life], None], int]:
    """Return a life and its seed. ``by-chance:7`` is a life by chance with the seed 7."""
    life, _, seed = name.partition(":")
    return LIVES[life], int(seed or 1)
