"""A signal comes at every point at which Python delivers signals, in every operation.

============= ===============================================================================
manner        what comes
============= ===============================================================================
once          one signal, at each point in turn
twice         a second one while the first is being dealt with
at-a-call     one signal inside each call to the disk
with-an-error one signal while the error of a call that fails (EIO) is on its way
timer         a signal of a timer, whenever that comes
============= ===============================================================================

An operation that was interrupted happened or did not. The store shows what a reader of its files
finds, now and after more writes and rearranging; or it refuses writes and says why. It never
hangs, and it can be closed, and opened again. A second signal may at worst make it refuse writes.

A case is an operation, a way of syncing (or ``files``: a real directory) and a manner; to replay
one trial, a number follows. Points count once for each operation.
"""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import kvstore
from kvstore.filesystem import FileSystem
from kvstore.powercut import Image
from kvstore.simdisk import Operation, SimulatedDisk, no_fault
from tests.disks import CHANGES, NO_SYNC, on_a_disk
from tests.proof.engines import ENGINES
from tests.proof.faults import system_error
from tests.proof.history import Changes, Contents, History, after, in_words
from tests.proof.moves.story import ERRORS, PATIENCE, watched
from tests.proof.programme import Tally, fingerprint, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.signals import (
    SIGNAL,
    Interrupted,
    Point,
    Signals,
    Watch,
    first_time_at,
    nowhere,
)
from tests.proof.subject import MODES, PATH, Engine, Flag, Subject
from tests.proof.workloads import make

NAME = "interruptions"
NEEDS = frozenset({Promise.ONLY_THE_END, Promise.SAFE})
MANNERS = ("once", "twice", "at-a-call", "with-an-error", "timer")
REAL_FILES = "files"
ON_REAL_FILES = ("once", "twice", "timer")
TIMES = 20  # that a timer interrupts in one case
OUTCOMES = 4  # of each power cut
SMALL = 120

HALF = Breach(Promise.WHOLE, "an operation that was interrupted happened in part")
UNDONE = Breach(Promise.NEWEST, "an operation returned, and what it did is not there")
APART = Breach(Promise.NEWEST, "a store and its files do not agree, and writes go on")
ITSELF = Breach(Promise.NEWEST, "a store does not agree with itself")
HELD = Breach(Promise.ONE_WRITER, "the store can't be opened again: it is locked")
LOST = Breach(Promise.SAFE, "the store can't be opened again")
WRONG = Breach(Promise.NO_GUESSES, "an error that no interrupt explains")
MUTE = Breach(Promise.NO_GUESSES, "writes are refused, and the error does not say why")


class Deed(NamedTuple):
    """An operation, and the states that it leads to, one after the other."""

    act: Callable[[Trial], object]
    states: Callable[[Contents], list[Contents]] = lambda before: [before]
    any_of_them: bool = False  # it leads to one of them, and only it knows which
    syncs: bool = False  # what was done is on the disk when it returns
    opens: bool = False  # it begins without an open store
    ends: bool = False  # it ends without one

    def ends_in(self, states: list[Contents]) -> list[Contents]:
        """Return which of the states it may lead to when it returns."""
        return states if self.any_of_them else states[-1:]


def changed(*steps: Changes) -> Callable[[Contents], list[Contents]]:
    """Return the states that some changes lead to, one after the other."""
    return lambda before: list(itertools.accumulate(steps, after, initial=before))[1:]


def one_less(before: Contents) -> list[Contents]:
    return [after(before, {key: None}) for key in before]


def batch(changes: Changes) -> Deed:
    return Deed(lambda trial: make(trial.db, changes), changed(changes))


FEW: Changes = {b"a": None, b"new": b"1", b"b": b"2" * 30, b"d": None}
MANY: Changes = {b"%d" % n: b"long" * n for n in range(9)} | {b"a": None, b"c": None}
SEVERAL = {b"new": b"1", b"a": b"2" * 30, b"other": b"3" * 60}

