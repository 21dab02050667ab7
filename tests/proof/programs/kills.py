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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, Self
from zlib import crc32

import kvstore
from kvstore.filesystem import FileSystem
from kvstore.posix import DISK
from kvstore.simdisk import Operation
from tests.disks import PATIENCE, FaultyFileSystem, Rule, on_a_disk
from tests.helpers import Worker
from tests.proof.faults import codes_on_the_stack
from tests.proof.history import BACK, INVENTED, Changes, Contents, History, after
from tests.proof.programme import Tally, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import PATH, Engine, Subject, Sync, Tail
from tests.proof.surviving import strays
from tests.proof.workloads import make

NAME = "kills"
NEEDS = frozenset({Promise.ONLY_THE_END, Promise.ONE_MOMENT})
MODES: dict[str, Sync] = {"os": "os", "always": "always", "0.01": 0.01}
SMALL = (1_000, 4_000, 16_000)
SWITCH_SECONDS = 0.0001  # threads take turns more often than usual

KEYS = [b"key-%d" % number for number in range(40)]
ACCOUNTS = [b"account-%d" % number for number in range(4)]
DEPOSIT = 250
TOTAL = DEPOSIT * len(ACCOUNTS)

UNUSABLE = Breach(Promise.ONE_MOMENT, "the files are at one moment no store that opens")
LEFTOVER = Breach(Promise.ONE_MOMENT, "what an interrupted change left stays for ever")
CHECKED = Breach(Promise.NEWEST, "a key holds what was never written under it")
NEWEST = Breach(Promise.NEWEST, "a process does not read what it wrote last")
PICTURE = Breach(Promise.STILL, "another process saw what never was a state")
WHOLE = Breach(Promise.WHOLE, "a batch is there in part")
FORWARD = Breach(Promise.ONLY_THE_END, "another process saw an older state than before")
DAMAGED = Breach(Promise.NO_GUESSES, "a kill has damaged something")
TORN = Breach(Promise.NO_GUESSES, "a torn tail: no write was cut off, or it is lost")
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
        path = Path(directory) / PATH
        whole = line(NAME, subject, case)
        trial = Trial(subject, whole, path, MODES[mode], int(seed))
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


def amount(value: bytes) -> int:
    return int(value.split(b" ")[2])


def flaw(seen: Contents) -> tuple[Breach, str] | None:
    """Return the promise that broke, and how, as far as that shows without the history."""
    for key, value in seen.items():
        if not is_sealed(key, value):
            return CHECKED, f"{key!r} holds {value[:40]!r}"
    amounts = [amount(seen[key]) for key in ACCOUNTS if key in seen]
    if amounts and (len(amounts), sum(amounts)) != (len(ACCOUNTS), TOTAL):
        return WHOLE, f"the accounts hold {amounts}, and {TOTAL} in all were paid in"
    return None


