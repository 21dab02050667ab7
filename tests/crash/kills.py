"""Processes that write, killed with kill -9, and one that looks on all the while.

A case is a sync mode, a number of kills and a seed, such as ``always 25 7``. Real processes
work on real files. A writer puts, deletes and batches, compacts in a second thread, syncs,
closes and opens again, until it is killed. The next one goes on with what it left, so a
recovery finds stores that were recovered before, and such whose recovery was killed.

Every second writer dies at a call to the operating system that the seed has drawn, such as
the fifth of those in recovery; if that is a write, a part of it gets through. The others are
killed from outside after some changes. A writer tells of each change when it is done, and
nothing of what it has begun. So what it leaves is the state after the last change that it
told of, or after one more.

The onlooker opens the store read-only over and over. Whatever it sees has to be a state of
the history, and no older one than it saw before. It dawdles, as the writers that are killed
from outside do, so that much happens between two of its calls.

How the threads of a writer take turns, and where a kill from outside falls, is the machine's
choice: a replay makes the same changes, and may be killed elsewhere. In what is counted, a
star marks what differs from run to run.
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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn, Self
from zlib import crc32

from faults import FaultyFileSystem
from history import BACK, INVENTED, Changes, History
from lives import make
from proof import Broken, Contents, Tally
from support import PATIENCE, Worker, segments

import kvstore
from kvstore.filesystem import DISK, FileSystem
from kvstore.recovery import Cut
from kvstore.store import Sync

NAME = "kills"
MODES: dict[str, Sync] = {"os": "os", "always": "always", "0.01": 0.01}
CASES = [f"{list(MODES)[n % len(MODES)]} 25 {1492 + n}" for n in range(8)]
SEGMENT_BYTES = (1_000, 4_000, 16_000)
SWITCH_SECONDS = 0.0001  # threads take turns more often than usual

KEYS = [b"key-%d" % number for number in range(40)]
ACCOUNTS = [b"account-%d" % number for number in range(4)]
DEPOSIT = 250
TOTAL = DEPOSIT * len(ACCOUNTS)

STORE = "T2, one moment: at any moment the files are a store that opens"
LEFTOVER = (
    "T2, one moment: what an interrupted change left is swept at the next opening"
)
CHECKED = "T3, the newest, checked: a key holds what was never written under it"
NEWEST = "T3, the newest, checked: a process does not read what it wrote last"
PICTURE = "T4, a still picture: another process saw what never was a state of the store"
WHOLE = "T5, all or nothing: a batch is there in part"
FORWARD = "T6, only the end: another process saw an older state than before"
INTACT = "T8, no guesses: a kill damages nothing"
TORN = "T8, no guesses: a tail is torn only if a write was cut off, and it is kept"
ERROR = "T8, no guesses: there is no error where nothing is wrong"


def another(seed: int) -> str:
    """Return a case with many more kills of one store."""
    return f"{list(MODES)[seed % len(MODES)]} 200 {seed}"


def run(case: str) -> Tally:
    """Kill one writer after the other, and look at what each of them has left."""
    mode, kills, seed = case.split()
    with TemporaryDirectory(prefix="kills-") as directory:
        trial = Trial(
            f"{NAME} {case}", Path(directory) / "store", MODES[mode], int(seed)
        )
        with Child(trial.look_on, trial.case) as onlooker:
            for number in range(int(kills)):
                trial.kill_a_writer(from_outside=number % 2 == 1)
                trial.compare(onlooker.hear())
    return trial.tally


def sealed(key: bytes, serial: int, amount: int, padding: bytes = b"") -> bytes:
    """Return a value that proves that it was written under this key, and by which change."""
    text = b"%s %d %d %s" % (key, serial, amount, padding)
    return text + b" %08x" % crc32(text)


def is_sealed(key: bytes, value: bytes) -> bool:
    """Say whether a value was written under this key, and is what it was."""
    text, _, checksum = value.rpartition(b" ")
    return text.startswith(key + b" ") and checksum == b"%08x" % crc32(text)


def serial(value: bytes) -> int:
    """Return the number of the change that wrote a value."""
    return int(value.split(b" ")[1])


def amount(value: bytes) -> int:
    """Return how much an account holds."""
    return int(value.split(b" ")[2])


def flaw(seen: Contents) -> tuple[str, str] | None:
    """Return the promise that broke, and how, as far as that shows without the history."""
    for key, value in seen.items():
        if not is_sealed(key, value):
            return CHECKED, f"{key!r} holds {value[:40]!r}"
    amounts = [amount(seen[key]) for key in ACCOUNTS if key in seen]
    if amounts and (len(amounts), sum(amounts)) != (len(ACCOUNTS), TOTAL):
        return WHOLE, f"the accounts hold {amounts}, and {TOTAL} in all were paid in"
    return None


def differences(found: Contents, expected: Contents) -> str:
    """Say of some keys which change they hold, and which they should."""
    keys = sorted(found.keys() | expected.keys())
    wrong = [key for key in keys if found.get(key) != expected.get(key)]
    return "; ".join(
        f"{key!r} holds {writer(found.get(key))} instead of {writer(expected.get(key))}"
        for key in wrong[:5]
    )


def writer(value: bytes | None) -> str:
    """Say which change wrote a value."""
    return "nothing" if value is None else f"the value of change {serial(value)}"


def changes(seed: int, contents: Contents, last: int) -> Iterator[Changes]:
    """Yield the changes after number `last`; `contents` holds each when it is yielded."""
    chance = random.Random(seed)
    for number in itertools.count(last + 1):
        if ACCOUNTS[0] not in contents:
            change: Changes = {key: sealed(key, number, DEPOSIT) for key in ACCOUNTS}
        elif chance.random() < 0.2:
            change = transfer(chance, contents, number)
        else:
            change = ordinary(chance, contents, number)
        for key, value in change.items():
            if value is None:
                del contents[key]
            else:
                contents[key] = value
        yield change


def transfer(chance: random.Random, contents: Contents, number: int) -> Changes:
    """Return a batch that moves money from one account to another."""
    payer, payee = chance.sample(ACCOUNTS, 2)
    price = chance.randrange(1, 100)
    return {
        payer: sealed(payer, number, amount(contents[payer]) - price),
        payee: sealed(payee, number, amount(contents[payee]) + price),
    }


def ordinary(chance: random.Random, contents: Contents, number: int) -> Changes:
    """Return a put, a delete or a batch; now and then with a value of several pages."""
    change: Changes = {}
    for key in chance.sample(KEYS, chance.choice((1, 1, 1, 5))):
        longest = 3 * mmap.PAGESIZE if chance.random() < 0.02 else 80
        padding = chance.randbytes(chance.randrange(longest))
        deletes = key in contents and chance.random() < 0.3
        change[key] = None if deletes else sealed(key, number, 0, padding)
    return change


def print_of(contents: Contents) -> int:
    """Return a number that tells states apart, the same in every process forked from here."""
    return hash(frozenset(contents.items()))


REPORT = b"\0"  # what comes behind it in a pipe is an error that a child reports
REPORT_BYTES = 2_000  # a report that fits a pipe's unit arrives whole or not at all


class Child:
    """A forked process that tells of its work over a pipe. It is gone behind the block."""

    def __init__(self, work: Callable[[int], NoReturn], case: str) -> None:
        receive, send = os.pipe()
        self._case = case
        self.process = os.fork()
        if self.process == 0:
            os.close(receive)
            act(work, send, case)
        os.close(send)
        self._pipe = open(receive, "rb", buffering=0)  # noqa: SIM115 - `end` closes it

    def hear(self) -> bytes:
        """Return what the process says next. It is an error if it says no more."""
        said = self._pipe.read(1 << 17)
        if not said:
            raise self._ended(self.end())
        return without_report(said)

    def hear_to_the_end(self, lines: float) -> bytes:
        """Kill the process when it has said so many lines, and return all that it said."""
        said = b""
        while said.count(b"\n") < lines and (more := self._pipe.read(1 << 17)):
            said += more
        os.kill(self.process, signal.SIGKILL)
        said = without_report(said + self._pipe.readall())
        status = self.end()
        if status != signal.SIGKILL:
            raise self._ended(status)
        return said

    def _ended(self, status: int) -> Broken:
        return Broken(ERROR, f"a process ended with status {status}", self._case)

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


def act(work: Callable[[int], NoReturn], send: int, case: str) -> NoReturn:
    """Do a child's work, which ends when it is killed, or report why it failed."""
    try:
        work(send)
    except Broken as error:
        report = error
    except BaseException:  # noqa: BLE001 - whatever it is, the parent raises it
        report = Broken(ERROR, traceback.format_exc()[-REPORT_BYTES:], case)
    with suppress(BrokenPipeError):  # the parent is gone
        os.write(send, REPORT + pickle.dumps(report))
    os._exit(1)


