"""Processes that write, killed with kill -9, and one that looks on all the while.

A case is a sync mode, a number of kills and a seed, such as ``always 25 7``. Real processes
work on real files. A writer puts, deletes and batches, compacts in a second thread, syncs,
closes and opens again, until it is killed. The next one goes on with what it left, so a
recovery finds stores that were recovered before, and such whose recovery was killed.

Every second writer dies at a call to the operating system that the seed has drawn, such as
the fifth of those in recovery; if that is a write, a part of it gets through first. The others are
killed from outside after some changes. A writer tells of each change when it is done, and
nothing of what it has begun. So what it leaves is the state after the last change that it
told of, or after one more.

The onlooker opens the store read-only over and over. Whatever it sees has to be a state of
the history, and no older one than it saw before. It dawdles, as the writers that are killed
from outside do, so that much happens between two of its calls.

How the threads of a writer take turns, and where a kill from outside falls, is the machine's
choice: a replay makes the same changes, and may be killed elsewhere. In what is counted, a
star stands for what differs from run to run.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, Self

import kvstore
from kvstore.simdisk import Operation
from tests.disks import PATIENCE, FaultyFileSystem, Rule, on_a_disk
from tests.helpers import Worker
from tests.proof.faults import codes_on_the_stack
from tests.proof.history import Changes, Contents, History
from tests.proof.programme import Tally, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import PATH, Engine, Subject, Sync, Tail
from tests.proof.surviving import survive
from tests.proof.workloads import make

NAME = "kills"
NEEDS = frozenset({Promise.ONLY_THE_END, Promise.ONE_MOMENT})
MODES: dict[str, Sync] = {"os": "os", "always": "always", "0.01": 0.01}
SMALL = (1_000, 4_000, 16_000)
SWITCH_SECONDS = 0.0001  # threads take turns more often than usual

KEYS = [b"key-%d" % number for number in range(40)]

NEWEST = Breach(Promise.NEWEST, "a process does not read what it wrote last")
PICTURE = Breach(Promise.STILL, "somebody saw what never was a state, or is none now")
FORWARD = Breach(Promise.ONLY_THE_END, "another process saw an older state than before")
TORN = Breach(Promise.NO_GUESSES, "a torn tail, and no write was cut off")
ERROR = Breach(Promise.NO_GUESSES, "there is an error where nothing is wrong")


def cases(_: Subject) -> list[str]:
    """Return eight stores, each of them killed 25 times."""
    return [f"{list(MODES)[n % len(MODES)]} 25 {1492 + n}" for n in range(8)]


def another(_: Subject, seed: int) -> str:
    return f"{list(MODES)[seed % len(MODES)]} 200 {seed}"


def run(subject: Subject, case: str) -> Tally:
    """Kill one writer after the other, and look at what each of them has left."""
    mode, kills, seed = case.split()
    with TemporaryDirectory(prefix="kills-") as directory:
        trial = Trial(subject, Path(directory) / PATH, MODES[mode], int(seed))
        try:
            with Child(trial.look_on) as onlooker:
                for number in range(int(kills)):
                    trial.kill_a_writer(from_outside=number % 2 == 1)
                    trial.compare(onlooker.hear())
        except Broken as error:
            where = f"kill {trial.tally.often['kills']}, {trial.last_words}"
            raise error.seen(where, line(NAME, subject, case)) from error.__cause__
    return trial.tally


def differences(found: Contents, expected: Contents) -> str:
    """Say of some keys what they hold, and should: values begin with key and change."""
    keys = sorted(found.keys() | expected.keys())
    pairs = ((key, found.get(key), expected.get(key)) for key in keys)
    wrong = [(key, has, right) for key, has, right in pairs if has != right]
    told = (f"{k!r}: {has!r:.40}, and not {right!r:.40}" for k, has, right in wrong[:5])
    return "; ".join(told)


def a_change(chance: random.Random, contents: Contents, number: int) -> Changes:
    """Return a put, a delete or a batch; now and then with a value of several pages.

    No value comes twice.
    """
    change: dict[bytes, bytes | None] = {}
    for key in chance.sample(KEYS, chance.choice((1, 1, 1, 2, 5))):
        longest = 3 * mmap.PAGESIZE if chance.random() < 0.02 else 80
        value = b"%s %d %s" % (key, number, chance.randbytes(chance.randrange(longest)))
        change[key] = None if key in contents and chance.random() < 0.3 else value
    return change


def print_of(contents: Contents) -> int:
    """Return a number that tells states apart, the same in every process forked from here."""
    return hash(frozenset(contents.items()))


REPORT = b"\0"  # what comes behind it in a pipe is an error that a child reports
REPORT_BYTES = 2_000  # a report that fits a pipe's unit arrives whole or not at all


class Child:
    """A forked process that tells of its work over a pipe. It is gone behind the block."""

    def __init__(self, work: Callable[[int], NoReturn]) -> None:
        receive, send = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(receive)
            act(work, send)
        os.close(send)
        self._pipe = open(receive, "rb", buffering=0)  # noqa: SIM115 - `end` closes it

    def hear(self) -> bytes:
        """Return what the process says next; nothing if it was killed."""
        said, reported, report = self._pipe.read(1 << 17).partition(REPORT)
        if reported:
            raise pickle.loads(report)
        if not said and (status := self.end()) != signal.SIGKILL:
            raise Broken(ERROR, f"a process ended with status {status}")
        return said

    def hear_to_the_end(self, lines: float) -> bytes:
        """Kill the process when it has said so many lines, and return all that it said."""
        said = b""
        while True:
            if said.count(b"\n") >= lines:
                os.kill(self.process, signal.SIGKILL)
            more = self.hear()
            if not more:
                return said
            said += more

    def end(self) -> int:
        """Kill the process if it lives, and return with which status it ended."""
        self._pipe.close()
        os.kill(self.process, signal.SIGKILL)
        return os.waitpid(self.process, 0)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._pipe.closed:
            self.end()


def act(work: Callable[[int], NoReturn], send: int) -> NoReturn:
    """Do a child's work, which ends when it is killed, or report why it failed."""
    try:
        work(send)
    except Broken as error:
        report = error
    except BaseException:  # noqa: BLE001 - whatever it is, the parent raises it
        report = Broken(ERROR, traceback.format_exc()[-REPORT_BYTES:])
    with suppress(BrokenPipeError):  # the parent is gone
        os.write(send, REPORT + pickle.dumps(report))
    os._exit(1)