DEEDS: dict[str, Deed] = {
    "put": Deed(lambda t: t.put(b"new", b"1"), changed({b"new": b"1"})),
    "overwrite": Deed(lambda t: t.put(b"a", b"2"), changed({b"a": b"2"})),
    "rotate": Deed(lambda t: t.put(b"new", b"1"), changed({b"new": b"1"})),
    "delete": Deed(lambda t: t.db.__delitem__(b"a"), changed({b"a": None})),
    "pop": Deed(lambda t: t.db.pop(b"a", None), changed({b"a": None})),
    "popitem": Deed(lambda t: t.db.popitem(), one_less, any_of_them=True),
    "setdefault": Deed(
        lambda t: t.db.setdefault(b"new", b"1"), changed({b"new": b"1"})
    ),
    "get": Deed(lambda t: (t.db[b"a"], t.db.get(b"none"), b"a" in t.db)),
    "batch": batch(FEW),
    "large-batch": batch(MANY),
    "update": Deed(
        lambda t: t.db.update(SEVERAL), changed(*({k: v} for k, v in SEVERAL.items()))
    ),
    "sync": Deed(lambda t: t.db.sync(), syncs=True),
    "rearrange": Deed(lambda t: t.subject.rearrange(t.db)),
    "iterate": Deed(lambda t: (list(t.db), list(t.db.items()), list(t.db.values()))),
    "fold": Deed(lambda t: [list(each) for each in t.iterations]),
    "stats": Deed(lambda t: (t.db.stats(), len(t.db), repr(t.db))),
    "verify": Deed(lambda t: t.subject.damage(t.db)),
    "close": Deed(lambda t: t.db.close(), syncs=True, ends=True),
    "found": Deed(lambda t: t.open(), syncs=True, opens=True),
    "open": Deed(lambda t: t.open(), syncs=True, opens=True),
    "recover": Deed(lambda t: t.open(), syncs=True, opens=True),
    "read": Deed(lambda t: t.look(), opens=True, ends=True),
}


# What more is tried in every test run: where something else can go wrong than with `os`.
MORE: dict[str, tuple[str, ...]] = {
    "always once": ("put", "rotate", "batch", "pop"),
    "always with-an-error": ("put", "rotate", "batch", "pop"),
    "interval once": ("rotate", "close", "open"),
    f"{REAL_FILES} once": ("rotate", "batch", "rearrange", "close", "found", "open"),
    "os twice": ("put", "rotate", "batch", "rearrange", "sync", "close", "recover"),
    f"{REAL_FILES} twice": ("close",),
}
OFTEN = ("os once", "os at-a-call", "os with-an-error", f"{REAL_FILES} timer")


def cases(_: Subject) -> list[str]:
    """Return every deed in most manners, and some in other ways to sync."""
    told = [f"{name} {how}" for name in DEEDS for how in OFTEN]
    return told + [f"{name} {how}" for how, names in MORE.items() for name in names]


def another(_: Subject, seed: int) -> str:
    """Return a case, and a seed for what chance decides in it."""
    chance = random.Random(seed)
    mode = chance.choice((*MODES, REAL_FILES))
    manner = chance.choice(ON_REAL_FILES if mode == REAL_FILES else MANNERS[:-1])
    return f"{chance.choice(list(DEEDS))}:{seed} {mode} {manner}"


