"""A store is called from inside its own calls: by signal handlers, and by finalizers."""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import kvstore
from kvstore.simdisk import Operation, SimulatedDisk
from tests.proof.history import Changes, Contents, after, in_words
from tests.proof.moves.story import (
    ERRORS,
    LOST,
    PATIENCE,
    REFUSED,
    Hangs,
    Story,
    Trial,
    told_story,
    watched,
)
from tests.proof.programme import fingerprint
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.signals import Point, Signals, first_time_at
from tests.proof.subject import Engine, Subject
from tests.proof.surviving import read
from tests.proof.workloads import make

WRONG = Breach(Promise.NO_GUESSES, "an error of a call from inside does not say so")
HALF = Breach(Promise.WHOLE, "of two calls, one inside the other, one happened in part")


class Call(NamedTuple):
    """A call of the store, and what it changes."""

    name: str
    work: Callable[[Engine, Subject], object]
    changes: Changes


OUTSIDE = (
    Call("put", lambda db, _: db.__setitem__(b"a", b"2" * 200), {b"a": b"2" * 200}),
    Call("delete", lambda db, _: db.__delitem__(b"b"), {b"b": None}),
    Call("batch", lambda db, _: make(db, BATCH), {b"c": None, b"d": b"3", b"e": b"3"}),
    Call("pop", lambda db, _: db.pop(b"b", None), {b"b": None}),
    Call("setdefault", lambda db, _: db.setdefault(b"n", b"4"), {b"n": b"4"}),
    Call("sync", lambda db, _: db.sync(), {}),
    Call("rearrange", lambda db, subject: subject.rearrange(db), {}),
    Call("iterate", lambda db, _: (list(db), list(db.items())), {}),
    Call("verify", lambda db, subject: (db.stats(), subject.damage(db)), {}),
    Call("no space", lambda db, _: db.__setitem__(b"a", b"6"), {b"a": b"6"}),
    Call("close", lambda db, _: db.close(), {}),
)
BATCH: Changes = {b"c": None, b"d": b"3", b"e": b"3"}
INSIDE = (
    Call("put", lambda db, _: db.__setitem__(b"inside", b"5"), {b"inside": b"5"}),
    Call("close", lambda db, _: db.close(), {}),
    Call("iterate", lambda db, _: list(db.items()), {}),
    Call("sync", lambda db, _: db.sync(), {}),
    Call("get", lambda db, _: (db.get(b"a"), b"b" in db, len(db)), {}),
    Call("rearrange", lambda db, subject: subject.rearrange(db), {}),
    Call("delete", lambda db, _: db.pop(b"c", None), {b"c": None}),
)
TURNS = len(OUTSIDE) * len(INSIDE)
STRIDE = 7  # of the points at which a handler is called, one in so many


class NoSpace(OSError):
    """A write finds no space."""


