"""Many threads at one store, and all that they saw checked when they are done.

- Rivals put, delete, pop, set defaults of and batch the same few keys, and read them.
- Readers only read.
- Bankers move money between accounts, with one batch for each transfer. So a picture of the
  store has to show all the money.
- Photographers iterate, or open the store read-only beside the writer.
- One thread compacts, and one syncs and checks, as long as the others go on.

In some plays there are rivals and readers alone, and nobody minds who takes what: then there
are also those who pop any item, or clear everything. In some the disk is full for a moment, and
what fails then has not happened. In some one thread closes the store before the others are done.

Each operation is noted with two stamps from one counter. That makes a history of each key,
which has to be linearizable. A picture counts as one read of every key.

A case is a schedule, a sync mode and a seed, such as ``turns always 7``. The seed draws what
each thread does. Who runs when depends on the schedule:

``free``
    The machine decides, and is told to change its mind as often as it can. A replay asks for
    the same, may be answered otherwise, and may have to be run some times.
``turns``
    The seed decides, line by line of the store, in many short plays of a few threads. A
    replay does the same again, with the same version of Python and of the store.

A machine hardly ever stops a thread between two given lines for as long as a compaction takes.
So the turns are made after Burckhardt, Kothari, Musuvathi and Nagarakatte, "A randomized
scheduler with probabilistic guarantees of finding bugs" (ASPLOS 2010): threads have an order,
the first one that can runs, and at a few moments it becomes the last.
"""

from __future__ import annotations

import errno
import gc
import itertools
import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from types import CodeType, FrameType
from typing import Any, NamedTuple

import kvstore
from kvstore.simdisk import SimulatedDisk, no_fault
from tests.disks import PATIENCE
from tests.helpers import Worker
from tests.proof.faults import FullDisk
from tests.proof.history import Changes
from tests.proof.programme import Tally, line
from tests.proof.programs.linearizability import Kind, Operation, misfit
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import Subject, Sync

NAME = "threads"
NEEDS = frozenset({Promise.ONE_MOMENT, Promise.NEWEST, Promise.STILL, Promise.WHOLE})
KINDS = ("turns os", "turns always", "free os", "free always", "free often")
SYNCS: dict[str, Sync] = {"os": "os", "always": "always", "often": 0.001}  # in seconds

CONTESTED = [b"contested %d" % number for number in range(3)]
ACCOUNTS = [b"account %d" % number for number in range(9)]
DEPOSIT = 100
A_READER_BESIDE = "a reader beside the writer"

MOMENT = Breach(Promise.ONE_MOMENT, "a thread got an error while files are replaced")
NEWEST = Breach(Promise.NEWEST, "a read is not answered by the newest write of its key")
STILL = Breach(Promise.STILL, "an iteration does not see the store as it was")
WHOLE = Breach(Promise.WHOLE, "a batch is there in part")
SAFE = Breach(Promise.SAFE, "what was written before a sync or a close is not there")
SOUND = Breach(Promise.NO_GUESSES, "a store that nothing has damaged is found damaged")
GOES_ON = Breach(Promise.NO_GUESSES, "a thread waits for ever")
CLOSED = Breach(Promise.NO_GUESSES, "a close is not what the others are told of")

Shown = Mapping[bytes, bytes | bool]  # what a picture shows; True for a key alone
Look = Callable[[], Iterator[tuple[bytes, bytes | bool]]]  # begins an iteration
Told = tuple[Kind, bytes | bool | None]  # of one key: what was asked, and the answer
Work = Callable[[], None]


def cases(_: Subject) -> list[str]:
    turns = [f"{KINDS[1 - seed % 2]} {seed}" for seed in range(1, 9)]
    return turns + [f"{kind} {seed}" for kind in KINDS[2:] for seed in (1, 2)]


def another(_: Subject, seed: int) -> str:
    return f"{KINDS[seed % len(KINDS)]} {seed}"


# --- who runs when -----------------------------------------------------------------------


class Deadlock(Exception):
    """Threads wait, and none of them will ever go on."""


