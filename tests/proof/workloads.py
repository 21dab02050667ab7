"""Short lives of a store: scripts that between them touch everything it can do.

A workload tells the history before it tells the store. It runs on a simulated disk, so that
others can look at the disk after every single call.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import kvstore
from kvstore.powercut import Image
from kvstore.simdisk import SimulatedDisk
from tests.proof.faults import BusyDisk, FullDisk, failing
from tests.proof.history import Changes, Contents, History, in_words
from tests.proof.programme import fingerprint_of
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import Engine, Flag, Subject, Sync

OLDER = Breach(Promise.NEWEST, "a get sees an older record")
RECORD = 19  # bytes that most engines need for a record beside its key and value
FOUND: dict[tuple[str, int], Contents] = {}  # what readers have found on disks
NO_ERROR = Breach(Promise.NO_GUESSES, "a write that did not fit is no error")


class Life:
    """A store on a simulated disk, and the history that it is part of."""

    small = 120  # about how many bytes fill a file of the store
    db: Engine

    def __init__(
        self,
        subject: Subject,
        disk: BusyDisk,
        sync: Sync,
        chance: random.Random,
        history: History | None = None,
    ) -> None:
        self.subject = subject
        self.disk = disk
        self.sync_mode = sync
        self.chance = chance
        self.history = history or History()
        self.dead: list[Engine] = []  # of processes that ended; nobody lets go there

    def open(self, flag: Flag = "c") -> None:
        """Open the store. What an open accepts is on the disk when it returns."""
        if flag == "n":
            self.history.plan(dict.fromkeys(self.history.now))
        self.db = self.subject.open(self.disk, flag, self.sync_mode, self.small)
        self.history.founded = self.history.settled = True
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

    def compact(self, share: float = 0.0) -> None:
        """Have the store rearrange its files."""
        self.subject.rearrange(self.db, share)

    def compact_and_meanwhile(self, *changes: Changes) -> None:
        """Compact, and make a change before each of the first records that are copied."""
        self.disk.works = [partial(self.change, each) for each in changes]
        self.compact()
        left, self.disk.works = self.disk.works, ()
        for work in left:  # of a compaction that failed early
            work()
        self.agree()

    def agree(self) -> None:
        """See that the store holds what it should."""
        held = dict(self.db.items())
        if held != self.history.now:
            raise Broken(OLDER, f"found: {in_words(held)}")

    def run_out_of_space(self, changes: Changes, space: int) -> None:
        """Try changes for which the disk has only so many bytes left, and get an error."""
        self.history.settled = False
        with failing(self.disk, FullDisk(self.disk, space)):
            try:
                make(self.db, changes)
            except (OSError, kvstore.KVStoreError):
                self.history.settled = True
            else:
                raise Broken(NO_ERROR, f"there was space for {space} bytes")

    def close(self) -> None:
        """Close the store."""
        self.db.close()
        self.history.is_safe()

    def kill(self) -> None:
        """End the process; the machine goes on."""
        self.dead.append(self.db)
        self.disk.end_process()

    def lose_power(self, everything: bool = False) -> None:
        """Lose power, and go on with one outcome: drawn by chance, or with all that may go gone.

        What was on its way to a file may turn up later, where nothing was written.
        """
        before, cut = self.disk, self.disk.power_cut()
        ((_, image),) = cut.images(1, self.chance.getrandbits(32))
        if everything:
            image = cut.image((0,) * len(cut.doubts))
        self.disk = BusyDisk(
            image,
            sector_bytes=before.sector_bytes,
            seed=self.chance.getrandbits(32),
            older=before.image(),
        )
        self.disk.watch, self.disk.fault = before.watch, before.fault
        found = self.contents(image)
        self.hold(found, self.history.after_a_power_cut)
        self.history.goes_on_from(found)
        self.history.settled = False

    def contents(self, image: Image) -> Contents:
        """Return what a store on a disk holds, for a reader that changes nothing."""
        key = self.subject.name, fingerprint_of(image)
        if key not in FOUND:
            with self.subject.open(SimulatedDisk(image), "r") as db:
                FOUND[key] = dict(db)
        return FOUND[key]

    def hold(
        self, found: Contents, verdict: Callable[[Contents], Breach | None]
    ) -> None:
        """Hold what was found against the history."""
        breach = verdict(found)
        if breach is not None:
            raise Broken(breach, f"found: {in_words(found)}")


def make(db: Engine, changes: Changes) -> None:
    """Make one change, or several as a batch."""
    if len(changes) == 1:
        apply(db, changes)
    else:
        with db.batch() as batch:
            apply(batch, changes)


def apply(target: Engine | kvstore.Batch, changes: Changes) -> None:
    """Put and delete, one after the other."""
    for key, value in changes.items():
        if value is None:
            del target[key]
        else:
            target[key] = value


def founding(life: Life) -> None:
    """Make a store, and open it again and again."""
    for _ in range(3):
        life.open()
        life.close()


def puts(life: Life) -> None:
    """Put, overwrite, sync, close; open and put again."""
    life.small = 10_000
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
    life.small = 5_000
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
    """Fill file after file."""
    life.small = 90
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
    """Put, delete and fill files while a compaction copies what was there before."""
    life.small = 160
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
    life.small = 10_000
    life.open()
    life.put(b"0", b"%012d" % 0)
    life.close()
    life.open()
    for number in range(4):
        for key in (b"1", b"2", b"3"):
            life.put(key, b"%012d" % number)
        life.lose_power(everything=True)
        life.open()
    life.close()


def shortages(life: Life) -> None:
    """Run out of space within a batch, and go on with others of the same lengths.

    A record has 32 bytes here too, and all of the first one gets through.
    """
    life.small = 10_000
    life.open()
    life.put(b"0", b"%012d" % 0)
    life.sync()
    for number in range(1, 4):
        life.run_out_of_space({b"1": b"lost, and so", b"2": b"is all of it"}, 32)
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
    life.small = chance.choice((1, 60, 120, 400, 5_000))
    life.open()
    for _ in range(chance.randrange(10, 40)):
        what = chance.choice(
            ("put", "put", "change", "change", "no space", "sync", "compact", "end")
        )
        if what == "put":
            life.put(b"%d" % chance.randrange(6), some_bytes(chance))
        elif what == "change":
            life.change(some_changes(chance, life.history.now))
        elif what == "no space":
            changes = some_changes(chance, life.history.now)
            sizes = [
                RECORD + len(key) + len(value or b"") for key, value in changes.items()
            ]
            life.run_out_of_space(changes, some_space(chance, sizes))
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
    changes: dict[bytes, bytes | None] = {}
    for key in chance.sample(range(6), chance.randrange(1, 5)):
        name = b"%d" % key
        deletes = name in state and chance.random() < 0.4
        changes[name] = None if deletes else some_bytes(chance)
    return changes


def some_space(chance: random.Random, sizes: list[int]) -> int:
    """Return less space than some records need: often enough for all but the last."""
    return chance.choice((chance.randrange(sum(sizes)), sum(sizes[:-1])))


def some_bytes(chance: random.Random) -> bytes:
    """Return a value: mostly short, now and then longer than a sector."""
    return chance.randbytes(chance.choice((0, 1, 20, 20, 40, 90, 600)))


WORKLOADS: dict[str, Callable[[Life], None]] = {
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
    """Return a workload and its seed. ``by-chance:7`` is one by chance with the seed 7."""
    workload, _, seed = name.partition(":")
    return WORKLOADS[workload], int(seed or 1)
