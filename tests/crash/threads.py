"""Many threads at one store, and all that they saw checked when they are done.

- Rivals put, delete and batch the same few keys, and read them.
- Readers only read.
- Diarists have keys of their own. What these hold after each change is known, so a picture
  of the store has to show one of these states, whole.
- Bankers move money between accounts, with one batch for each transfer.
- Photographers iterate, or open the store read-only beside the writer.
- One thread compacts and one syncs, as long as the others go on.

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

import itertools
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol

from linearizability import Kind, Operation, misfit
from proof import Broken, Contents, Tally
from support import PATIENCE, Worker

import kvstore
from kvstore.simdisk import SimulatedDisk
from kvstore.store import Sync

NAME = "threads"
KINDS = ("turns os", "turns always", "free os", "free always", "free often")
CASES = [f"{KINDS[1 - seed % 2]} {seed}" for seed in range(1, 9)] + [
    f"{kind} {seed}" for kind in KINDS[2:] for seed in (1, 2)
]
SYNCS: dict[str, Sync] = {"os": "os", "always": "always", "often": 0.001}  # in seconds

CONTESTED = [b"contested %d" % number for number in range(3)]
ACCOUNTS = [b"account %d" % number for number in range(3)]
DIARIES = [[b"diary %d, %d" % (n, m) for m in range(3)] for n in range(2)]
KEYS = [*CONTESTED, *ACCOUNTS, *itertools.chain(*DIARIES)]
DEPOSIT = 100
PATH = "store"
A_READER_BESIDE = "a reader beside the writer"

MOMENT = "T2, one moment: segments are replaced while others read and write"
NEWEST = "T3, the newest, checked: a read answers by the newest write of its key"
STILL = "T4, a still picture: an iteration sees the store as it was when it began"
WHOLE = "T5, all or nothing: a batch is there whole or not at all"
SAFE = "T7, safe when you say: a sync returns when everything before it is on the disk"
SOUND = "T8, no guesses: a store that nothing has damaged is found whole"
GOES_ON = "four locks, taken in one order: no thread waits for ever"

Changes = Mapping[bytes, bytes | None]  # None: the key is deleted
Shown = Mapping[bytes, bytes | bool]  # what a picture shows; True for a key alone
Look = Callable[[], Iterator[tuple[bytes, bytes | bool]]]  # begins an iteration
Work = Callable[[], None]


def another(seed: int) -> str:
    """Return a case for a run that goes on."""
    return f"{KINDS[seed % len(KINDS)]} {seed}"


# Who runs when


class Deadlock(Exception):
    """Threads wait, and none of them will ever go on."""


class Schedule(Protocol):
    """A way to run several threads together."""

    def lock(self) -> AbstractContextManager[object]:
        """Return a lock for these threads."""

    def run(self, works: Mapping[str, Work]) -> None:
        """Run them all, by name, to their ends; raise the error that one of them got."""


class Free:
    """The machine decides, and may change its mind after a microsecond, not after 5,000."""

    def lock(self) -> AbstractContextManager[object]:
        """Return a lock for these threads."""
        return threading.Lock()

    def run(self, works: Mapping[str, Work]) -> None:
        """Run them all, by name, to their ends; raise the error that one of them got."""
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


CHANGES_OF_TURN = 12  # about so many in one play
MEETING_PLACES = ("Store.", "Index.", "load_beside_a_writer")


def threads_meet_in(code: CodeType) -> bool:
    """Say whether a function works on what threads share; others have it to themselves."""
    return code.co_qualname.startswith(MEETING_PLACES) and code.co_name != "__init__"


class Turns:
    """One thread runs at a time. The seed says before which lines of the store it stops.

    Each line has the same share of the stops, however often it runs. Threads meet at few
    lines, and most of these run rarely.
    """

    def __init__(self, seed: str) -> None:
        self.now = Player("the thread that began")
        self._chance = random.Random(seed)
        self._players: list[Player] = []  # in their order
        self._visits: Counter[tuple[CodeType, int]] = Counter()  # of each line
        self._plays = 0
        self._deadlock = ""

    def lock(self) -> TurnLock:
        """Return a lock for these threads."""
        return TurnLock(self)

    def run(self, works: Mapping[str, Work]) -> None:
        """Run them all, by name, to their ends; raise the error that one of them got."""
        self._plays += 1
        players = {name: Player(name) for name in works}
        self._players = self._chance.sample(list(players.values()), len(players))
        workers = {
            name: Worker(partial(self._play, player, works[name]))
            for name, player in players.items()
        }
        self._pass_on()
        finish(workers)

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
        return self._step if threads_meet_in(frame.f_code) else None

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        """Stop before a line, if the seed says so."""
        if event == "line":
            line = frame.f_code, frame.f_lineno
            self._visits[line] += 1
            share = CHANGES_OF_TURN * self._plays / len(self._visits)
            if self._chance.random() * self._visits[line] < share:
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
        self._turns = turns

    def acquire(self) -> None:
        """Take the lock."""
        player = self._turns.now
        while self.holder is not None:
            player.wants = self
            self._turns.wait()
        player.wants = None
        self.holder = player

    def release(self) -> None:
        """Let go of the lock."""
        self.holder = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


LOCK = type(threading.Lock())


def replace_locks(db: kvstore.Store, schedule: Schedule) -> None:
    """Have a store use the locks of a schedule in place of its own."""
    for name, value in vars(db).copy().items():
        if isinstance(value, LOCK):
            setattr(db, name, schedule.lock())


# What the threads do


class Witness:
    """The store as one thread sees it: each answer is noted, with its two stamps."""

    def __init__(self, db: kvstore.Store, clock: Iterator[int]) -> None:
        self.history: list[tuple[bytes, Operation]] = []
        self.asked = 0
        self._db = db
        self._clock = clock

    def _note(
        self, kind: Kind, key: bytes, value: bytes | bool | None, invoked: int
    ) -> None:
        operation = Operation(kind, value, invoked, next(self._clock))
        self.history.append((key, operation))

    def get(self, key: bytes) -> bytes | None:
        """Get a value, None if the key is missing."""
        self.asked += 1
        invoked = next(self._clock)
        value = self._db.get(key)
        self._note("get", key, value, invoked)
        return value

    def look(self, key: bytes) -> None:
        """Ask whether there is such a key."""
        self.asked += 1
        invoked = next(self._clock)
        self._note("in", key, key in self._db, invoked)

    def change(self, changes: Changes) -> None:
        """Put or delete one key, or several of them in a batch."""
        self.asked += 1
        if len(changes) > 1:
            self._batch(changes)
            return
        for key, value in changes.items():
            if value is None:
                self._delete(key)
            else:
                self._put(key, value)

    def _put(self, key: bytes, value: bytes) -> None:
        invoked = next(self._clock)
        self._db[key] = value
        self._note("put", key, value, invoked)

    def _delete(self, key: bytes) -> None:
        invoked, found = next(self._clock), False
        with suppress(KeyError):
            del self._db[key]
            found = True
        self._note("delete", key, found, invoked)

    def _batch(self, changes: Changes) -> None:
        with self._db.batch() as batch:
            taken = [key for key in changes if self._take(batch, key, changes[key])]
            invoked = next(self._clock)
        for key in taken:
            self._note("put", key, changes[key], invoked)

    def _take(self, batch: kvstore.Batch, key: bytes, value: bytes | None) -> bool:
        """Take a change into a batch; a delete only if there is such a key by now."""
        if value is not None:
            batch[key] = value
            return True
        invoked, found = next(self._clock), False
        with suppress(KeyError):
            del batch[key]
            found = True
        self._note("in", key, found, invoked)
        return found


@dataclass
class Diary:
    """Keys that one thread alone writes, and what they held after each of its changes."""

    keys: Sequence[bytes]
    states: list[Contents] = field(default_factory=lambda: [{}])
    done: int = 0  # changes that have returned

    def change(self, witness: Witness, changes: Changes) -> None:
        """Note the state to come, and then make the changes that lead to it."""
        after = {**self.states[-1], **changes}
        self.states.append({k: v for k, v in after.items() if v is not None})
        witness.change(changes)
        self.done += 1


class Picture(NamedTuple):
    """What an iteration showed, and what is known of the moment when it began."""

    promise: str
    way: str
    shown: Shown
    length: int  # that of the store, asked while the iteration began
    invoked: int
    returned: int
    windows: Sequence[range]  # which states of each diary there can have been meanwhile

    @property
    def keys_alone(self) -> bool:
        """Say whether the picture shows no values."""
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


class Job(NamedTuple):
    """What a thread does, and the promise that it relies on."""

    name: str
    promise: str
    work: Callable[[str], None]


class Scene:
    """A store, what threads do to it, and what they see."""

    def __init__(
        self, case: str, seed: str, sync: Sync, cast: Cast, schedule: Schedule
    ) -> None:
        self._case, self._seed, self._cast, self._schedule = case, seed, cast, schedule
        # In memory a call is many steps of Python, between which the threads can change. And
        # rotations and compactions are cheap there, so that there are many more of them.
        self._disk = SimulatedDisk()
        self.db = kvstore.open(
            PATH,
            sync=sync,
            segment_bytes=self._chance("segments").choice((200, 500)),
            filesystem=self._disk,
        )
        replace_locks(self.db, schedule)
        self._bank = schedule.lock()
        self._clock = itertools.count()
        self._unfinished: set[str] = set()
        self.witnesses: list[Witness] = []
        self.diaries = [Diary(keys) for keys in DIARIES]
        self.pictures: list[Picture] = []

    def _chance(self, name: str) -> random.Random:
        """Return the randomness of one thread."""
        return random.Random(f"{self._seed} {name}")

    def _witness(self) -> Witness:
        witness = Witness(self.db, self._clock)
        self.witnesses.append(witness)
        return witness

    def broken(self, promise: str, state: str) -> Broken:
        """Return the error for a promise that broke here."""
        return Broken(promise, f"{self._seed}: {state}", f"{NAME} {self._case}")

    def prepare(self) -> None:
        """Fill the store, some keys twice, so that there is something to compact at once."""
        chance, witness = self._chance("before"), self._witness()
        witness.change(dict.fromkeys(ACCOUNTS, money(DEPOSIT)))
        for serial in range(3):
            witness.change(draw(chance, CONTESTED, (), f"before, {serial}"))
            for diary in self.diaries:
                diary.change(witness, draw(chance, diary.keys, (), f"before, {serial}"))

    def play(self) -> None:
        """Let the threads run to their ends, and raise if one of them got an error."""
        tasks = self._chance("cast").sample(list(self._tasks()), self._cast.threads)
        helpers = [
            Job("the thread that compacts", MOMENT, self._compact),
            Job("the thread that syncs", SAFE, self._sync),
        ]
        self._unfinished = {job.name for job in tasks}
        works = {job.name: partial(self._do, job) for job in (*tasks, *helpers)}
        try:
            self._schedule.run(works)
        except Deadlock as error:
            raise self.broken(GOES_ON, str(error)) from error

    def _do(self, job: Job) -> None:
        """Run one thread, and say which promise an error breaks."""
        try:
            job.work(job.name)
        except (Broken, Deadlock):
            raise
        except Exception as error:
            raise self.broken(job.promise, f"{job.name} got {error!r}") from error
        finally:
            self._unfinished.discard(job.name)

    def _tasks(self) -> Iterator[Job]:
        for number, diary in enumerate(self.diaries):
            yield Job(f"rival {number}", NEWEST, self._be_a_rival)
            yield Job(f"reader {number}", NEWEST, self._read)
            yield Job(f"diarist {number}", NEWEST, partial(self._keep, diary))
            yield Job(f"banker {number}", WHOLE, self._move_money)
            yield Job(f"photographer {number}", STILL, self._take_pictures)

    def _be_a_rival(self, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        for serial in range(self._cast.changes):
            witness.change(draw(chance, CONTESTED, CONTESTED, f"{name}, {serial}"))
            witness.get(chance.choice(CONTESTED))

    def _read(self, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        for _ in range(self._cast.reads):
            ask = chance.choice((witness.get, witness.get, witness.look))
            ask(chance.choice(KEYS))

    def _keep(self, diary: Diary, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        for serial in range(self._cast.changes):
            there = diary.states[-1]
            changes = draw(chance, diary.keys, there, f"{name}, {serial}")
            diary.change(witness, changes)

    def _move_money(self, name: str) -> None:
        chance, witness = self._chance(name), self._witness()
        for _ in range(self._cast.changes):
            source, target = chance.sample(ACCOUNTS, 2)
            share = chance.choice((1.0, chance.random()))
            with self._bank:  # the store promises nothing between a get and a batch
                had, gets = amount(witness.get(source)), amount(witness.get(target))
                moved = round(had * share)
                witness.change(
                    {source: money(had - moved), target: money(gets + moved)}
                )

    def _take_pictures(self, name: str) -> None:
        ways: dict[str, Look] = {
            "an iteration over items": self._items,
            "an iteration over keys": lambda: zip(self.db, itertools.repeat(True)),
            A_READER_BESIDE: self._open_beside,
        }
        chance = self._chance(name)
        for _ in range(self._cast.pictures):
            way = chance.choice(list(ways))
            self._take_picture(STILL, f"{way}, by {name}", ways[way])

    def _items(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.db.items())

    def _open_beside(self) -> Iterator[tuple[bytes, bytes]]:
        with kvstore.open(PATH, "r", filesystem=self._disk) as db:
            return iter(db.items())

    def _take_picture(self, promise: str, way: str, look: Look) -> None:
        """Begin an iteration, note what it may see, and only then read to its end."""
        done = [diary.done for diary in self.diaries]
        invoked = next(self._clock)
        iterator, length = look(), len(self.db)
        returned = next(self._clock)
        begun = [len(diary.states) for diary in self.diaries]
        windows = list(map(range, done, begun))
        shown = dict(iterator)
        self.pictures.append(
            Picture(promise, way, shown, length, invoked, returned, windows)
        )

    def _compact(self, name: str) -> None:
        chance = self._chance(name)
        for _ in self._passes():
            self.db.compact(chance.choice((0.0, 0.3, 0.6)))

    def _sync(self, _name: str) -> None:
        for _ in self._passes():
            self.db.sync()

    def _passes(self) -> Iterator[int]:
        """Count, as long as the others go on."""
        return itertools.takewhile(lambda _: self._unfinished, range(self._cast.passes))

    def end(self) -> None:
        """Look at what is left when all the threads are done."""
        self._do(Job("the thread that began", SOUND, self._close_and_open_again))

    def _close_and_open_again(self, _name: str) -> None:
        """Take the last pictures, of the store as it is and as its files have it."""
        self._take_picture(NEWEST, "the store at the end", self._items)
        self._verify()
        self.db.close()
        self.db = kvstore.open(PATH, filesystem=self._disk)
        self._take_picture(SAFE, "the store opened again", self._items)
        self._verify()
        self.db.close()

    def _verify(self) -> None:
        found = self.db.verify()
        if self.db.torn_tail or not found.ok:
            raise self.broken(SOUND, f"{found}; torn tail: {self.db.torn_tail}")


def draw(
    chance: random.Random, keys: Sequence[bytes], there: Collection[bytes], name: str
) -> Changes:
    """Draw changes of one key or more: a delete of some that are there, or a new value."""
    changes: dict[bytes, bytes | None] = {}
    for key in chance.sample(keys, chance.choice((1, 1, 2, 3))):
        value = f"{name}, {key.decode()}".encode() + b"." * chance.randrange(40)
        changes[key] = None if key in there and chance.random() < 0.4 else value
    return changes


def amount(value: bytes | None) -> int:
    """Return the balance of an account; one that is missing is empty."""
    return int(value or b"0")


def money(balance: int) -> bytes | None:
    """Return what stands for a balance: an empty account is deleted."""
    return b"%d" % balance if balance else None


# What they may have seen


def check_picture(scene: Scene, picture: Picture) -> None:
    """Raise unless a picture shows what the store held at one moment."""
    strangers = picture.shown.keys() - set(KEYS)
    if strangers:
        state = f"{picture.way} shows keys that nobody put: {strangers}"
        raise scene.broken(picture.promise, state)
    if not picture.keys_alone:
        check_bank(scene, picture)
    for diary, window in zip(scene.diaries, picture.windows, strict=True):
        check_diary(scene, picture, diary, window)
    check_length(scene, picture)


def check_bank(scene: Scene, picture: Picture) -> None:
    """Raise unless a picture has all the money."""
    accounts = {key: int(picture.shown.get(key, b"0")) for key in ACCOUNTS}
    total, paid_in = sum(accounts.values()), DEPOSIT * len(ACCOUNTS)
    if total != paid_in:
        state = f"{picture.way} finds {total} and not {paid_in} in all: {accounts}"
        raise scene.broken(WHOLE, state)


def check_diary(scene: Scene, picture: Picture, diary: Diary, window: range) -> None:
    """Raise unless a picture shows a diary in one of the states that it had meanwhile."""
    shown = {k: v for k, v in picture.shown.items() if k in diary.keys}
    possible = [diary.states[number] for number in window]
    if picture.keys_alone:
        seen = shown.keys() in [state.keys() for state in possible]
    else:
        seen = shown in possible
    if not seen:
        state = f"{picture.way} shows {shown}, and the states meanwhile were {possible}"
        raise scene.broken(picture.promise, state)


def check_length(scene: Scene, picture: Picture) -> None:
    """Raise unless a length is possible. One account at least is never empty."""
    least = 1 + sum(
        min(len(diary.states[number]) for number in window)
        for diary, window in zip(scene.diaries, picture.windows, strict=True)
    )
    if not least <= picture.length <= len(KEYS):
        state = f"{picture.length} keys, where {least} to {len(KEYS)} are possible"
        raise scene.broken(NEWEST, f"the store says that it has {state}")


def check_histories(scene: Scene, beside: bool) -> None:
    """Raise unless the history of each key is linearizable, pictures included.

    A reader beside the writer looks into the files, where a change is some steps before it
    is in the index. So its pictures and the answers of the writer's threads are two
    histories, which have the changes in common.
    """
    pictures = [
        each
        for each in scene.pictures
        if each.way.startswith(A_READER_BESIDE) == beside
    ]
    histories = {key: [picture.reads(key) for picture in pictures] for key in KEYS}
    for witness in scene.witnesses:
        for key, operation in witness.history:
            if not beside or operation.kind in ("put", "delete"):
                histories[key].append(operation)
    for key, history in histories.items():
        found = misfit(history)
        if found is not None:
            raise scene.broken(NEWEST, f"the history of {key!r} is impossible: {found}")


PLAYS = 200  # short ones in a case of turns


def scenes(case: str) -> Iterator[Scene]:
    """Yield what a case consists of."""
    schedule, sync, seed = case.split()
    if schedule == "free":
        yield Scene(case, f"seed {seed}", SYNCS[sync], CROWD, Free())
        return
    turns = Turns(seed)
    for number in range(PLAYS):
        name = f"seed {seed}, play {number}"
        yield Scene(case, name, SYNCS[sync], FEW, turns)


def run(case: str) -> Tally:
    """Let the threads of a case run, and check all that they saw."""
    tally = Tally()
    for scene in scenes(case):
        scene.prepare()
        scene.play()
        scene.end()
        for picture in scene.pictures:
            check_picture(scene, picture)
        for beside in (False, True):
            check_histories(scene, beside)
        tally["operations of threads*"] += sum(each.asked for each in scene.witnesses)
        tally["pictures of the store*"] += len(scene.pictures)
        tally["histories of keys"] += len(KEYS)
    return tally