def differences(found: Contents, expected: Contents) -> str:
    """Say of some keys what they hold, and should: values begin with key and change."""
    keys = sorted(found.keys() | expected.keys())
    pairs = ((key, found.get(key), expected.get(key)) for key in keys)
    wrong = [(key, has, right) for key, has, right in pairs if has != right]
    told = (f"{k!r}: {has!r:.40}, and not {right!r:.40}" for k, has, right in wrong[:5])
    return "; ".join(told)


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
        now = after(contents, change)
        contents.clear()
        contents.update(now)
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
    change: dict[bytes, bytes | None] = {}
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
    said, reported, report = said.partition(REPORT)
    if reported:
        raise pickle.loads(report)
    return said


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
    case: str
    directory: Path
    sync: Sync
    seed: int
    history: History = field(default_factory=History)
    prints: list[int] = field(default_factory=lambda: [print_of({})])  # of all states
    seen: int = 0  # the number of the newest state that the onlooker saw
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
            self.check(flaw(seen), "an onlooker")
            os.write(send, b"%d\n" % print_of(seen))

    def check(self, problem: tuple[Breach, str] | None, where: str) -> None:
        if problem is not None:
            raise Broken(problem[0], f"{where}: {problem[1]}", self.case)

    def compare(self, said: bytes) -> None:
        """Find what the onlooker saw in the history, each time where it was or later."""
        for seen in map(int, said.split()):
            self.tally.count("read-only openings*")
            if seen not in self.prints[self.seen :]:
                breach = FORWARD if seen in self.prints else PICTURE
                state = f"after state {self.seen} of {len(self.prints) - 1}"
                raise Broken(breach, state, self.case)
            self.seen = self.prints.index(seen, self.seen)

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
        self.tally.count("kills")
        self.tally.count(f"kills in {death.place}*" if death else "kills from outside")
        self.tally.count("changes acknowledged*", self.history.done)
        last_words = said.replace(b"\n", b"").decode() or "from outside"
        self.examine(f"kill {self.tally.often['kills']}, {last_words}")

    def draw_a_death(self) -> Death:
        """Return a call to die at; first of all one of those that make the store."""
        where = "opening"
        if len(self.prints) > 1:
            where = self.chance.choice(sorted(set(self.subject.places.values())))
        call = self.chance.randrange(1, self.chance.choice((5, 20, 60)))
        return Death(self.subject, where, call, self.chance.random())

    def write(self, seed: int, death: Death | None, send: int) -> NoReturn:
        """Open the store and close it, over and over, and make changes between."""
        sys.setswitchinterval(SWITCH_SECONDS)
        chance, contents = random.Random(seed), self.history.states[0].copy()
        disk = dawdling(seed)
        if death is not None:
            death.send, disk = send, real_disk(death)
        todo = changes(seed, contents, len(self.prints) - 1)
        while True:
            signal.alarm(int(PATIENCE))
            with self.open(disk, self.sync) as db:
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
            disk.forget()

    def compact_and_read(self, db: Engine) -> None:
        """Compact and read in a second thread, until the first closes the store."""
        with suppress(kvstore.ClosedError):
            self.subject.rearrange(db, 0.3)
            self.check(flaw(dict(db.items())), "in a second thread")
            for key in 5 * KEYS:
                self.check(flaw(part(db, (key,))), "in a second thread")

    def open(self, disk: FileSystem, sync: Sync) -> Engine:
        return self.subject.open(disk, "c", sync, self.small, str(self.directory))

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
            self.recover(found, where)

    def read(self, where: str) -> Contents:
        """Read the store and change nothing."""
        try:
            with self.subject.open(DISK, "r", path=str(self.directory)) as db:
                found, damage = dict(db), self.subject.damage(db)
                torn = self.subject.torn_tail(db)
        except kvstore.StoreNotFoundError:
            return {}
        except (kvstore.KVStoreError, OSError) as error:
            raise Broken(UNUSABLE, f"{where}: {error!r}", self.case) from error
        if damage:
            raise Broken(DAMAGED, f"{where}: {damage}", self.case)
        self.account_for(torn, where)
        return found

    def account_for(self, torn: Tail | None, where: str) -> None:
        """Say why a tail is torn: a write was cut off now, or before and not recovered since.

        Linux ends a write early when the process is killed, between two pages.
        """
        if torn is not None and torn != self.torn:
            between_pages = (torn.offset + torn.length) % mmap.PAGESIZE == 0
            if not between_pages and ": write " not in where:
                raise Broken(TORN, f"{where}: {torn}", self.case)
            self.tally.count("torn tails*")
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
        self.check((promise, differences(found, self.history.states[done])), where)

    def recover(self, found: Contents, where: str) -> None:
        """Open the store to write, which recovers it, and look whether it is as it was."""
        torn, self.torn = self.torn, None
        with self.open(DISK, "os") as db:
            self.expect(dict(db), found)
            damage, kept = self.subject.damage(db), self.subject.torn_tail(db)
            if damage:
                raise Broken(DAMAGED, f"{where}, recovered: {damage}", self.case)
            kept_bytes = os.path.getsize(kept.kept_as) if kept and kept.kept_as else 0
            if kept_bytes != (torn.length if torn else 0):
                raise Broken(TORN, f"{where}, recovered: {kept}", self.case)
        if left := strays(self.subject, on_a_disk(self.directory).image()):
            raise Broken(LEFTOVER, f"{where}, recovered: {left}", self.case)


def part(contents: Mapping[bytes, bytes], keys: Iterable[bytes]) -> Contents:
    """Return what a store, or its model, holds under some keys."""
    values = ((key, contents.get(key)) for key in keys)
    return {key: value for key, value in values if value is not None}
