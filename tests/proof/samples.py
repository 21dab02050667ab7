"""Small stores, left in every state that a store can be left in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

from kvstore.powercut import Image
from kvstore.simdisk import SimulatedDisk
from tests.proof.engines import ENGINES
from tests.proof.faults import image_before_last
from tests.proof.history import Changes, Contents, after
from tests.proof.subject import Left, Subject
from tests.proof.workloads import make


class Account:
    """A store on a simulated disk, and an account of what was written to it."""

    def __init__(self, subject: Subject, seed: int, small: int, scale: int = 1) -> None:
        self.subject = subject
        self.disk = SimulatedDisk(sector_bytes=32, seed=seed)
        self.small = small
        self.scale = scale  # how long values are
        self.now: Contents = {}
        self.written: set[tuple[bytes, bytes]] = set()
        self.contents: dict[str, dict[int, Contents]] = {}  # by tail, and its length
        self.open()

    def open(self) -> None:
        self.db = self.subject.open(self.disk, small=self.small)
        self.note(self.now)

    def note(self, before: Contents) -> None:
        """Note what the tail holds at its length, and at its beginning."""
        image = self.disk.image()
        layout = self.subject.layout(image)
        begins = layout.borders(layout.tail)[1]
        known = self.contents.setdefault(layout.tail, {begins: before})
        known[len(image[layout.tail])] = self.now

    def change(self, changes: Changes) -> None:
        before, self.now = self.now, after(self.now, changes)
        self.written |= {(k, v) for k, v in changes.items() if v is not None}
        make(self.db, changes)
        self.note(before)

    def put(self, key: bytes, serial: int, length: int) -> None:
        self.change({key: text(serial, length * self.scale)})

    def compact(self, share: float = 0.0) -> None:
        self.subject.rearrange(self.db, share)
        self.note(self.now)

    def left(self, image: Image | None = None, log: bytes | None = None) -> Left:
        """Return the store as it was left: by a kill now, or as an image has it."""
        image = self.disk.image() if image is None else image
        layout = self.subject.layout(image)
        if self.subject.lock_file:  # a real one leaves a number behind
            image = image | {self.subject.lock_file: b"4711\n"}
        log = image[layout.tail] if log is None else log
        return Left(image, log, self.contents[layout.tail], self.written, layout)


def text(serial: int, length: int) -> bytes:
    """Return a value that no other serial has."""
    return (b"%d-" % serial).ljust(length, b"%c" % (ord("a") + serial % 11))


def filled(subject: Subject, seed: int, *, large: bool = False) -> Account:
    """Fill a file: of a store of 4 KiB, or with records that fill sectors of 32 bytes."""
    account = Account(subject, seed, *((1500, 25) if large else (192, 1)))
    account.put(b"ada", 1, 10)
    account.put(b"bob", 2, 42)
    account.put(b"cyd", 3, 42)
    return account


def synced(subject: Subject, seed: int, *, large: bool = False) -> Account:
    """Go on to a compaction that has to keep a tombstone, and to a sync."""
    account = filled(subject, seed, large=large)
    account.put(b"dan", 4, 10)
    account.change({b"bob": None})  # the older record is in a file that stays
    account.put(b"dan", 5, 40)
    account.put(b"dan", 6, 22)
    account.put(b"eve", 7, 10)
    account.compact(0.6)
    account.db.sync()
    return account


def unsynced(subject: Subject, seed: int, *, large: bool = False) -> Account:
    """Go on, with a batch among the changes, and do not sync."""
    account = synced(subject, seed, large=large)
    account.put(b"hal", 8, 10)
    account.change({b"fay": text(9, 5 * account.scale), b"ada": b"", b"cyd": None})
    account.change({b"": bytes(5 * account.scale)})
    account.change({b"fay": None})
    return account


def left_synced(subject: Subject, seed: int) -> Left:
    """Leave a store with everything synced, and not closed."""
    account = unsynced(subject, seed)
    account.db.sync()
    return account.left()


def left_closed(subject: Subject, seed: int, *, large: bool = False) -> Left:
    """Go on to the end, and close."""
    account = unsynced(subject, seed, large=large)
    account.db.close()
    return account.left()


def left_torn(subject: Subject, seed: int) -> Left:
    """Lose power: the batch has a hole, and after it are whole records."""
    account = unsynced(subject, seed)
    seen = account.disk.image()
    tail = subject.layout(seen).tail
    torn = seen[tail][:128] + bytes(32) + seen[tail][160:]
    for _, image in account.disk.power_cut().images(10_000):
        if image[tail] == torn:
            return account.left(image, seen[tail])
    raise AssertionError("a power cut is meant to leave such a hole, among others")


def left_mended(subject: Subject, seed: int) -> Left:
    """Open a store with a torn tail, and close it: the tail is kept in a file beside."""
    torn = left_torn(subject, seed)
    disk = SimulatedDisk(torn.image, seed=seed)
    with subject.open(disk):
        pass
    return replace(torn, image=disk.image(), layout=subject.layout(disk.image()))


def left_rotating(call: str, subject: Subject, seed: int) -> Left:
    """Die before the last call of this name of the change to a second file."""
    account = filled(subject, seed)
    rotate = partial(account.put, b"dan", 4, 10)
    return account.left(image_before_last(account.disk, call, rotate))


def left_compacting(call: str, subject: Subject, seed: int) -> Left:
    """Die before the last call of this name of a compaction."""
    account = unsynced(subject, seed)
    return account.left(image_before_last(account.disk, call, account.compact))


STATES: dict[str, Callable[[Subject, int], Left]] = {
    "created": lambda subject, seed: Account(subject, seed, 192).left(),
    "rotating": partial(left_rotating, "rename"),  # before the new file counts
    "rotated": partial(left_rotating, "write"),  # before it takes its first record
    "synced": left_synced,
    "unsynced": lambda subject, seed: unsynced(subject, seed).left(),
    "torn": left_torn,
    "mended": left_mended,
    "merged": partial(left_compacting, "rename"),  # before the new files count
    "replaced": partial(left_compacting, "sync_directory"),  # the old ones are there
    "closed": left_closed,
    "large": partial(left_closed, large=True),
}
BY_CHANCE = "chance-"


@lru_cache(maxsize=32)
def left_as(engine: str, name: str, seed: int = 0) -> Left:
    """Make a store, and leave it in the state of this name."""
    subject = ENGINES[engine]
    if name.startswith(BY_CHANCE):
        return left_by_chance(subject, int(name.removeprefix(BY_CHANCE)))
    return STATES[name](subject, seed)


KEYS = [b"", *(b"key-%d" % number for number in range(9)), b"k" * 300]
LONG = (1 << 20) + 70_000  # a value longer than what a scan holds in memory


def left_by_chance(subject: Subject, seed: int) -> Left:
    """Make a store by chance, with larger values, and leave it in some way."""
    chance = random.Random(seed)
    account = Account(subject, seed, chance.choice((500, 3_000, 20_000)))
    if chance.random() < 0.1:
        account.change({b"long": chance.randbytes(LONG)})
    for _ in range(chance.randrange(10, 60)):
        do_something(account, chance)
    way = chance.choice(("closed", "killed", "power lost"))
    if way == "closed":
        account.db.close()
    image = account.disk.image()
    log = image[subject.layout(image).tail]
    if way == "power lost":
        ((_, image),) = account.disk.power_cut().images(1, chance.getrandbits(30))
    return account.left(image, log)


def do_something(account: Account, chance: random.Random) -> None:
    roll = chance.random()
    if roll < 0.08:
        account.compact(chance.random())
    elif roll < 0.16:
        account.db.sync()
    elif roll < 0.2:
        account.db.close()
        account.open()
    else:
        keys = chance.sample(KEYS, chance.choice((1, 1, 1, 4)))
        account.change({key: some_value(account, chance, key) for key in keys})


def some_value(account: Account, chance: random.Random, key: bytes) -> bytes | None:
    """Return a value for a key, or None to delete a key that there is."""
    if key in account.now and chance.random() < 0.3:
        return None
    return chance.randbytes(chance.choice((0, 20, 400, 3_000)))
