"""Whose store it is: children of its process, copies of it, and nobody."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import kvstore
from kvstore.simdisk import SimulatedDisk
from tests.helpers import Worker, in_a_fork
from tests.proof.history import Contents, in_words
from tests.proof.moves.story import (
    HANGS,
    LET_IN,
    LOST,
    PATIENCE,
    STOPPED,
    Story,
    Trial,
    told_story,
)
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import Engine

MIXED = Breach(Promise.NEWEST, "a child sees something that was never written")
COPIED = Breach(Promise.ONE_WRITER, "an open store was copied: a second writer")
FORGOTTEN = Breach(Promise.SAFE, "nobody closed it, and what was due was not synced")


FORKS = 20


def forks(trial: Trial) -> None:
    """Fork again and again while threads write, sync, and rearrange."""
    story = trial.story(trial.folder / "db")
    story.sync = (1e-6, "os")[trial.number % 2]
    story.open()
    idle = [trial.story(trial.folder / f"{number}") for number in range(6)]
    for each in idle:
        each.sync = story.sync
        each.open()
    stop = threading.Event()
    told: Contents = {}

    def write(name: bytes) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            story.db[name] = value = b"%d" % number * 20
            told[name] = value

    def arrange() -> None:
        while not stop.is_set():
            trial.subject.rearrange(story.db)
            story.db.sync()

    # With less to do, the threads that sync at intervals get their turn more often.
    jobs: list[Callable[[], None]] = [
        partial(write, b"a"),
        partial(write, b"b"),
        arrange,
    ]
    del jobs[3 if trial.number % 2 else 1 :]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [Worker(job) for job in jobs]
    try:
        for number in range(FORKS):
            said = in_a_fork(partial(child_of, trial, (story, *idle), number))
            if said:
                raise Broken(MIXED if said.startswith("read") else HANGS, said)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        sys.setswitchinterval(interval)
    trouble = [thread.error or "it hangs" for thread in threads]
    if any(thread.error or thread.is_alive() for thread in threads):
        raise Broken(STOPPED, f"threads of a parent: {trouble}")
    goes_on_alone(trial, story, told)
    for each in idle:
        each.db.close()


def child_of(trial: Trial, stories: Sequence[Story], number: int) -> str:
    """Be a child that reads, tries to write, and closes, in one order or another."""
    story = stories[0]
    works: list[Callable[[], str | None]] = [
        partial(reads, story),
        partial(writes, story),
        partial(opens, trial, story),
        *(each.db.close for each in stories),
    ]
    chance = random.Random(f"{trial.number} {number}")
    for work in chance.sample(works, len(works)):
        try:
            said = work()
        except (kvstore.ClosedError, kvstore.ReadOnlyError):
            continue  # the parent may have taken away what the child would read
        if said:
            return said
    return ""


def reads(story: Story) -> str:
    """Read all that there was when the child was made."""
    for key, value in story.db.items():
        number = value[: len(value) // 20]
        if key not in (b"a", b"b") or number * 20 != value:
            return f"read: {key!r}: {value!r}"
    return ""


def writes(story: Story) -> str:
    try:
        story.db[b"child"] = b"1"
    except kvstore.ReadOnlyError:
        return ""
    return "read: a child has written to its parent's store"


def opens(trial: Trial, story: Story) -> str:
    trial.contents(story.path)
    return ""


def goes_on_alone(trial: Trial, story: Story, model: Contents) -> None:
    """See that a parent holds its store, whatever its children did, and all that it took."""
    if trial.strangers_are_let_in(Path(story.path)):
        raise Broken(LET_IN, "a child has let go of what its parent holds")
    story.db.close()
    trial.hold(Path(story.path), model, LOST)


def same_number(trial: Trial) -> None:
    """Have a child whose process number is that of its parent."""
    number = os.getpid()
    story = trial.story(trial.folder / "db")
    story.open()
    story.change({b"a": b"1"})

    def child() -> str:
        with suppress(OSError, kvstore.KVStoreError):
            story.db.close()
        return ""

    getpid, os.getpid = os.getpid, lambda: number
    try:
        said = in_a_fork(child)
    finally:
        os.getpid = getpid
    if said:
        raise Broken(STOPPED, said)
    story.change({b"b": b"2"})
    goes_on_alone(trial, story, story.model)


def copies(trial: Trial) -> None:
    """Copy the open store in every way that there is."""
    story = told_story(trial)
    ways: list[Callable[[Engine], object]] = [copy.copy, copy.deepcopy]
    ways += [partial(pickle.dumps, protocol=n) for n in range(6)]
    for way in ways:
        with suppress(TypeError, pickle.PicklingError):
            way(story.db)
            raise Broken(COPIED, f"by {way}")
    story.see()
    story.db.close()


def forgotten(trial: Trial) -> None:
    """Have nobody close a store that syncs at intervals."""
    disk = SimulatedDisk(sector_bytes=64, seed=1)
    seconds = 0.05
    db = trial.subject.open(disk, sync=seconds)
    for number in range(1 + trial.number):
        db[b"%d" % number] = b"1"
    if trial.number % 2:
        time.sleep(2 * seconds)
        db[b"0"] = b"2"
    expected = dict(db)
    del db
    gc.collect()
    found: Contents | None = None
    until = time.monotonic() + PATIENCE / 5
    while found != expected and time.monotonic() < until:
        time.sleep(seconds)
        cut = disk.power_cut()
        image = cut.image((0,) * len(cut.doubts))
        with trial.subject.open(SimulatedDisk(image), "r") as left:
            found = dict(left)
    if found != expected:
        raise Broken(FORGOTTEN, f"{in_words(found)}, not {in_words(expected)}")