def run(subject: Subject, case: str) -> Tally:
    """Do a deed again and again, and interrupt it each time at another point."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Python delivers signals to the main thread alone")
    name, mode, manner, *place = case.split()
    tally = Tally()
    contents.cache_clear()
    points: Sequence[Any] = []
    for _ in range(2):  # what Python does only the first time is no point
        first = Trial(subject, name, mode, manner)
        with watched(case), first.ground():
            points = first.points()
    numbers = range(1, len(points) + 1)
    for number in map(int, place) if place else numbers:
        if number not in numbers:
            break
        trial = Trial(subject, name, mode, manner, number)
        try:
            with watched(case), trial.ground():
                trial.run(points[number - 1])
        except Broken as error:
            told = line(NAME, subject, name, mode, manner, number)
            raise error.seen(trial.where(), told) from error.__cause__
        if trial.delivered:
            point = fingerprint(trial.name, *trial.delivered)
            tally.meet(f"points of a deed interrupted: {manner}*", point)
            tally.count("deeds interrupted*")
        if trial.refuses:
            tally.count("stores that refused writes after that*")
    return tally


@cache
def contents(engine: str, files: tuple[tuple[str, bytes], ...]) -> Contents:
    """Return what a reader finds. Most trials leave what others have left too."""
    with ENGINES[engine].open(SimulatedDisk(dict(files)), "r") as db:
        return dict(db)


class Trial:
    """One deed on a store of its own, interrupted, and what comes of it."""

    db: Engine
    disk: FileSystem
    subject: Subject

    def __init__(
        self, subject: Subject, name: str, mode: str, manner: str, number: int = 0
    ) -> None:
        self.subject = subject
        self.mode, self.manner = mode, manner
        self.name, _, seed = name.partition(":")
        self.number = number
        self.deed = DEEDS[self.name]
        self.sync = MODES["os" if mode == REAL_FILES else mode]
        self.path = PATH
        self.history = History()
        self.doing = "begin"
        self.delivered: list[str] = []
        self.refuses = False
        self.chance = random.Random(f"{seed} {number}")
        # What is done first after the interrupt: not the same in each mode.
        turn = number + int(seed or 0) + [*MODES, REAL_FILES].index(mode)
        self.next = ("write", "rearrange", "again")[turn % 3]
        self.killed: list[Engine] = []
        self.iterations: list[Iterator[bytes]] = []

    def where(self) -> str:
        came = " and ".join(self.delivered) or "nowhere"
        return f"{self.name} interrupted in {came}, then {self.doing}"

    # --- before ----------------------------------------------------------------------------

    @contextmanager
    def ground(self) -> Iterator[None]:
        """Make what a store stands on, and a store there that has seen some use."""
        # A signal that comes in a finalizer is an error that Python can only print.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        folder = tempfile.mkdtemp() if self.mode == REAL_FILES else ""
        self.disk = SimulatedDisk(sector_bytes=64, seed=1)
        if folder:
            self.disk, self.path = NO_SYNC, f"{folder}/{PATH}"
        try:
            if self.name != "found":
                self.prepare()
            yield
        finally:
            sys.unraisablehook = hook
            shutil.rmtree(folder or "nowhere", ignore_errors=True)

    def prepare(self) -> None:
        """Write, delete, sync, and write some more."""
        self.open()
        for key in (b"a", b"b", b"c", b"d"):
            self.change({key: key * 25})
        self.change({b"a": b"2" * 40, b"e": b"2"})
        self.change({b"c": None})
        self.db.sync()
        self.history.is_safe()
        self.change({b"b": b"4" * 9, b"c": b"4"})
        self.change({b"d": b"5"})
        if self.name == "rotate":  # the next put finds no space
            self.change({b"d": b"6" * SMALL})
        for keys in ((b"a", b"b", b"c"), (b"d",)) if self.name == "fold" else ():
            self.iterations.append(iter(self.db))  # what changes now has to wait for it
            next(self.iterations[-1])
            for key in keys:
                self.change({key: None if key == b"b" else b"7"})
        if self.number // 3 % 2:
            self.db.sync()
            self.history.is_safe()
        if self.name == "recover" and isinstance(self.disk, SimulatedDisk):
            self.killed.append(self.db)  # away from the collector
            self.disk.end_process()
        elif self.deed.opens:
            self.db.close()
            self.history.is_safe()

    def open(self, flag: Flag = "c") -> None:
        self.db = self.subject.open(self.disk, flag, self.sync, SMALL, self.path)

    def look(self) -> Contents:
        with self.subject.open(self.disk, "r", path=self.path) as db:
            return dict(db)

    def put(self, key: bytes, value: bytes) -> None:
        self.db[key] = value

    def change(self, changes: Changes) -> None:
        """Make a change that nothing interrupts, and let the history follow."""
        make(self.db, changes)
        self.history.plan(changes)
        self.history.is_done()
        if self.sync == "always":
            self.history.is_safe()

    # --- the interrupt ---------------------------------------------------------------------

    @contextmanager
    def alarm(self, signals: Signals, longest: float) -> Iterator[None]:
        """Have a timer interrupt the block. Whatever rings after that tells of a hang."""

        def ring(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGALRM, before)
            signals.deliver(number, frame)

        delay = 1e-6 + self.chance.random() * longest
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, delay, PATIENCE)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            signal.signal(signal.SIGALRM, before)

    def points(self) -> Sequence[Any]:
        """Do the deed undisturbed; return where a signal, or a call that fails, may come."""
        seen: dict[Point, int] = {}
        calls: list[int] = []
        passed, numbers = itertools.count(), itertools.count(1)

        def note(operation: Operation) -> None:
            number = next(numbers)
            if self.manner == "at-a-call" or operation.name in CHANGES:
                calls.append(number)

        def watch(point: Point) -> bool:
            now = next(passed)
            if point.begins and seen and next(reversed(seen.values())) == now - 1:
                seen.popitem()  # what is pending before a call comes as the function begins
            seen.setdefault(point, now)
            return False

        self.strike(note)
        began = time.perf_counter()
        with Signals(nowhere if self.manner == "timer" else watch):
            self.deed.act(self)
        seconds = time.perf_counter() - began
        self.strike(no_fault)
        if not self.deed.ends:
            self.db.close()
        if self.manner == "timer":
            return [seconds] * TIMES
        return calls if self.manner in ("at-a-call", "with-an-error") else list(seen)

    def strike(self, fault: Callable[[Operation], int | None]) -> None:
        """Have calls to the disk fail, if it is a simulated one."""
        if isinstance(self.disk, SimulatedDisk):
            self.disk.fault = fault

    def signals(self, point: Any) -> Signals:
        """Return the signals that come in this trial."""
        waits = self.chance.choice((0, 0, 1, 2, 3, 5, 8, 13))
        at_the_point, more = first_time_at(point), itertools.count()

        def twice(passed: Point) -> bool:
            again = bool(signals.delivered) and next(more) == waits
            return at_the_point(passed) or again

        watches: dict[str, Watch] = {
            "once": at_the_point,
            "twice": twice,
            "with-an-error": lambda _: next(more) == 0,
        }
        watch = watches.get(self.manner, nowhere)
        signals = Signals(watch, on_errors=self.manner == "with-an-error")
        if self.manner in ("at-a-call", "with-an-error"):
            numbers = itertools.count(1)

            def fail(operation: Operation) -> None:
                if next(numbers) == point:
                    if self.manner == "at-a-call":
                        signal.raise_signal(SIGNAL)
                    raise system_error("EIO", operation)

            self.strike(fail)
        return signals

    def interrupted(self, point: Any) -> bool:
        """Do the deed, and let it be interrupted; say whether it returned all the same."""
        signals = self.signals(point)
        self.doing = "while it runs"
        try:
            is_timed = self.manner == "timer"
            with signals, self.alarm(signals, point) if is_timed else nullcontext():
                try:
                    self.deed.act(self)
                finally:
                    sys.settrace(None)
        except (Interrupted, kvstore.WriteRefusedError):
            return False
        except OSError:
            if self.manner != "with-an-error":
                raise
            self.told = True
            return False
        except RuntimeError as error:
            # Python's own threads: who waits for one to start, and is interrupted, may
            # release a lock that is not held.
            if not isinstance(error.__context__, Interrupted):
                raise
            return False
        finally:
            self.strike(no_fault)
            self.delivered += signals.delivered
        return True

    # --- and then --------------------------------------------------------------------------

    told = False  # whether an error of the disk has reached the user

    def run(self, point: Any) -> None:
        """Do the deed with an interrupt, and see what comes of it."""
        try:
            before = self.history.now
            states = self.deed.states(before)
            returned = self.interrupted(point)
            self.go_on(before, states, returned)
        except (*ERRORS, kvstore.KVStoreError) as error:
            kind = {kvstore.LockedError: HELD, kvstore.CorruptionError: LOST}
            raise Broken(kind.get(type(error), WRONG), repr(error)) from error

    def go_on(self, before: Contents, states: list[Contents], returned: bool) -> None:
        """See that the deed happened or did not; then write, rearrange, close and open."""
        allowed = self.deed.ends_in(states) if returned else [before, *states]
        if self.deed.ends and not self.deed.opens:
            self.doing = "close once more"
            self.close(quiet=self.told)
            self.doing = "open"
            self.open()
        elif self.deed.opens and not (returned and not self.deed.ends):
            self.doing = "open"
            self.open()
        self.doing = "look"
        held = self.follow(states, allowed, returned=returned)
        apart = self.look_at_files(held, allowed)
        steps = {"write": self.write, "rearrange": self.rearrange, "again": self.again}
        for step in (steps.pop(self.next), *steps.values()):
            if step != self.again or self.next == "again":
                self.doing += f", {step.__name__}"
                self.attempt(step)
                held = self.held()
                apart = self.look_at_files(held, [held, *allowed]) or apart
                if apart is not None and step == self.write and not self.refuses:
                    raise Broken(APART, f"{in_words(held)} and {in_words(apart)}")
        self.doing += ", close, open"
        self.attempt(self.db.close)
        if not self.refuses:
            self.history.is_safe()
        self.look_at_files(held, [held, *allowed])
        self.open()
        found = self.held()
        if found != held and not (self.refuses and found in allowed):
            raise Broken(APART, f"{in_words(held)} and {in_words(found)}")
        self.put(b"at last", b"1")
        self.db.close()

    def attempt(self, step: Callable[[], object]) -> None:
        """Do something that the store may refuse; see that it says why."""
        try:
            step()
        except kvstore.WriteRefusedError as error:
            self.refuses = True
            if not str(error):
                raise Broken(MUTE, repr(error)) from error

    def close(self, *, quiet: bool) -> None:
        """Close once more. If that says nothing, everything is safe."""
        try:
            self.db.close()
        except kvstore.WriteRefusedError:
            return
        if not quiet:
            self.history.is_safe()
        self.after_power_cuts()

    def write(self) -> None:
        self.change({b"after": b"1" * 30})

    def rearrange(self) -> None:
        self.subject.rearrange(self.db)

    def again(self) -> None:
        """Do the same once more, and nothing comes in between."""
        if self.deed.opens or self.deed.ends:
            self.db.sync()
            self.history.is_safe()
            return
        states = self.deed.states(self.history.now)
        try:
            self.deed.act(self)
        except KeyError:  # it is gone already
            self.follow(states, self.deed.ends_in(states), returned=False)
        else:
            self.follow(states, self.deed.ends_in(states), returned=True)

    def follow(
        self, states: list[Contents], allowed: list[Contents], *, returned: bool
    ) -> Contents:
        """See that the store holds what it may hold, and let the history follow."""
        held = self.held()
        if held not in allowed:
            raise Broken(UNDONE if returned else HALF, f"found: {in_words(held)}")
        self.history.states += [*states, held]
        self.history.is_done()
        if returned and (self.deed.syncs or self.sync == "always"):
            self.history.is_safe()
        return held

    def held(self) -> Contents:
        """Return what the open store holds, which all that reads has to agree on."""
        held = dict(self.db.items())
        one_by_one = {key: self.db[key] for key in held}
        if not (one_by_one == held and len(self.db) == len(held) == len(set(self.db))):
            raise Broken(ITSELF, f"{in_words(held)} and {in_words(one_by_one)}")
        return held

    def look_at_files(
        self, held: Contents, allowed: Sequence[Contents]
    ) -> Contents | None:
        """Return what the files hold, had the process died, if that is something else."""
        image = self.image()
        try:
            found = contents(self.subject.name, tuple(sorted(image.items())))
        except kvstore.CorruptionError as error:
            raise Broken(LOST, f"had the process died: {error}") from error
        if found != held and found not in allowed:
            words = f"{in_words(held)} and {in_words(found)}"
            raise Broken(APART if self.refuses else HALF, words)
        self.after_power_cuts()
        return None if found == held else found

    def image(self) -> Image:
        if isinstance(self.disk, SimulatedDisk):
            return self.disk.image()
        return on_a_disk(Path(self.path)).image()

    def after_power_cuts(self) -> None:
        """See what a power cut may leave now."""
        if not isinstance(self.disk, SimulatedDisk):
            return
        cut = self.disk.power_cut()
        for picks, image in cut.images(OUTCOMES, self.number):
            found = contents(self.subject.name, tuple(sorted(image.items())))
            breach = self.history.after_a_power_cut(found)
            if breach is not None:
                words = f"after a power cut ({cut.describe(picks)}): {in_words(found)}"
                raise Broken(breach, words)