class Free:
    """The machine decides, and may change its mind after a microsecond, not after 5,000."""

    def lock(self) -> AbstractContextManager[object]:
        """Return a lock for these threads, which one may take again that has it."""
        return threading.RLock()

    def run(self, works: Mapping[str, Work]) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            finish({name: Worker(work) for name, work in works.items()})
        finally:
            sys.setswitchinterval(interval)


def finish(workers: Mapping[str, Worker]) -> None:
    """Wait for the end of each thread, and raise what it raised."""
    for name, worker in workers.items():
        worker.join(PATIENCE)
        if worker.is_alive():
            raise Deadlock(f"{name} does not come to an end")
        worker.done()


CHANGES_OF_TURN = 25  # about so many in one play


class Turns:
    """One thread runs at a time. The seed says before which lines of the store it stops.

    Each line has the same share of the stops, however often it runs. Threads meet at few
    lines, and most of these run rarely.
    """

    def __init__(self, seed: str, meets: Collection[CodeType]) -> None:
        self.now = Player("the thread that began")
        self.visits: Counter[tuple[CodeType, int]] = Counter()  # of each line
        self._meets = meets  # others have what they work on to themselves
        self._chance = random.Random(seed)
        self._players: list[Player] = []  # in their order
        self._plays = 0
        self._deadlock = ""

    def lock(self) -> TurnLock:
        return TurnLock(self)

    def run(self, works: Mapping[str, Work]) -> None:
        self._plays += 1
        players = [Player(name) for name in works]
        self._players = self._chance.sample(players, len(players))
        plays = {p.name: partial(self._play, p, works[p.name]) for p in players}
        workers = {name: Worker(play) for name, play in plays.items()}
        gc.disable()  # or a finalizer that it calls would take a turn inside `_pass_on`
        try:
            self._pass_on()
            finish(workers)
        finally:
            gc.enable()

    def _play(self, player: Player, work: Work) -> None:
        """Run one thread, from its first turn to the end of its last."""
        player.baton.acquire()
        sys.settrace(self._enter)
        try:
            work()
        finally:
            sys.settrace(None)
            self._players.remove(player)
            self._pass_on()

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        """Follow the lines of a function, if threads meet there."""
        return self._step if frame.f_code in self._meets else None

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        """Stop before a line, if the seed says so."""
        if event == "line":
            line = frame.f_code, frame.f_lineno
            self.visits[line] += 1
            share = CHANGES_OF_TURN * self._plays / len(self.visits)
            if self._chance.random() * self.visits[line] < share:
                self.step_back()
        return self._step

    def step_back(self) -> None:
        """Become the last in the order."""
        self._players.remove(self.now)
        self._players.append(self.now)
        self.wait()

    def wait(self) -> None:
        """Let the others run, until it is this thread's turn again."""
        player = self.now
        self._pass_on()
        player.baton.acquire()
        if self._deadlock:
            raise Deadlock(self._deadlock)

    def _pass_on(self) -> None:
        """Give the baton to the first that can run; to all, for their end, if none can."""
        if self._deadlock:
            return
        able = [player for player in self._players if player.can_run()]
        if not able:
            self._deadlock = "; ".join(map(str, self._players))
        for player in able[:1] or self._players:
            self.now = player
            player.baton.release()