def without_report(said: bytes) -> bytes:
    """Return what a child said, or raise what it reports."""
    said, reported, report = said.partition(REPORT)
    if reported:
        raise pickle.loads(report)
    return said


# Where in the store a writer may be when it dies, by the function that it is in.
PLACES = {
    "_append": "a put or a delete",
    "_append_batch": "a batch",
    "_begin_segment": "rotation",
    "_sync_through": "a sync",
    "close": "closing",
    "compact": "compaction",
    "load_alone": "recovery",
    "open": "opening",
}


def place() -> str | None:
    """Return where in the store this thread is."""
    for frame, _ in traceback.walk_stack(None):
        name = frame.f_code.co_name
        if frame.f_globals["__name__"] == "kvstore.store" and name in PLACES:
            return PLACES[name]
    return None


class Death(NamedTuple):
    """Where a writer has to die: in which part of the store, at which call there."""

    place: str
    call: int
    share: float  # of the bytes, if that call is a write, that get through


@dataclass
class DoomedFileSystem(FaultyFileSystem):
    """The real files, and the call to them at which the process dies, and tells of it."""

    death: Death = field(kw_only=True)
    send: int = field(kw_only=True)
    numbers: Iterator[int] = field(default_factory=partial(itertools.count, 1))

    def _note(self, operation: str, name: str) -> None:
        if self._is_the_last():
            self._die(f"{operation} {name}")

    def _pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if self._is_the_last():
            part = round(self.death.share * len(data))
            FileSystem.pwrite(descriptor, data[:part], offset)
            name = self._names[descriptor]
            self._die(f"write {name}, {part} of {len(data)} bytes")
        return FileSystem.pwrite(descriptor, data, offset)

    def _is_the_last(self) -> bool:
        return place() == self.death.place and next(self.numbers) == self.death.call

    def _die(self, call: str) -> None:
        os.write(self.send, f"{self.death.place}: {call}".encode())
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class DawdlingFileSystem(FaultyFileSystem):
    """The real files. Before some calls it stops for a moment, and others get ahead."""

    chance: random.Random = field(kw_only=True)

    def _note(self, operation: str, name: str) -> None:  # noqa: ARG002
        if self.chance.random() < 0.03:
            time.sleep(0.001)


