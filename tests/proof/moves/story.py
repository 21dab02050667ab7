"""A store whose ground moves: its life in steps, what it should hold, who else looks at it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import kvstore
from kvstore.filesystem import FileSystem
from kvstore.simdisk import SimulatedDisk
from tests.disks import NO_SYNC
from tests.helpers import Process, in_a_fork
from tests.proof.history import Changes, Contents, after, in_words
from tests.proof.programme import Tally
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import PATH, Engine, Flag, Subject, Sync
from tests.proof.workloads import make

PATIENCE = 20.0  # seconds until we say that something hangs
SMALL = 120

LOST = Breach(Promise.ONLY_THE_END, "a store has lost what it took")
STOPPED = Breach(Promise.NO_GUESSES, "a store does not go on")
LET_IN = Breach(Promise.ONE_WRITER, "a second writer was let in")
HANGS = Breach(Promise.NO_GUESSES, "the store hangs")

ERRORS = (OSError, LookupError, RuntimeError, AttributeError, TypeError, ValueError)
REFUSED = (kvstore.KVStoreError, RuntimeError)


class Hangs(BaseException):
    """Something takes too long."""


@contextmanager
def watched(what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Break a promise where the block takes too long: who waits for a lock lets go."""
    rung: list[bool] = []

    def ring(*_: object) -> None:
        rung.append(True)
        sys.settrace(None)
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, patience, 0.5)  # finalizers drop exceptions
    try:
        with suppress(Hangs):
            yield
        if rung:
            raise Broken(HANGS, f"{what}: for {patience:.0f} seconds")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Story:
    """A store, what it should hold, and steps of a life."""

    db: Engine

    def __init__(
        self, subject: Subject, disk: FileSystem, path: str, sync: Sync = "os"
    ) -> None:
        self.subject, self.disk, self.path, self.sync = subject, disk, path, sync
        self.model: Contents = {}

    def open(self, flag: Flag = "c") -> None:
        self.db = self.subject.open(self.disk, flag, self.sync, SMALL, self.path)

    def change(self, changes: Changes) -> None:
        make(self.db, changes)
        self.model = after(self.model, changes)

    def see(self) -> None:
        """See that the open store holds what it should."""
        held = dict(self.db.items())
        if held != self.model or {key: self.db[key] for key in held} != held:
            words = f"{in_words(held)} instead of {in_words(self.model)}"
            raise Broken(LOST, words)

    def sync_now(self) -> None:
        self.db.sync()

    def close(self) -> None:
        self.db.close()

    def steps(self) -> list[tuple[str, Callable[[], object]]]:
        """Return the steps of a life that ends with a close."""
        put, see = self.change, self.see
        return [
            ("open", self.open),
            ("put", lambda: put({b"a": b"1" * 50})),
            ("put", lambda: put({b"b": b"2" * 90})),  # no more fits into this file
            ("put", lambda: put({b"c": b"3"})),
            ("batch", lambda: put({b"a": b"4" * 80, b"d": b"4", b"e": b"4" * 60})),
            ("sync", self.sync_now),
            ("delete", lambda: put({b"b": None})),
            ("look", see),
            ("rearrange", lambda: self.subject.rearrange(self.db)),
            ("put", lambda: put({b"b": b"5" * 200})),
            ("put", lambda: put({b"f": b"6" * 30})),
            ("verify", lambda: self.subject.damage(self.db)),
            ("rearrange", lambda: self.subject.rearrange(self.db)),
            ("look", see),
            ("sync", self.sync_now),
            ("put", lambda: put({b"g": b"7"})),
            ("close", self.close),
        ]


LENGTH = len(Story.steps(Story.__new__(Story)))
LATER = range(1, LENGTH)  # steps before which the store is open


THEIRS: Contents = {b"a": b"theirs" * 20, b"z": b"theirs"}
STRANGER = """
import sys
import kvstore
from tests.disks import NO_SYNC
from tests.proof.engines import ENGINES

try:
    ENGINES[sys.argv[1]].open(NO_SYNC, "w", path=sys.argv[2])
except kvstore.LockedError:
    print("locked")
"""


class Trial(NamedTuple):
    """One of the things that happen, at one time."""

    subject: Subject
    number: int
    tally: Tally
    folder: Path

    def story(self, path: str | Path) -> Story:
        return Story(self.subject, NO_SYNC, str(path))

    def contents(self, path: str | Path) -> Contents:
        with self.subject.open(NO_SYNC, "r", path=str(path)) as db:
            return dict(db)

    def others(self, path: Path) -> None:
        """Have another process make a store that holds `THEIRS`."""

        def found() -> str:
            with self.subject.open(NO_SYNC, small=SMALL, path=str(path)) as db:
                db.update(THEIRS)
            return ""

        said = in_a_fork(found)
        assert not said, said

    def others_are_let_in(self, path: Path) -> bool:
        """Say whether another process can open the store for writing."""

        def try_it() -> str:
            try:
                self.subject.open(NO_SYNC, "w", path=str(path))
            except kvstore.LockedError:
                return "locked"
            return ""

        return in_a_fork(try_it) != "locked"

    def strangers_are_let_in(self, path: Path) -> bool:
        """Say the same of a process that shares nothing with this one."""
        with Process(STRANGER, self.subject.name, path) as stranger:
            return stranger.line() != "locked"

    def hold(self, path: Path, model: Contents, breach: Breach) -> None:
        """See what a reader finds, and that the store can be written to."""
        try:
            found = self.contents(path)
            with self.subject.open(NO_SYNC, "w", path=str(path)) as db:
                db[b"at last"] = b"1"
        except (OSError, kvstore.KVStoreError) as error:
            raise Broken(breach, repr(error)) from error
        if found != model:
            words = f"{in_words(found)} instead of {in_words(model)}"
            raise Broken(breach, words)


def told_story(trial: Trial) -> Story:
    """Return a store on a simulated disk that has seen some use."""
    story = Story(trial.subject, SimulatedDisk(sector_bytes=64, seed=1), PATH)
    story.open()
    for key in (b"a", b"b", b"c"):
        story.change({key: b"1" * 40})
    story.change({b"a": b"1"})
    return story