class Player:
    """A thread that runs while it has the baton."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.baton = threading.Lock()
        self.baton.acquire()
        self.wants: TurnLock | None = None

    def can_run(self) -> bool:
        """Say whether it does not wait for a lock that another one holds."""
        return self.wants is None or self.wants.holder is None

    def __str__(self) -> str:
        holder = self.wants and self.wants.holder
        return f"{self.name} waits for {holder.name if holder else 'nobody'}"


class TurnLock:
    """A lock for threads that take turns: who waits for it lets the others run."""

    def __init__(self, turns: Turns) -> None:
        self.holder: Player | None = None
        self._turns, self._times = turns, 0

    def acquire(self) -> None:
        player = self._turns.now
        while self.holder not in (None, player):
            player.wants = self
            self._turns.wait()
        player.wants = None
        self.holder = player
        self._times += 1

    def release(self) -> None:
        self._times -= 1
        if not self._times:
            self.holder = None

    def _is_owned(self) -> bool:
        """Say whether this thread has the lock, as those of the library can be asked."""
        return self.holder is self._turns.now

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


# --- what the threads do -----------------------------------------------------------------


class Witness:
    """The store as one thread sees it: each answer is noted, with its two stamps.

    What raises `ClosedError` may have happened or not; what raises anything else has not.
    """

    def __init__(self, db: kvstore.Store, clock: Iterator[int]) -> None:
        self.history: list[tuple[bytes, Operation]] = []
        self.asked = 0
        self._db = db
        self._clock = clock

    @contextmanager
    def _asks(self, given: bytes | None = None) -> Iterator[dict[bytes, Told]]:
        """Note what a call says of some keys: if it is closed meanwhile, as pending."""
        self.asked += 1
        told: dict[bytes, Told] = {}
        invoked, returned = next(self._clock), math.inf
        try:
            yield told
            returned = next(self._clock)
        except Exception as error:
            if not isinstance(error, kvstore.ClosedError):
                told.clear()
            raise
        finally:
            for key, (kind, value) in told.items():
                operation = Operation(kind, value, invoked, returned, given)
                self.history.append((key, operation))

    def ask(self, kind: Kind, key: bytes, given: bytes | None = None) -> Any:
        return self._ask(kind, key, partial(CALLS[kind], self._db, key, given), given)

    def _ask(
        self,
        kind: Kind,
        key: bytes,
        call: Callable[[], Any],
        given: bytes | None = None,
    ) -> Any:
        with self._asks(given) as told:
            told[key] = kind, given
            answer = call()
            told[key] = kind, given if kind == "put" else answer
        return answer

    def popitem(self) -> None:
        """Delete some key. There is none: each of them is missing at that moment."""
        with self._asks() as told:
            told.update(dict.fromkeys(CONTESTED, ("pop", None)))
            try:
                key, value = self._db.popitem()
            except KeyError:
                told.update(dict.fromkeys(CONTESTED, ("in", False)))
            else:
                told.clear()
                told[key] = "pop", value

    def clear(self) -> None:
        with self._asks() as told:
            told.update(dict.fromkeys(CONTESTED, ("put", None)))
            self._db.clear()

    def change(self, changes: Changes) -> None:
        """Put or delete one key, or several of them in a batch."""
        if len(changes) < 2:
            for key, value in changes.items():
                self.ask("delete" if value is None else "put", key, value)
            return
        with self._asks() as told, self._db.batch() as batch:
            for key, value in changes.items():
                if value is not None:
                    batch[key] = value
                elif not self._ask("in", key, partial(deleted, batch, key)):
                    continue
                told[key] = "put", value


CALLS: dict[Kind, Callable[[kvstore.Store, bytes, Any], Any]] = {
    "get": lambda db, key, _: db.get(key),
    "in": lambda db, key, _: key in db,
    "pop": lambda db, key, _: db.pop(key, None),
    "setdefault": lambda db, key, value: db.setdefault(key, value),
    "delete": lambda db, key, _: deleted(db, key),
    "put": lambda db, key, value: db.__setitem__(key, value),
}


def deleted(target: kvstore.Store | kvstore.Batch, key: bytes) -> bool:
    """Delete a key, in a batch only if there is such a key by now; say whether there was."""
    with suppress(KeyError):
        del target[key]
        return True
    return False


class Picture(NamedTuple):
    """What an iteration showed, and what is known of the moment when it began."""

    way: str
    shown: Shown
    length: int  # that of the store, asked while the iteration began
    invoked: int
    returned: int
    alone: bool  # whether all the other threads were done

    @property
    def keys_alone(self) -> bool:
        return True in self.shown.values()

    def reads(self, key: bytes) -> Operation:
        """Return the picture as an answer about one key."""
        if self.keys_alone:
            return Operation("in", key in self.shown, self.invoked, self.returned)
        value = self.shown.get(key)
        return Operation("get", value, self.invoked, self.returned)


class Cast(NamedTuple):
    """How many threads play, and how much each of them does."""

    threads: int  # beside the two that compact and sync
    changes: int
    reads: int
    pictures: int
    passes: int  # compactions and syncs, at most


CROWD = Cast(threads=10, changes=100, reads=300, pictures=40, passes=1_000_000)
FEW = Cast(threads=3, changes=4, reads=8, pictures=2, passes=2)
PLOTS = ("plain", "plain", "scramble", "shortage", "closing")


class Job(NamedTuple):
    """What a thread does, and what breaks if it gets an error."""

    name: str
    breach: Breach
    work: Callable[[str], None]


class Scene:
    """A store, what threads do to it, and what they see."""

    def __init__(
        self, subject: Subject, case: str, play: str, cast: Cast, schedule: Free | Turns
    ) -> None:
        self.subject, self._cast, self._schedule = subject, cast, schedule
        _, sync, seed = case.split()
        self._case, self._seed = line(NAME, subject, case), f"{seed}{play}"
        self.plot = self._chance("plot").choice(PLOTS)
        # In memory a call is many steps of Python, between which the threads can change. And
        # rotations and compactions are cheap there, so that there are many more of them.
        self.disk = SimulatedDisk()
        small = self._chance("files").choice((200, 500))
        self.db = subject.open(self.disk, sync=SYNCS[sync], small=small)
        if isinstance(schedule, Turns):
            for owner, name in subject.locks(self.db):
                setattr(owner, name, schedule.lock())
        self._bank = schedule.lock()
        self._clock = itertools.count()
        self._unfinished: set[str] = set()
        self._is_closed = False
        self.witnesses: list[Witness] = []
        self.pictures: list[Picture] = []
        self.accounts = [] if self.plot == "scramble" else ACCOUNTS
        self.keys = [*CONTESTED, *self.accounts]

    def _chance(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")

    def _witness(self) -> Witness:
        witness = Witness(self.db, self._clock)
        self.witnesses.append(witness)
        return witness

    def broken(self, breach: Breach, state: str) -> Broken:
        return Broken(breach, f"seed {self._seed}, {self.plot}: {state}", self._case)

    def prepare(self) -> None:
        """Fill the store, some keys twice, so that there is something to compact at once."""
        chance, witness = self._chance("before"), self._witness()
        for serial in range(3):
            witness.change(dict.fromkeys(self.accounts, money(DEPOSIT)))
            witness.change(draw(chance, (), f"before, {serial}"))
        if self.plot == "shortage":
            space = self._chance("space").randrange(200 * self._cast.changes)
            self.disk.fault = FullDisk(self.disk, space)

    def play(self) -> None:
        """Let the threads run to their ends, and raise if one of them got an error."""
        tasks = self._chance("cast").sample(list(self._tasks()), self._cast.threads)
        helpers = [
            Job("the thread that compacts", MOMENT, self._compact),
            Job("the thread that syncs", SAFE, self._look_after_it),
        ]
        if self.plot == "closing":
            helpers.append(Job("the thread that closes", CLOSED, self._close))
        self._unfinished = {job.name for job in tasks}
        works = {job.name: partial(self._do, job) for job in (*tasks, *helpers)}
        try:
            self._schedule.run(works)
        except Deadlock as error:
            raise self.broken(GOES_ON, str(error)) from error

    def _do(self, job: Job) -> None:
        """Run one thread, and say what breaks with an error."""
        try:
            job.work(job.name)
        except (Broken, Deadlock):
            raise
        except Exception as error:
            if not (self._is_closed and isinstance(error, kvstore.ClosedError)):
                raise self.broken(job.breach, f"{job.name} got {error!r}") from error
        finally:
            self._unfinished.discard(job.name)

    def _tasks(self) -> Iterator[Job]:
        for number in range(2):
            yield Job(f"rival {number}", NEWEST, self._be_a_rival)
            yield Job(f"reader {number}", NEWEST, self._read)
            yield Job(f"photographer {number}", STILL, self._take_pictures)
        for number in range(4):
            if self.plot == "scramble":
                yield Job(f"robber {number}", NEWEST, self._be_a_rival)
            else:
                yield Job(f"banker {number}", WHOLE, self._move_money)

    @contextmanager
    def _space(self) -> Iterator[None]:
        """Take what a full disk did not do for not done."""
        try:
            yield
        except OSError as error:
            if self.plot != "shortage" or error.errno != errno.ENOSPC:
                raise

    def _be_a_rival(self, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        ways = ["change", "change", "pop", "setdefault"]
        ways += ["popitem", "popitem", "clear"] if name.startswith("robber") else []
        for serial in range(self._cast.changes):
            changes = draw(chance, CONTESTED, f"{name}, {serial}")
            way, key = chance.choice(ways), chance.choice(CONTESTED)
            with self._space():
                if way == "change":
                    witness.change(changes)
                elif way == "pop":
                    witness.ask("pop", key)
                elif way == "setdefault":
                    value = f"{name}, {serial}, at last".encode()
                    witness.ask("setdefault", key, value)
                else:
                    getattr(witness, way)()
            witness.ask("get", chance.choice(CONTESTED))

    def _read(self, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        for _ in range(self._cast.reads):
            kind: Kind = chance.choice(("get", "get", "in"))
            witness.ask(kind, chance.choice(self.keys))

    def _move_money(self, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        for _ in range(self._cast.changes):
            source, target = chance.sample(ACCOUNTS, 2)
            share = chance.choice((1.0, chance.random()))
            with self._bank, self._space():  # nothing is promised between get and batch
                had, has = (amount(witness.ask("get", k)) for k in (source, target))
                moved = round(had * share)
                witness.change({source: money(had - moved), target: money(has + moved)})

    def _take_pictures(self, name: str) -> None:
        ways: dict[str, Look] = {
            "an iteration over items": self._items,
            "an iteration over keys": lambda: zip(self.db, itertools.repeat(True)),
            A_READER_BESIDE: self._open_beside,
        }
        chance = self._chance(name)
        for _ in range(self._cast.pictures):
            way = chance.choice(list(ways))
            self._take_picture(f"{way}, by {name}", ways[way])

    def _items(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.db.items())

    def _open_beside(self) -> Iterator[tuple[bytes, bytes]]:
        with self.subject.open(self.disk, "r") as db:
            return iter(db.items())

    def _take_picture(self, way: str, look: Look, *, alone: bool = False) -> None:
        """Begin an iteration, note what it may see, and only then read to its end."""
        invoked = next(self._clock)
        iterator, length = look(), len(self.db)
        returned = next(self._clock)
        picture = Picture(way, dict(iterator), length, invoked, returned, alone)
        self.pictures.append(picture)

    def _compact(self, name: str) -> None:
        chance = self._chance(name)
        for _ in self._passes():
            with self._space():
                self.subject.rearrange(self.db, chance.choice((0.0, 0.3, 0.6)))

    def _look_after_it(self, name: str) -> None:
        chance = self._chance(name)
        for _ in self._passes():
            ways = (self.db.sync, self.db.sync, self._verify, self._ask_for_more)
            chance.choice(ways)()

    def _verify(self) -> None:
        damage, torn = self.subject.damage(self.db), self.subject.torn_tail(self.db)
        if damage or torn:
            raise self.broken(SOUND, f"damage: {damage}; torn tail: {torn}")

    def _ask_for_more(self) -> None:
        keys = self.db.stats().keys
        if keys > len(self.keys) or not repr(self.db):
            raise self.broken(NEWEST, f"there are {keys} keys of {len(self.keys)}")

    def _close(self, name: str) -> None:
        left = self._chance(name).randrange(4)
        while self._unfinished and left:
            left -= 1
            self.db.get(CONTESTED[0])
        self._is_closed = True
        self.db.close()

    def _passes(self) -> Iterator[int]:
        """Count, as long as the others go on."""
        return itertools.takewhile(lambda _: self._unfinished, range(self._cast.passes))

    def end(self) -> None:
        """Look at what is left when all the threads are done."""
        self._do(Job("the thread that began", SOUND, self._close_and_open_again))

    def _close_and_open_again(self, _name: str) -> None:
        """Take the last pictures, of the store as it is and as its files have it."""
        self.disk.fault = no_fault
        if not self._is_closed:
            self._take_picture("the store at the end", self._items, alone=True)
            self._verify()
        self._is_closed = False
        self.db.close()
        self.db = self.subject.open(self.disk)
        self._take_picture("the store opened again", self._items, alone=True)
        self._verify()
        self.db.close()


def draw(chance: random.Random, there: Collection[bytes], name: str) -> Changes:
    """Draw changes of one key or more: a delete of some that are there, or a new value."""
    changes: dict[bytes, bytes | None] = {}
    for key in chance.sample(CONTESTED, chance.choice((1, 1, 2, 3))):
        value = f"{name}, {key.decode()}".encode() + b"." * chance.randrange(40)
        changes[key] = None if key in there and chance.random() < 0.4 else value
    return changes


def amount(value: bytes | None) -> int:
    """Return the balance of an account; one that is missing is empty."""
    return int(value or b"0")


def money(balance: int) -> bytes | None:
    """Return what stands for a balance: an empty account is deleted."""
    return b"%d" % balance if balance else None


# --- what they may have seen -------------------------------------------------------------


def check_picture(scene: Scene, picture: Picture) -> None:
    """Raise if a picture shows strange keys or not all the money, or the length is wrong."""
    strangers = picture.shown.keys() - set(scene.keys)
    if strangers:
        state = f"{picture.way} shows keys that nobody put: {strangers}"
        raise scene.broken(NEWEST, state)
    accounts = {key: picture.shown.get(key, b"0") for key in scene.accounts}
    total, paid_in = sum(map(int, accounts.values())), DEPOSIT * len(accounts)
    if not picture.keys_alone and total != paid_in:
        state = f"{picture.way} finds {total} and not {paid_in} in all: {accounts}"
        raise scene.broken(WHOLE, state)
    least, most = (
        min(1, len(accounts)),
        len(scene.keys),
    )  # one account at least is never empty
    if picture.alone:
        least = most = len(picture.shown)
    if not least <= picture.length <= most:
        state = f"{picture.length} keys, and {least} to {most} are possible"
        raise scene.broken(NEWEST, f"the store says that it has {state}")


def check_histories(scene: Scene, beside: bool) -> None:
    """Raise unless the history of each key is linearizable, pictures included.

    A reader beside the writer looks into the files, where a change is some steps before it
    is in memory. So its pictures and the answers of the writer's threads are two
    histories, which have the changes in common.
    """
    pictures = [
        picture
        for picture in scene.pictures
        if picture.way.startswith(A_READER_BESIDE) == beside
    ]
    histories = {key: [each.reads(key) for each in pictures] for key in scene.keys}
    for witness in scene.witnesses:
        for key, operation in witness.history:
            if not beside or operation.kind not in ("get", "in"):
                histories[key].append(operation)
    for key, history in histories.items():
        found = misfit(history)
        if found is not None:
            raise scene.broken(NEWEST, f"the history of {key!r} is impossible: {found}")


PLAYS = 200  # short ones in a case of turns


def scenes(subject: Subject, case: str, turns: Turns | None = None) -> Iterator[Scene]:
    schedule, _, seed = case.split()
    if schedule == "free":
        yield Scene(subject, case, "", CROWD, Free())
        return
    turns = turns or Turns(seed, subject.meets)
    for number in range(PLAYS):
        yield Scene(subject, case, f", play {number}", FEW, turns)


def check(played: Iterable[Scene]) -> Tally:
    tally = Tally()
    for scene in played:
        scene.prepare()
        scene.play()
        scene.end()
        for picture in scene.pictures:
            check_picture(scene, picture)
        for beside in (False, True):
            check_histories(scene, beside)
        asked = sum(each.asked for each in scene.witnesses)
        tally.count("operations of threads*", asked)
        tally.count("pictures of the store*", len(scene.pictures))
        tally.count("histories of keys", len(scene.keys))
    return tally


def run(subject: Subject, case: str) -> Tally:
    return check(scenes(subject, case))
