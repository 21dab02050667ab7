"""Every call to the operating system fails, one at a time, in every way that it can.

A life of a store is led once for each call in it and each kind of fault: that call fails, or
takes a part of what was to be written, and all others succeed. The store has to raise the
system's error or one of its own, to keep what it had acknowledged, and to go on or to
refuse writes until it is opened again. At the end the process is killed, and the power lost.

A case is a life, a mode of syncing and a fault; to replay one, the number of the call
follows.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from history import Changes, History, in_words
from lives import LIVES, MODES, Life, by_name, contents, make
from power import CHANGES
from proof import Broken, Contents, Tally

import kvstore
from kvstore.simdisk import Image, Operation, SimulatedDisk
from kvstore.store import Flag

NAME = "calls"
ERRORS: dict[str, int] = {
    name: getattr(errno, name)
    for name in ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "EINTR")
}
SHORT: dict[str, Callable[[int], int]] = {
    "short-by-one": lambda length: length - 1,
    "short-by-half": lambda length: length // 2,
}
# As EIO, and an fsync that fails takes the new bytes out of sight.
DROPPED = "EIO-dropped"
# As EIO, and so does every call behind it, until the user tries once more.
LASTING = "EIO-lasting"
# As EIO, and what the call was for is done all the same.
AFTER = "EIO-after"
FAULTS = (*ERRORS, DROPPED, LASTING, AFTER, *SHORT)
CASES = [
    f"{life} {mode} {fault}"
    for life, mode, fault in itertools.product(LIVES, MODES, FAULTS)
    if life != "by-chance" and mode != "interval"
]
OUTCOMES = 8  # of the power cut at the end


def another(seed: int) -> str:
    """Return a case with a life by chance."""
    chance = random.Random(seed)
    return f"by-chance:{seed} {chance.choice(list(MODES))} {chance.choice(FAULTS)}"


def run(case: str) -> Tally:
    """Lead a life again and again, and let another call of it fail each time."""
    tally: Tally = Counter()
    name, mode, fault, *place = case.split()
    for number in map(int, place) if place else itertools.count(1):
        trial = Trial(fault, number, f"{NAME} {name} {mode} {fault} {number}")
        trial.run(name, mode)
        if not trial.struck:
            break
        tally["calls that failed"] += 1
    return tally


@dataclass
class Trial:
    """One life with one fault."""

    fault: str
    number: int
    case: str
    calls: int = 0
    struck: Operation | None = None
    lasts: bool = False

    def run(self, name: str, mode: str) -> None:
        """Lead the life, kill the process at its end, and lose power."""
        lead, seed = by_name(name)
        disk = SimulatedDisk(sector_bytes=64, seed=seed)
        disk.drops_pages = self.fault == DROPPED
        disk.fault, disk.watch = self.strike, self.strike_after
        life = StubbornLife(disk, History(), MODES[mode], random.Random(seed))
        life.trial = self
        try:
            lead(life)
            life.ends()
        except (AssertionError, LookupError, OSError, kvstore.KVStoreError) as error:
            ours = isinstance(error, AssertionError)
            promise, _, found = (
                str(error).partition("; ") if ours else (LATE, "", repr(error))
            )
            state = f"{self.fault} at {self.struck}; {found}"
            raise Broken(promise, state, self.case) from error

    def strike(self, operation: Operation) -> int | None:
        """Let the call of this trial fail."""
        short = SHORT.get(self.fault)
        if short is not None and operation.name != "write":
            return None
        if self.fault == AFTER:
            return None
        self.calls += 1
        if self.calls == self.number:
            self.struck, self.lasts = operation, self.fault == LASTING
        elif not self.lasts:
            return None
        if short is not None:
            return short(operation.length)
        raise OSError(self.errno, "this call was made to fail", operation.path)

    def strike_after(self, operation: Operation) -> None:
        """Let the call of this trial fail when it is done."""
        if self.fault == AFTER and operation.name in CHANGES:
            self.calls += 1
            if self.calls == self.number:
                self.struck = operation
                raise OSError(self.errno, "this call was made to fail", operation.path)

    @property
    def errno(self) -> int:
        """Return the number of the error."""
        return ERRORS[self.fault.partition("-")[0]]

    def explains(self, error: Exception) -> bool:
        """Say whether an error is one that this fault may lead to."""
        if self.struck is None or self.fault in SHORT:
            return False
        if isinstance(error, OSError):
            return error.errno == self.errno
        return isinstance(error, kvstore.WriteRefusedError)


LATE = "T8, no guesses: what failed once makes the store fail later"
ALLOWED = "T8, no guesses: the store raises an error that the fault does not explain"
UNCHANGED = "T8, no guesses: a change that failed was made, and the store goes on"
STILL = "T3, the newest: what a store holds has changed with a call that failed"


class StubbornLife(Life):
    """A life that goes on after an error, as its user would: it looks, and tries again."""

    trial: Trial
    compacts = False  # whether a compaction is under way
    refuses = False  # whether the store takes no more writes while it is

    def attempt(self, work: Callable[[], object]) -> bool:
        """Do some work; say whether it came through."""
        try:
            work()
        except (OSError, kvstore.KVStoreError) as error:
            if not self.trial.explains(error):
                raise AssertionError(f"{ALLOWED}; {error!r}") from error
        else:
            return True
        self.trial.lasts = False
        self.power_may_go()
        return False

    def open(self, flag: Flag = "c") -> None:
        if not self.attempt(lambda: Life.open(self, flag)):
            self.settle()
            Life.open(self, flag)

    def change(self, changes: Changes) -> None:
        if self.refuses:
            return  # until the compaction has ended
        before = self.history.states[-1]
        self.comes_through(lambda: Life.change(self, changes), before)

    def sync(self) -> None:
        if not self.comes_through(lambda: Life.sync(self)):
            Life.sync(self)

    def compact(self, least_dead: float = 0.0) -> None:
        self.compacts = True
        came_through = self.attempt(lambda: Life.compact(self, least_dead))
        self.compacts = self.refuses = False
        if not came_through:
            self.looks()
            Life.compact(self, least_dead)

    def run_out_of_room(self, changes: Changes, room: int) -> None:
        before = self.trial.struck
        Life.run_out_of_room(self, changes, room)
        if self.trial.struck is not before:
            self.trial.lasts = False
            self.looks()

    def agree(self) -> None:
        if not self.attempt(lambda: Life.agree(self)):
            Life.agree(self)

    def close(self) -> None:
        goal = self.history.states[-1]
        if not self.attempt(lambda: Life.close(self)):
            self.settle()
            Life.open(self)
            self.reach(goal)
            Life.close(self)

    def comes_through(
        self, work: Callable[[], None], before: Contents | None = None
    ) -> bool:
        """Do some work. If it fails, see that the store is as it was, and reach its goal."""
        if self.attempt(work):
            return True
        self.looks(before)
        return False

    def looks(self, before: Contents | None = None) -> None:
        """See that the store is as it was, or refuses; then reach the goal of what failed."""
        goal, held = self.history.states[-1], self.held()
        right = (None, before or goal, *self.history.states[-2:])
        assert held in right, f"{STILL}; found: {in_words(held or {})}"
        if not self.attempt(lambda: make(self.db, {})):  # the store refuses
            if self.compacts:
                self.refuses = True
                return
            self.attempt(self.db.close)
            self.settle()
            Life.open(self)
        elif before is not None:
            assert held == before, f"{UNCHANGED}; found: {in_words(held or {})}"
            self.history.forget()
        self.reach(goal)

    def held(self) -> Contents | None:
        """Return what the open store holds; None if bytes that it needs were dropped."""
        try:
            return dict(self.db)
        except kvstore.CorruptionError as error:
            if not self.pages_dropped:
                raise AssertionError(f"{ALLOWED}; {error!r}") from error
            return None

    @property
    def pages_dropped(self) -> bool:
        """Say whether new bytes are out of sight, since an fsync has failed."""
        struck = self.trial.struck
        return self.disk.drops_pages and struck is not None and struck.name == "sync"

    def settle(self) -> None:
        """Go on from what is in the files, when the store that had them open has given up."""
        found = self.left(self.disk.image())
        after_a_kill = self.history.after_a_kill
        after_dropping = self.history.after_a_power_cut
        self.hold(found, after_dropping if self.pages_dropped else after_a_kill)
        self.history.goes_on_from(found)

    def left(self, image: Image) -> Contents:
        """Return what is on a disk; nothing, if the store has not been made yet."""
        try:
            return contents(image)
        except kvstore.StoreNotFoundError:
            assert not self.history.founded, "T7, safe when you say: the store is gone"
            return {}

    def power_may_go(self) -> None:
        """See what a power cut would leave at this moment."""
        for _, image in self.disk.power_cut().images(OUTCOMES, self.trial.number):
            self.hold(self.left(image), self.history.after_a_power_cut)

    def reach(self, goal: Contents) -> None:
        """Change the store to what it was meant to hold."""
        now = self.history.states[-1]
        changes: Changes = {k: v for k, v in goal.items() if now.get(k) != v}
        changes |= dict.fromkeys(now.keys() - goal.keys())
        if changes:
            Life.change(self, changes)

    def ends(self) -> None:
        """See what a killed process and a power cut leave at the end."""
        self.hold(self.left(self.disk.image()), self.history.after_a_kill)
        self.power_may_go()
