"""The power goes after every call that changes the disk, in every way that it can go.

A workload runs on a simulated disk. After each call all the states are made that a power cut
may leave, or ten by chance where there are more than 32, and one that kill -9 leaves. Each is
opened, read, written to, closed and opened again, and held against the history. One in thirty,
and one in six of those with a torn tail, is opened on a disk that loses power again while the
recovery is under way.

A case is a workload, a mode of syncing and the bytes of a sector; to replay one state, the
number of the call and the number of the state follow. A state that was examined before, in
whatever case, is only held against the history.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from zlib import crc32

import kvstore
from kvstore.powercut import Image
from kvstore.simdisk import Operation, SimulatedDisk
from tests.proof.faults import CHANGES_OF_A_DISK, BusyDisk
from tests.proof.history import Contents, History, in_words
from tests.proof.programme import Tally, fingerprint_of, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import MODES, Subject
from tests.proof.surviving import NEW, NOT_KEPT, Opened, survive
from tests.proof.workloads import WORKLOADS, Life, by_name

NAME = "power-cuts"
NEEDS = frozenset({Promise.ONLY_THE_END, Promise.SAFE})
SECTORS = (1, 32, 512, 4096)  # bytes
IN_FULL = 32  # up to so many states that a power cut may leave, all are looked at
STATES_A_CALL = 10  # where there are more, so many are drawn
STATES_A_CALL_OF_A_RECOVERY = 4
# One state in so many is recovered on a disk that loses power again; with a torn tail more.
RECOVERIES, RECOVERIES_OF_TORN = 30, 6

TORN = Breach(Promise.NO_GUESSES, "a torn tail is there, and no power was lost")
ERROR = Breach(Promise.NO_GUESSES, "there is an error where nothing has failed")
GONE = Breach(Promise.SAFE, "the store is gone")
UNNOTICED = Breach(Promise.NO_GUESSES, "a bit flipped in what was safe is not noticed")


def cases(_: Subject) -> list[str]:
    """Return every workload, in every mode, with sectors of every size."""
    return [
        f"{name} {mode} {sector}"
        for name, mode, sector in itertools.product(WORKLOADS, MODES, SECTORS)
    ]


def another(_: Subject, seed: int) -> str:
    """Return a case with a workload by chance."""
    chance = random.Random(seed)
    return f"by-chance:{seed} {chance.choice(list(MODES))} {chance.choice(SECTORS)}"


def run(subject: Subject, case: str) -> Tally:
    """Run a workload, and look at what a power cut would leave after each call."""
    name, mode, sector, *place = case.split()
    lead, seed = by_name(name)
    disk = BusyDisk(sector_bytes=int(sector), seed=crc32(name.encode()))
    life = Life(subject, disk, MODES[mode], random.Random(seed))
    explorer = Explorer(life, line(NAME, subject, name, mode, sector))
    explorer.only = tuple(map(int, place))
    disk.watch = explorer.look
    try:
        lead(life)
    except (kvstore.KVStoreError, OSError, LookupError) as error:
        raise explorer.broken(Broken(ERROR, repr(error))) from error
    return explorer.tally


EXAMINED: dict[tuple[str, int], Opened | Broken] = {}  # what came of each state


@dataclass
class Explorer:
    """Looks at the disk of a life after each call."""

    life: Life
    case: str  # the line that replays all of it
    tally: Tally = field(default_factory=Tally)
    only: tuple[int, ...] = ()  # the one call, and the one state of it, to look at
    outer: Explorer | None = None  # who looks at the disk that this recovery began from
    tail: bytes | None = None  # what this recovery has to keep
    calls: int = 0
    where: str = ""
    state: str = ""

    def look(self, operation: Operation) -> None:
        """Look at every state that the disk may be in after a call."""
        if operation.name not in CHANGES_OF_A_DISK:
            return
        self.calls += 1
        if self.only and self.only[0] != self.calls:
            return
        history, disk = self.life.history, self.life.disk
        self.at(0, f"process killed after {operation}")
        found = self.judge(disk.image(), history.after_a_kill)
        if found.torn is not None and history.settled:
            raise self.broken(Broken(TORN, f"at offset {found.torn.offset}"))
        cut = disk.power_cut()
        in_full = cut.outcomes <= IN_FULL and not self.outer
        limit = STATES_A_CALL_OF_A_RECOVERY if self.outer else STATES_A_CALL
        limit = IN_FULL if in_full else limit
        for number, (picks, image) in enumerate(cut.images(limit, self.calls), 1):
            if self.only[1:] in ((), (number,)):
                self.at(number, f"power lost after {operation}; {cut.describe(picks)}")
                self.judge(image, history.after_a_power_cut)

    def at(self, number: int, state: str) -> None:
        """Remember which state is being looked at."""
        self.where, self.state = f"{self.calls} {number}", state

    def judge(
        self, image: Image, verdict: Callable[[Contents], Breach | None]
    ) -> Opened:
        """Open the store on one state of the disk, and hold it against the history."""
        if self.tail is not None and not self.is_kept(image, self.tail):
            raise self.broken(Broken(NOT_KEPT, f"{self.tail!r} is lost"))
        number = fingerprint_of(image)
        if any(image.values()):
            self.tally.meet("different crash images", number)
        key = self.life.subject.name, number
        if key not in EXAMINED:
            EXAMINED[key] = self.examine(image, number)
        found = EXAMINED[key]
        if isinstance(found, Broken):
            raise self.broken(found)
        gone = found.contents is None and self.life.history.founded
        breach = GONE if gone else verdict(found.contents or {})
        if breach is not None:
            raise self.broken(Broken(breach, f"found: {in_words(found.contents)}"))
        one_in = RECOVERIES if found.torn is None else RECOVERIES_OF_TORN
        again = self.outer is None and number % one_in == 0
        if again and self.tally.meet("different states recovered again", number):
            self.recover(image, found)
        return found

    def is_kept(self, image: Image, tail: bytes) -> bool:
        """Say whether a torn tail is still there: at the end of a file, or as a file."""
        return any(raw.endswith(tail) for raw in image.values())

    def broken(self, error: Broken) -> Broken:
        """Return the failure, with the states of all the disks that led to it."""
        if self.outer is not None:
            return self.outer.broken(error.seen(f"in a recovery: {self.state}", ""))
        return error.seen(self.state, f"{self.case} {self.where}")

    def examine(self, image: Image, number: int) -> Opened | Broken:
        """Open, read, write, close and open again; flip a bit that has to be missed."""
        try:
            found = survive(self.life.subject, image)
            if found.contents is not None:
                feel_damage(self.life.subject, image, number)
        except Broken as broken:
            return broken
        return found

    def recover(self, image: Image, found: Opened) -> None:
        """Open the store on a disk that loses power again after each call."""
        disk = BusyDisk(image, sector_bytes=self.life.disk.sector_bytes, seed=2)
        founded = found.contents is not None
        history = History([found.contents or {}], founded=founded)
        life = Life(self.life.subject, disk, "os", self.life.chance, history)
        inner = Explorer(life, "", self.tally, outer=self)
        if found.torn is not None:
            inner.tail = image[found.torn.path][found.torn.offset :]
        disk.watch = inner.look
        life.open()
        life.put(NEW, b"new")
        life.close()


def feel_damage(subject: Subject, image: Image, seed: int) -> None:
    """Flip one bit that was acknowledged as on the disk, and expect an error."""
    chance = random.Random(seed)
    path, length = chance.choice(list(subject.layout(image).safe.items()))
    damaged, byte = bytearray(image[path]), chance.randrange(max(length, 1))
    if byte >= len(damaged):
        raise Broken(UNNOTICED, f"{path} ends before byte {byte}, which was safe")
    damaged[byte] ^= 1 << chance.randrange(8)
    disk = SimulatedDisk({**image, path: bytes(damaged)})
    with suppress(kvstore.CorruptionError), subject.open(disk, "r"):
        raise Broken(UNNOTICED, f"it was in byte {byte} of {path}")