@dataclass
class Death:
    """How a writer dies, which tells of it before. It is asked before each call."""

    subject: Subject
    place: str  # in which part of the store
    call: int  # at which call there
    share: float  # of the bytes, if that call is a write, that get through
    send: int = -1
    last_words: str = ""

    def __call__(self, operation: Operation) -> int | None:
        """Die if this is the call; if it is a write, at the next one, and cut this short."""
        if not self.last_words:
            places = map(self.subject.places.get, codes_on_the_stack())
            if next(filter(None, places), None) != self.place:
                return None
            self.call -= 1
            if self.call:
                return None
            name, path, _, length = operation
            self.last_words = f"{self.place}: {name} {path}"
            if name == "write":
                part = round(self.share * length)
                self.last_words += f", {part} of {length} bytes"
                return part
        os.write(self.send, self.last_words.encode())
        os.kill(os.getpid(), signal.SIGKILL)
        return None


def dawdling(seed: int) -> FaultyFileSystem:
    """Return the real files, with stops before some calls, so that others get ahead."""
    chance = random.Random(seed)

    def dawdle(_: Operation) -> None:
        if chance.random() < 0.03:
            time.sleep(0.001)

    return real_disk(dawdle)


def real_disk(rule: Rule) -> FaultyFileSystem:
    disk = FaultyFileSystem()
    disk.rules.append(rule)
    return disk