@dataclass
class Trial:
    """One store, and all that is known of it."""

    case: str
    directory: Path
    sync: Sync
    seed: int
    history: History = field(default_factory=History)
    prints: list[int] = field(default_factory=lambda: [print_of({})])  # of all states
    seen: int = 0  # the number of the newest state that the onlooker saw
    torn: Cut | None = None
    tally: Tally = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.segment_bytes = self.chance.choice(SEGMENT_BYTES)

    def look_on(self, send: int) -> NoReturn:
        """Read everything, over and over, and tell what was seen."""
        filesystem = DawdlingFileSystem(chance=random.Random(self.seed))
        while True:
            signal.alarm(int(PATIENCE))  # a process that hangs ends
            try:
                with kvstore.open(self.directory, "r", filesystem=filesystem) as db:
                    seen = dict(db)
            except kvstore.StoreNotFoundError:
                seen = {}  # as if empty: later on it would be an older state
            signal.alarm(0)
            self.check(flaw(seen), "an onlooker")
            os.write(send, b"%d\n" % print_of(seen))

    def check(self, problem: tuple[str, str] | None, where: str) -> None:
        """Raise what is wrong, if anything is."""
        if problem is not None:
            raise Broken(problem[0], f"{where}: {problem[1]}", self.case)

    def compare(self, said: bytes) -> None:
        """Find what the onlooker saw in the history, each time where it was or later."""
        for seen in map(int, said.split()):
            self.tally["read-only openings*"] += 1
            if seen in self.prints[self.seen :]:
                self.seen = self.prints.index(seen, self.seen)
                continue
            context = f"after state {self.seen} of {len(self.prints) - 1}"
            if seen in self.prints:
                state = f"{context}, it saw state {self.prints.index(seen)}"
                raise Broken(FORWARD, state, self.case)
            raise Broken(PICTURE, context, self.case)

    def kill_a_writer(self, *, from_outside: bool) -> None:
        """Let a process write until it is killed, and look at what it left."""
        seed = self.chance.getrandbits(32)
        lines = self.chance.randrange(150) if from_outside else math.inf
        death = None if from_outside else self.draw_a_death()
        with Child(partial(self.write, seed, death), self.case) as child:
            said = child.hear_to_the_end(lines)
        self.history.done = said.count(b"\n")
        contents = self.history.states[0].copy()
        todo = changes(seed, contents, len(self.prints) - 1)
        for change in itertools.islice(todo, self.history.done + 1):
            self.history.plan(change)
        self.tally["kills"] += 1
        self.tally[f"kills in {death.place}*" if death else "kills from outside"] += 1
        self.tally["changes acknowledged*"] += self.history.done
        last_words = said.replace(b"\n", b"").decode() or "from outside"
        self.examine(f"kill {self.tally['kills']}, {last_words}")

    def draw_a_death(self) -> Death:
        """Return a call to die at; first of all one of those that make the store."""
        unmade = len(self.prints) == 1
        where = "opening" if unmade else self.chance.choice(sorted(PLACES.values()))
        call = self.chance.randrange(1, self.chance.choice((5, 20, 60)))
        return Death(where, call, self.chance.random())

    def write(self, seed: int, death: Death | None, send: int) -> NoReturn:
        """Open the store and close it, over and over, and make changes between."""
        sys.setswitchinterval(SWITCH_SECONDS)
        chance, contents = random.Random(seed), self.history.states[0].copy()
        filesystem = (
            DoomedFileSystem(death=death, send=send)
            if death
            else DawdlingFileSystem(chance=random.Random(seed))
        )
        todo = changes(seed, contents, len(self.prints) - 1)
        while True:
            signal.alarm(int(PATIENCE))
            with self.open(filesystem, self.sync) as db:
                self.expect(dict(db), contents)
                aside = Worker(partial(self.compact_and_read, db))
                for number in range(chance.randrange(120)):
                    change = next(todo)
                    make(db, change)
                    os.write(send, b"\n")
                    self.expect(part(db, change), part(contents, change))
                    if number % 20 == 19:
                        db.sync()
                        aside.done()
                        aside = Worker(partial(self.compact_and_read, db))
            aside.done()

    def compact_and_read(self, db: kvstore.Store) -> None:
        """Compact and read in a second thread, until the first closes the store."""
        with suppress(kvstore.ClosedError):
            db.compact(0.3)
            self.check(flaw(dict(db.items())), "in a second thread")
            for key in 5 * KEYS:
                self.check(flaw(part(db, (key,))), "in a second thread")

    def open(self, filesystem: FileSystem, sync: Sync) -> kvstore.Store:
        """Open the store as every writer does."""
        return kvstore.open(
            self.directory,
            sync=sync,
            segment_bytes=self.segment_bytes,
            filesystem=filesystem,
        )

    def expect(self, found: Contents, expected: Contents) -> None:
        """Hold what a process reads against what it wrote."""
        if found != expected:
            self.check(flaw(found), "in a writer")
            self.check((NEWEST, differences(found, expected)), "in a writer")

    def examine(self, where: str) -> None:
        """Look at what a killed writer left, and now and then go on with it here."""
        found = self.read(where)
        self.judge(found, where)
        number = self.history.states.index(found, self.history.done)
        self.prints += map(print_of, self.history.states[1 : number + 1])
        self.history.goes_on_from(found)
        if self.chance.random() < 0.25:
            self.mend(found, where)

    def read(self, where: str) -> Contents:
        """Read the store and change nothing."""
        try:
            with kvstore.open(self.directory, "r") as db:
                found, verification, torn = dict(db), db.verify(), db.torn_tail
        except kvstore.StoreNotFoundError:
            return {}
        except (kvstore.KVStoreError, OSError) as error:
            raise Broken(STORE, f"{where}: {error!r}", self.case) from error
        if not verification.ok:
            raise Broken(INTACT, f"{where}: {verification}", self.case)
        self.account_for(torn, where)
        return found

    def account_for(self, torn: Cut | None, where: str) -> None:
        """Say why a tail is torn: a write was cut off now, or before and not mended since.

        Linux ends a write early when the process is killed, between two pages.
        """
        if torn is not None and torn != self.torn:
            between_pages = (torn.offset + torn.length) % mmap.PAGESIZE == 0
            if not between_pages and ": write " not in where:
                raise Broken(TORN, f"{where}: {torn}", self.case)
            self.tally["torn tails*"] += 1
        self.torn = torn

    def judge(self, found: Contents, where: str) -> None:
        """Raise `Broken` unless what was found is where the history can have got to."""
        promise = self.history.after_a_kill(found)
        if promise is None:
            return
        done = self.history.done
        where = f"{where}, {done} changes acknowledged"
        self.check(flaw(found), where)
        if promise == INVENTED:  # yet it proves itself: it is older than this history
            promise = BACK
        how = differences(found, self.history.states[done])
        self.check((promise, how), where)

    def mend(self, found: Contents, where: str) -> None:
        """Open the store to write, which mends it, and look whether it is as it was."""
        torn, self.torn = self.torn, None
        with self.open(DISK, "os") as db:
            self.expect(dict(db), found)
            if not db.verify().ok:
                raise Broken(INTACT, f"{where}, mended: {db.verify()}", self.case)
            if kept_bytes(db.torn_tail) != (torn.length if torn else 0):
                raise Broken(TORN, f"{where}, mended: {db.torn_tail}", self.case)
            count, there = db.stats().segments, len(segments(self.directory))
        if count != there:
            state = f"{where}, mended: {there} segments are there, and {count} count"
            raise Broken(LEFTOVER, state, self.case)


def kept_bytes(torn: Cut | None) -> int:
    """Return how many bytes of a torn tail were kept."""
    return os.path.getsize(torn.kept_as) if torn and torn.kept_as else 0


def part(contents: Mapping[bytes, bytes], keys: Iterable[bytes]) -> Contents:
    """Return what a store, or its model, holds under some keys."""
    values = ((key, contents.get(key)) for key in keys)
    return {key: value for key, value in values if value is not None}