def story_for(trial: Trial, outside: Call) -> Story:
    """Return a store in which a call can be made; on a disk that is full for it, if need be."""
    story = told_story(trial)
    writes = itertools.count()

    def is_full(operation: Operation) -> None:
        if operation.name == "write" and next(writes) == 0:
            raise NoSpace(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if outside.name == "no space":
        assert isinstance(story.disk, SimulatedDisk)
        story.disk.fault = is_full
    return story


def handlers(trial: Trial) -> None:
    """Have a signal handler use the store inside an operation, at one point after another."""
    outside = OUTSIDE[trial.number % len(OUTSIDE)]
    inside = INSIDE[trial.number // len(OUTSIDE) % len(INSIDE)]
    seen: dict[Point, None] = {}

    def note(point: Point) -> bool:
        seen.setdefault(point)
        return False

    with watched(outside.name, PATIENCE / 4):
        story = story_for(trial, outside)
        with suppress(NoSpace), Signals(note):
            outside.work(story.db, trial.subject)
        if outside.name != "close":
            story.db.close()
    for place in itertools.islice(seen, trial.number % STRIDE, None, STRIDE):
        what = f"{inside.name} inside {outside.name}, at {place}"
        with watched(what, PATIENCE / 2):
            try:
                twice = Twice(trial, outside, inside)
                signals = Signals(first_time_at(place), action=twice.inner)
                with signals:
                    twice.outer()
                twice.judge()
            except (*ERRORS, kvstore.KVStoreError) as error:
                raise Broken(WRONG, f"{what}: {error!r}") from error
            except Broken as error:
                raise error.seen(what, "") from error.__cause__
        if signals.delivered:
            words = "points at which a handler used the store*"
            point = fingerprint(outside.name, inside.name, *signals.delivered)
            trial.tally.meet(words, point)


class Twice:
    """A call of a store, and one inside it."""

    def __init__(self, trial: Trial, outside: Call, inside: Call) -> None:
        self.subject, self.outside, self.inside = trial.subject, outside, inside
        self.story = story_for(trial, outside)
        self.done: list[Call] = []  # that have returned

    def inner(self) -> None:
        with suppress(*REFUSED, NoSpace):
            self.inside.work(self.story.db, self.subject)
            self.done.append(self.inside)

    def outer(self) -> None:
        """Do the call, and hear that the store is closed, or in the middle of something."""
        try:
            self.outside.work(self.story.db, self.subject)
        except (*REFUSED, NoSpace):
            return
        except KeyError:  # the inner call has deleted it
            if self.inside.name != "delete":
                raise
        self.done.append(self.outside)

    def judge(self) -> None:
        """See that each call happened or did not, and that the files say the same."""
        story, now = self.story, self.story.model
        allowed = [
            functools.reduce(after, (call.changes for call in order), now)
            for some in range(3)
            for order in itertools.permutations((self.inside, self.outside), some)
            if all(call in order for call in self.done)
        ]
        closed = "close" in (call.name for call in self.done)
        assert isinstance(story.disk, SimulatedDisk)
        if not closed:
            held = dict(story.db.items())
            self.hold(held, allowed)
            allowed = [held]
            with suppress(kvstore.WriteRefusedError):
                story.db[b"after"] = b"1"
                allowed = [held | {b"after": b"1"}]
            self.hold(dict(story.db.items()), allowed)
        left = read(self.subject, SimulatedDisk(story.disk.image()))
        self.hold(left.contents, allowed)
        with suppress(kvstore.WriteRefusedError):
            story.db.close()
        with self.subject.open(story.disk, "w") as db:
            self.hold(dict(db), allowed)
            db[b"at last"] = b"1"

    def hold(self, found: Contents | None, allowed: Sequence[Contents]) -> None:
        if found not in allowed:
            raise Broken(HALF, f"{in_words(found)} is none of {len(allowed)} states")


class Finalizer:
    """Uses a store when the collector finds it, in a circle with itself."""

    def __init__(self, use: Callable[[], object]) -> None:
        self.circle, self.use = self, use

    def __del__(self) -> None:
        self.use()


ROUNDS = 60


def collector(trial: Trial) -> None:
    """Have the collector run at every moment, and find what uses the store."""
    outside = OUTSIDE[trial.number % (len(OUTSIDE) - 1)]  # all but close
    with watched("what comes first"):
        story = told_story(trial)
    threshold = gc.get_threshold()
    hung: list[bool] = []
    made: set[bytes] = set()

    def put() -> None:
        key = b"f%d" % next(names)
        story.db[key] = b"1"
        made.add(key)

    def delete() -> None:
        key = next(iter(made), b"none")
        del story.db[key]
        made.discard(key)

    def use(what: Callable[[], object]) -> None:
        try:
            if not hung:
                what()
        except (KeyError, *REFUSED):
            pass
        except Hangs:
            hung.append(True)

    names = itertools.count()
    works = (put, delete, lambda: list(story.db.items()))
    uses = [functools.partial(use, what) for what in works]
    with watched(f"{outside.name} and the collector", PATIENCE / 2):
        gc.freeze()  # what others have left would only take time
        try:
            for turn in range(ROUNDS):
                if hung:
                    break
                gc.disable()
                gc.collect()
                for _ in range(3):
                    Finalizer(uses[turn % len(uses)])
                gc.set_threshold(gc.get_count()[0] + turn)  # it runs so much later
                gc.enable()
                with suppress(KeyError, *REFUSED):
                    outside.work(story.db, trial.subject)
        finally:
            gc.set_threshold(*threshold)
            gc.enable()
            gc.unfreeze()
        gc.collect()
        try:
            held = dict(story.db.items())
            story.db.close()
            with trial.subject.open(story.disk, "w") as db:
                found = dict(db)
        except (*ERRORS, kvstore.KVStoreError) as error:
            raise Broken(WRONG, f"{outside.name}, collector: {error!r}") from error
    if held != found or {key for key in held if key.startswith(b"f")} != made:
        raise Broken(LOST, f"{in_words(found)}, not {in_words(held)}, {sorted(made)}")
