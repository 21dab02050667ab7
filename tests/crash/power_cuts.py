"""The power goes after every call that changes the disk, in every way that it can go.

A life of a store runs on a simulated disk. After each call all the states are made that a
power cut may leave, or ten by chance where there are more than 32, and one that kill -9 leaves.
Each is opened, read, written to, closed and opened again, and held against the history. One
in thirty is opened on a disk that loses power again while the recovery is under way.

A case is a life, a mode of syncing and the bytes of a sector; to replay one state, the
number of the call and the number of the state follow.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from history import History, in_words
from lives import LIVES, MODES, PATH, Life, by_name
from proof import Broken, Contents, Tally

import kvstore
from kvstore.manifest import LOCK, MANIFEST, decode_manifest
from kvstore.mark import MARK, decode_mark
from kvstore.segment import segment_name
from kvstore.simdisk import Image, Operation, SimulatedDisk

NAME = "power-cuts"
SECTORS = ("1", "32", "512", "4096")  # bytes
CASES = [" ".join(case) for case in itertools.product(LIVES, MODES, SECTORS)]
IN_FULL = 32  # up to so many states that a power cut may leave, all are looked at
STATES_A_CALL = 10  # where there are more, so many are drawn
STATES_A_CALL_OF_A_RECOVERY = 4
RECOVERIES = 30  # one state in so many is recovered on a disk that loses power again

FILES = ("create", "write", "truncate", "sync")
NAMES = ("sync_directory", "rename", "remove", "make_directory", "lock")
CHANGES = frozenset((*FILES, *NAMES))


def another(seed: int) -> str:
    """Return a case with a life by chance."""
    chance = random.Random(seed)
    return f"by-chance:{seed} {chance.choice(list(MODES))} {chance.choice(SECTORS)}"


def run(case: str) -> Tally:
    """Lead a life, and look at what a power cut would leave after each call."""
    name, mode, sector, *place = case.split()
    line = f"{name} {mode} {sector}"
    lead, seed = by_name(name)
    disk = SimulatedDisk(sector_bytes=int(sector), seed=crc32(line.encode()))
    life = Life(disk, History(), MODES[mode], random.Random(seed))
    explorer = Explorer(life, f"{NAME} {line}", tuple(map(int, place)))
    disk.watch = explorer.look
    lead(life)
    return explorer.tally


class Outcome(NamedTuple):
    """What came of a state of the disk when the store on it was opened."""

    found: Contents | None  # None: there is no store
    torn: int | None  # the offset of a torn tail
    broken: str | None  # the promise that broke, whatever the history says


class Tail(NamedTuple):
    """The bytes behind the last whole batch of a log."""

    path: str
    offset: int
    raw: bytes

    def is_in(self, image: Image) -> bool:
        """Say whether these bytes are still there, where they were or kept aside."""
        kept = (raw for path, raw in image.items() if ".cut-" in path)
        return image[self.path][self.offset :] == self.raw or self.raw in kept


def tail_of(image: Image, offset: int) -> Tail:
    """Return what stands at the end of the log, from an offset on."""
    manifest = decode_manifest(image[f"{PATH}/{MANIFEST}"], MANIFEST)
    path = f"{PATH}/{segment_name(manifest.active.number)}"
    return Tail(path, offset, image[path][offset:])


@dataclass
class Explorer:
    """Looks at the disk of a life after each call."""

    life: Life
    case: str  # the line that replays all of it
    only: tuple[int, ...] = ()  # the one call, and the one state of it, to look at
    limit: int = STATES_A_CALL
    outer: Explorer | None = None  # who looks at the disk that this recovery began from
    tail: Tail | None = None  # what this recovery has to keep
    calls: int = 0
    tally: Tally = field(default_factory=Counter)
    outcomes: dict[frozenset[tuple[str, bytes]], Outcome] = field(default_factory=dict)
    where: str = ""
    state: str = ""

    def look(self, operation: Operation) -> None:
        """Look at every state that the disk may be in after a call."""
        if operation.name not in CHANGES:
            return
        self.calls += 1
        if self.only and self.only[0] != self.calls:
            return
        history, disk = self.life.history, self.life.disk
        self.tally["calls"] += 1
        self.at(0, f"process killed after {operation}")
        torn = self.judge(disk.image(), history.after_a_kill).torn
        if torn is not None and history.mended:
            promise = "T8, no guesses: a torn tail is there, and no power was lost"
            raise self.broken(promise, f"at offset {torn}")
        cut = disk.power_cut()
        limit = IN_FULL if cut.outcomes <= IN_FULL and not self.outer else self.limit
        for number, (picks, image) in enumerate(cut.images(limit, self.calls), 1):
            if self.only[1:] in ((), (number,)):
                self.at(number, f"power lost after {operation}; {cut.describe(picks)}")
                self.judge(image, history.after_a_power_cut)

    def at(self, number: int, state: str) -> None:
        """Remember which state is being looked at."""
        self.where, self.state = f"{self.calls} {number}", state

    def judge(self, image: Image, verdict: Callable[[Contents], str | None]) -> Outcome:
        """Open the store on one state of the disk, and hold it against the history."""
        if self.tail is not None and not self.tail.is_in(image):
            raise self.broken("T8, no guesses: a torn tail is not kept", "it is lost")
        key = frozenset(image.items())
        if key not in self.outcomes:
            self.outcomes[key] = self.examine(image)
        found, torn, broken = self.outcomes[key]
        if broken is None and found is None and self.life.history.founded:
            broken = "T7, safe when you say: the store is gone"
        broken = broken or verdict(found or {})
        if broken is not None:
            words = "no store" if found is None else in_words(found)
            raise self.broken(broken, f"found: {words}")
        return Outcome(found, torn, None)

    def broken(self, promise: str, found: str) -> Broken:
        """Return the failure, with the states of all the disks that led to it."""
        if self.outer is not None:
            state = f"in a recovery: {self.state}; {found}"
            return self.outer.broken(promise, state)
        return Broken(promise, f"{self.state}; {found}", f"{self.case} {self.where}")

    def examine(self, image: Image) -> Outcome:
        """Open, read, write, close and open again; now and then, lose power meanwhile."""
        if any(path.endswith(".segment") for path in image):
            self.tally["crash images"] += 1
        try:
            found, torn = survive(image)
            if found is not None:
                feel_damage(image, len(self.outcomes))
        except BrokenHere as broken:
            return Outcome(None, None, str(broken))
        if self.outer is None and len(self.outcomes) % RECOVERIES == 0:
            self.recover(image, found, None if torn is None else tail_of(image, torn))
        return Outcome(found, torn, None)

    def recover(self, image: Image, found: Contents | None, tail: Tail | None) -> None:
        """Open the store on a disk that loses power again after each call."""
        self.tally["recoveries"] += 1
        disk = SimulatedDisk(image, sector_bytes=self.life.disk.sector_bytes, seed=2)
        history = History([found or {}], founded=found is not None)
        life = Life(disk, history, "os", self.life.chance)
        inner = Explorer(life, "", (), STATES_A_CALL_OF_A_RECOVERY, self, tail)
        inner.tally, inner.outcomes = self.tally, self.outcomes
        disk.watch = inner.look
        life.open()
        life.put(NEW, b"new")
        life.close()


NEW = b"new"


class BrokenHere(Exception):
    """A promise that broke, whatever the history says."""


Opened = tuple[Contents | None, int | None]  # what is there, and where a tail is torn


def survive(image: Image) -> Opened:
    """Open a store for reading, then for writing, then again; return what was found."""
    disk = SimulatedDisk(image, seed=1)
    found, torn = opened_for_reading(disk)
    if CHANGES & {operation.name for operation in disk.operations}:
        raise BrokenHere("T1, one writer: a reader has changed the disk")
    try:
        with kvstore.open(PATH, filesystem=disk) as db:
            if dict(db) != (found or {}):
                raise BrokenHere("T3, the newest: a reader and a writer differ")
            if torn != (db.torn_tail and db.torn_tail.offset):
                raise BrokenHere("T8, no guesses: a torn tail is not reported")
            if not db.verify().ok:
                raise BrokenHere("T8, no guesses: damage is left in an open store")
            db[NEW] = b"new"
        with kvstore.open(PATH, segment_bytes=1, filesystem=disk) as db:
            if db.torn_tail is not None:
                raise BrokenHere("T8, no guesses: a torn tail is found twice")
            if dict(db) != (found or {}) | {NEW: b"new"}:
                raise BrokenHere("T7: opening again has changed the store")
            db[NEW] = b"newer"  # in a new segment: every number must be free
    except (kvstore.KVStoreError, OSError) as error:
        raise BrokenHere(
            f"T8, no guesses: a crash is taken for damage: {error!r}"
        ) from None
    stray = leftovers(disk.image())
    if stray:
        raise BrokenHere(f"T2, one moment: {', '.join(stray)} was left for ever")
    return found, torn


def opened_for_reading(disk: SimulatedDisk) -> Opened:
    """Return what a reader finds, and where it says that the tail is torn."""
    try:
        with kvstore.open(PATH, "r", filesystem=disk) as db:
            torn = db.torn_tail
            return dict(db), None if torn is None else torn.offset
    except kvstore.StoreNotFoundError:
        return None, None
    except (kvstore.KVStoreError, OSError) as error:
        raise BrokenHere(
            f"T8, no guesses: a crash is taken for damage: {error!r}"
        ) from None


def leftovers(image: Image) -> list[str]:
    """Return the files that do not belong to the store, of those that it makes."""
    manifest = decode_manifest(image[f"{PATH}/{MANIFEST}"], MANIFEST)
    known = {segment_name(each.number) for each in (*manifest.sealed, manifest.active)}
    known |= {LOCK, MANIFEST, MARK}
    names = {path.removeprefix(f"{PATH}/") for path in image} - {""}
    return sorted(name for name in names - known if ".cut-" not in name)


def feel_damage(image: Image, turn: int) -> None:
    """Flip one bit that was acknowledged as on the disk, and expect an error."""
    manifest = decode_manifest(image[f"{PATH}/{MANIFEST}"], MANIFEST)
    mark = decode_mark(image.get(f"{PATH}/{MARK}", b""))
    synced = {each.number: each.length for each in manifest.sealed}
    synced[manifest.active.number] = manifest.active.length
    if mark and mark.synced[:2] == manifest.active[:2]:  # number and seed
        number, _, length = mark.synced
        synced[number] = max(synced[number], length)
    chance = random.Random(turn)
    number, length = chance.choice(list(synced.items()))
    path, byte = f"{PATH}/{segment_name(number)}", chance.randrange(max(length, 1))
    damaged = bytearray(image[path])
    if byte >= len(damaged):
        raise BrokenHere(
            f"T8, no guesses: {path} ends below the mark, and that is no damage"
        )
    damaged[byte] ^= 1 << chance.randrange(8)
    disk = SimulatedDisk({**image, path: bytes(damaged)})
    with suppress(kvstore.CorruptionError), kvstore.open(PATH, "r", filesystem=disk):
        where = f"byte {byte} of {path}, which was on the disk"
        raise BrokenHere(f"T8, no guesses: a bit flipped in {where}, is not noticed")
