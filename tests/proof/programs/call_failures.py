"""Every call to the operating system fails, one at a time, in every way that it can.

A workload runs once for each call in it and each kind of fault: that call fails, or takes a
part of what was to be written, and all others succeed. The store has to raise the system's
error or one of its own, to keep what it had acknowledged, and to go on or to refuse writes
until it is opened again. At the end the process is killed, and the power lost.

A case is a workload, a mode of syncing and a fault; to replay one, the number of the call
follows. Two failures count as one if workload, mode and fault are the same, and the same
call failed in the same functions of the engine.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import kvstore
from kvstore.powercut import Image
from tests.proof.faults import FAULTS, BusyDisk, OneCall
from tests.proof.history import Changes, Contents, in_words
from tests.proof.programme import Tally, fingerprint, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import MODES, Flag, Subject
from tests.proof.workloads import WORKLOADS, Life, by_name, make

NAME = "call-failures"
NEEDS = frozenset({Promise.ONLY_THE_END, Promise.SAFE})
OUTCOMES = 8  # of the power cut at the end

LATE = Breach(Promise.NO_GUESSES, "what failed once makes the store fail later")
ALLOWED = Breach(Promise.NO_GUESSES, "the fault does not explain the error")
UNCHANGED = Breach(
    Promise.NO_GUESSES, "a change that failed was made, and the store goes on"
)
STILL = Breach(Promise.NEWEST, "what a store holds has changed with a call that failed")
GONE = Breach(Promise.SAFE, "the store is gone")


IN_THE_SHARE = {
    "os": [fault for fault in FAULTS if fault not in ("EDQUOT", "EINTR")],
    "always": ["EIO", "EIO-dropped", "EMFILE", "short-by-one"],
}


def cases(_: Subject) -> list[str]:
    """Return every workload, with every fault that is no other by another name."""
    return [
        f"{name} {mode} {fault}"
        for name, (mode, faults) in itertools.product(WORKLOADS, IN_THE_SHARE.items())
        for fault in faults
        if name != "by-chance"
    ]


def another(_: Subject, seed: int) -> str:
    """Return a case with a workload by chance."""
    chance = random.Random(seed)
    return f"by-chance:{seed} {chance.choice(list(MODES))} {chance.choice(FAULTS)}"


def run(subject: Subject, case: str) -> Tally:
    """Run a workload again and again, and let another call of it fail each time."""
    tally = Tally()
    name, mode, fault, *place = case.split()
    for number in map(int, place) if place else itertools.count(1):
        one = OneCall(fault, number)
        run_once(subject, name, mode, one)
        if one.struck is None:
            break
        call = one.struck.name, one.struck.path
        which = fingerprint(name, mode, fault, *call, one.place)
        tally.meet("different calls that failed", which)
    return tally


def run_once(subject: Subject, name: str, mode: str, one: OneCall) -> None:
    """Run a workload, kill the process at its end, and lose power."""
    lead, seed = by_name(name)
    disk = BusyDisk(sector_bytes=64, seed=seed)
    one.on(disk)
    life = StubbornLife(subject, disk, MODES[mode], random.Random(seed))
    life.one = one
    case = line(NAME, subject, name, mode, one.fault, one.number)
    try:
        lead(life)
        life.ends()
    except Broken as broken:
        raise broken.seen(f"{one.fault} at {one.struck}", case) from broken
    except (LookupError, OSError, kvstore.KVStoreError) as error:
        state = f"{one.fault} at {one.struck}; {error!r}"
        raise Broken(LATE, state, case) from error


class StubbornLife(Life):
    """A life that goes on after an error, as its user would: it looks, and tries again."""

    one: OneCall
    compacts = False  # whether a compaction is under way
    refuses = False  # whether the store takes no more writes while it is

    def attempt(self, work: Callable[[], object]) -> bool:
        """Do some work; say whether it came through."""
        try:
            work()
        except (OSError, kvstore.KVStoreError) as error:
            if not self.explains(error):
                raise Broken(ALLOWED, repr(error)) from error
        else:
            return True
        self.one.lasts = False
        self.power_may_go()
        return False

    def explains(self, error: Exception) -> bool:
        """Say whether an error is one that the fault may lead to."""
        if self.one.struck is None or self.one.is_short:
            return False
        if isinstance(error, OSError):
            return error.errno == self.one.errno
        return isinstance(error, kvstore.WriteRefusedError)

    def open(self, flag: Flag = "c") -> None:
        if not self.attempt(lambda: Life.open(self, flag)):
            self.settle()
            Life.open(self, flag)

    def change(self, changes: Changes) -> None:
        if self.refuses:
            return  # until the compaction has ended
        before = self.history.now
        if not self.attempt(lambda: Life.change(self, changes)):
            self.looks(before)

    def sync(self) -> None:
        if not self.attempt(lambda: Life.sync(self)):
            self.looks()
            Life.sync(self)

    def compact(self, share: float = 0.0) -> None:
        self.compacts = True
        came_through = self.attempt(lambda: Life.compact(self, share))
        self.compacts = self.refuses = False
        if not came_through:
            self.looks()
            Life.compact(self, share)

    def run_out_of_space(self, changes: Changes, space: int) -> None:
        before = self.one.struck
        Life.run_out_of_space(self, changes, space)
        if self.one.struck is not before:
            self.one.lasts = False
            self.looks()

    def agree(self) -> None:
        if not self.attempt(lambda: Life.agree(self)):
            Life.agree(self)

    def close(self) -> None:
        goal = self.history.now
        if not self.attempt(lambda: Life.close(self)):
            self.settle()
            Life.open(self)
            self.reach(goal)
            Life.close(self)

    def looks(self, before: Contents | None = None) -> None:
        """See that the store is as it was, or refuses; then reach the goal of what failed."""
        goal, held = self.history.now, self.held()
        found = f"found: {in_words(held or {})}"
        if held not in (None, before or goal, *self.history.states[-2:]):
            raise Broken(STILL, found)
        if not self.attempt(lambda: make(self.db, {})):  # the store refuses
            if self.compacts:
                self.refuses = True
                return
            self.attempt(self.db.close)
            self.settle()
            Life.open(self)
        elif before is not None:
            if held != before:
                raise Broken(UNCHANGED, found)
            self.history.forget()
        self.reach(goal)

    def held(self) -> Contents | None:
        """Return what the open store holds; None if bytes that it needs were dropped."""
        try:
            return dict(self.db)
        except kvstore.CorruptionError as error:
            if not self.pages_dropped:
                raise Broken(ALLOWED, repr(error)) from error
            return None

    @property
    def pages_dropped(self) -> bool:
        """Say whether new bytes are out of sight, since an fsync has failed."""
        struck = self.one.struck
        return self.disk.drops_pages and struck is not None and struck.name == "sync"

    def settle(self) -> None:
        """Go on from what is in the files, when the store that had them open has given up."""
        found = self.left(self.disk.image())
        dropped, history = self.pages_dropped, self.history
        self.hold(found, history.after_a_power_cut if dropped else history.after_a_kill)
        self.history.goes_on_from(found)

    def left(self, image: Image) -> Contents:
        """Return what is on a disk; nothing, if the store has not been made yet."""
        try:
            return self.contents(image)
        except kvstore.StoreNotFoundError as error:
            if self.history.founded:
                raise Broken(GONE, repr(error)) from error
            return {}

    def power_may_go(self) -> None:
        """See what a power cut would leave at this moment."""
        for _, image in self.disk.power_cut().images(OUTCOMES, self.one.number):
            self.hold(self.left(image), self.history.after_a_power_cut)

    def reach(self, goal: Contents) -> None:
        """Change the store to what it was meant to hold."""
        now = self.history.now
        changes: dict[bytes, bytes | None] = dict.fromkeys(now.keys() - goal.keys())
        changes |= {k: v for k, v in goal.items() if now.get(k) != v}
        if changes:
            Life.change(self, changes)

    def ends(self) -> None:
        """See what a killed process and a power cut leave at the end."""
        self.hold(self.left(self.disk.image()), self.history.after_a_kill)
        self.power_may_go()