@dataclass
class Trial:
    """One store, and all that is known of it."""

    subject: Subject
    directory: Path
    sync: Sync
    seed: int
    history: History = field(default_factory=History)
    prints: list[int] = field(default_factory=lambda: [print_of({})])  # of all states
    seen: int = 0  # the number of the newest state that the onlooker saw
    last_words: str = ""  # of the last writer
    torn: Tail | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.small = self.chance.choice(SMALL)

    def look_on(self, send: int) -> NoReturn:
        """Read everything, over and over, and tell what was seen."""
        disk = dawdling(self.seed)
        while True:
            signal.alarm(int(PATIENCE))  # a process that hangs ends
            try:
                with self.subject.open(disk, "r", path=str(self.directory)) as db:
                    seen = dict(db)
            except kvstore.StoreNotFoundError:
                seen = {}  # as if empty: later on it would be an older state
            signal.alarm(0)
            disk.forget()
            os.write(send, b"%d\n" % print_of(seen))

    def compare(self, said: bytes) -> None:
        """Find what the onlooker saw in the history, each time where it was or later."""
        for seen in map(int, said.split()):
            self.tally.count("read-only openings*")
            if seen not in self.prints[self.seen :]:
                breach = FORWARD if seen in self.prints else PICTURE
                state = f"after state {self.seen} of {len(self.prints) - 1}"
                raise Broken(breach, state)
            self.seen = self.prints.index(seen, self.seen)

    def kill_a_writer(self, *, from_outside: bool) -> None:
        """Let a process write until it is killed, and look at what it left."""
        seed = self.chance.getrandbits(32)
        lines = self.chance.randrange(150) if from_outside else math.inf
        death = None if from_outside else self.draw_a_death()
        with Child(partial(self.write, seed, death)) as child:
            said = child.hear_to_the_end(lines)
        done = said.count(b"\n")
        for change in itertools.islice(self.changes(seed), done + 1):
            self.history.plan(change)
        self.history.done = done
        self.tally.count("kills")
        self.tally.count(f"kills in {death.place}*" if death else "kills from outside")
        self.tally.count("changes acknowledged*", done)
        self.last_words = said.replace(b"\n", b"").decode() or "from outside"
        self.examine()

    def draw_a_death(self) -> Death:
        """Return a call to die at; first of all one of those that make the store."""
        where = "opening"
        if len(self.prints) > 1:
            where = self.chance.choice(sorted(set(self.subject.places.values())))
        call = self.chance.randrange(1, self.chance.choice((5, 20, 60)))
        return Death(self.subject, where, call, self.chance.random())

    def changes(self, seed: int) -> Iterator[Changes]:
        """Yield changes of what the store holds, each when the one before is planned."""
        chance = random.Random(seed)
        for number in itertools.count(len(self.prints)):
            yield a_change(chance, self.history.now, number)

    def write(self, seed: int, death: Death | None, send: int) -> NoReturn:
        """Open the store and close it, over and over, and make changes between."""
        sys.setswitchinterval(SWITCH_SECONDS)
        chance, todo, disk = random.Random(seed), self.changes(seed), dawdling(seed)
        if death is not None:
            death.send, disk = send, real_disk(death)
        path = str(self.directory)
        while True:
            signal.alarm(int(PATIENCE))
            with self.subject.open(disk, "c", self.sync, self.small, path) as db:
                self.look(db)
                aside = Worker(partial(self.compact_and_read, db))
                for number in range(chance.randrange(120)):
                    change = next(todo)
                    self.history.plan(change)
                    make(db, change)
                    self.history.is_done()
                    os.write(send, b"\n")
                    self.get(db, change)
                    if number % 20 == 19:
                        db.sync()
                        aside.done()
                        aside = Worker(partial(self.compact_and_read, db))
            aside.done()
            disk.forget()

    def compact_and_read(self, db: Engine) -> None:
        """Compact and read in a second thread, until the first closes the store."""
        with suppress(kvstore.ClosedError):
            self.subject.rearrange(db, 0.3)
            self.look(db)
            self.get(db, 5 * KEYS)

    def look(self, db: Engine) -> None:
        """See that an iteration finds the last state, or one that came meanwhile."""
        least = self.history.done
        found = dict(db.items())
        if found not in self.history.states[least:]:
            raise Broken(PICTURE, differences(found, self.history.now))

    def get(self, db: Engine, keys: Iterable[bytes]) -> None:
        """See that each key holds what it held last, or was given meanwhile."""
        for key in keys:
            least = self.history.done
            value = db.get(key)
            if all(value != then.get(key) for then in self.history.states[least:]):
                raise Broken(NEWEST, f"{key!r}: {value!r:.40}")

    def examine(self) -> None:
        """Look at what a killed writer left; on a copy of it, see that it can go on."""
        made = self.directory.exists()
        image = on_a_disk(self.directory).image() if made else {}
        opened = survive(self.subject, image)
        self.account_for(opened.torn)
        found, done = opened.contents or {}, self.history.done
        breach = self.history.after_a_kill(found)
        if breach is not None:
            wrong = differences(found, self.history.states[done])
            raise Broken(breach, f"{done} changes acknowledged: {wrong}")
        number = self.history.states.index(found, done)
        self.prints += map(print_of, self.history.states[1 : number + 1])
        self.history.goes_on_from(found)

    def account_for(self, torn: Tail | None) -> None:
        """Say why a tail is torn: a write was cut off now, or before and not recovered since.

        Linux ends a write early when the process is killed, between two pages.
        """
        if torn is not None and torn != self.torn:
            between_pages = (torn.offset + torn.length) % mmap.PAGESIZE == 0
            if not between_pages and ": write " not in self.last_words:
                raise Broken(TORN, f"{torn}")
            self.tally.count("torn tails*")
        self.torn = torn
