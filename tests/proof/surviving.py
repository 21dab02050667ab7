"""What has to work on any state that a crash may leave: read, write, close, open again."""

from __future__ import annotations

from typing import NamedTuple

import kvstore
from kvstore.powercut import Image
from kvstore.simdisk import SimulatedDisk
from tests.proof.faults import CHANGES_OF_A_DISK
from tests.proof.history import Contents, in_words
from tests.proof.programme import fingerprint_of
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import Subject, Tail

READER = Breach(Promise.ONE_WRITER, "a reader has changed the disk")
DIFFER = Breach(Promise.NEWEST, "a reader and a writer differ")
UNTOLD = Breach(Promise.NO_GUESSES, "a torn tail is not reported")
LEFT_DAMAGED = Breach(Promise.NO_GUESSES, "damage is left in an open store")
NOT_KEPT = Breach(Promise.NO_GUESSES, "a torn tail is not kept")
TWICE = Breach(Promise.NO_GUESSES, "a torn tail is found twice")
CHANGED = Breach(Promise.SAFE, "opening again has changed the store")
ALARM = Breach(Promise.NO_GUESSES, "a crash is taken for damage")
FOR_EVER = Breach(Promise.ONE_MOMENT, "what an interrupted change left stays for ever")

NEW = b"new"
WRITTEN_TO: set[tuple[str, int]] = set()  # what recoveries have left behind


class Opened(NamedTuple):
    """What a reader finds in a store."""

    contents: Contents | None  # None: there is no store
    torn: Tail | None


def read(subject: Subject, disk: SimulatedDisk) -> Opened:
    """Return what a reader finds, who changes nothing."""
    try:
        with subject.open(disk, "r") as db:
            return Opened(dict(db), subject.torn_tail(db))
    except kvstore.StoreNotFoundError:
        return Opened(None, None)


def survive(subject: Subject, image: Image) -> Opened:
    """Open a store for reading, then for writing, then again; return what was found."""
    disk = SimulatedDisk(image, seed=1)
    try:
        found = read(subject, disk)
        if CHANGES_OF_A_DISK & {operation.name for operation in disk.operations}:
            raise Broken(READER, "when it opened the store")
        check_writers(subject, disk, found)
    except Broken:
        raise
    except Exception as error:
        raise Broken(ALARM, repr(error)) from error
    if stray := strays(subject, disk.image()):
        raise Broken(FOR_EVER, ", ".join(stray))
    return found


def strays(subject: Subject, image: Image) -> list[str]:
    """Return the files that do not belong to a store that a writer has opened."""
    layout = subject.layout(image)
    known = layout.live | layout.kept | {subject.lock_file}
    return sorted(path for path in image if path not in known and path[-1] != "/")


def check_writers(subject: Subject, disk: SimulatedDisk, found: Opened) -> None:
    """Write to a store twice, the second time to a new file, and see what it holds.

    That is done once with what a recovery leaves, whatever it keeps of a torn tail.
    """
    contents, torn = found.contents or {}, found.torn
    with subject.open(disk) as db:
        if dict(db) != contents:
            raise Broken(DIFFER, f"{in_words(contents)} and {in_words(dict(db))}")
        told = subject.torn_tail(db)
        if (told and told[:3]) != (torn and torn[:3]):
            raise Broken(UNTOLD, f"a reader is told of {torn}, a writer of {told}")
        if told and len(disk.image().get(told.kept_as or "", b"")) != told.length:
            raise Broken(NOT_KEPT, f"{told}")
        image = disk.image() | ({told.kept_as or "": b""} if told else {})
        if (key := (subject.name, fingerprint_of(image))) in WRITTEN_TO:
            return
        if subject.damage(db):
            raise Broken(LEFT_DAMAGED, f"{subject.damage(db)}")
        db[NEW] = b"new"
    with subject.open(disk, small=1) as db:
        if subject.torn_tail(db) is not None:
            raise Broken(TWICE, f"{subject.torn_tail(db)}")
        if dict(db) != contents | {NEW: b"new"}:
            raise Broken(CHANGED, f"{in_words(contents)} and {in_words(dict(db))}")
        db[NEW] = b"newer"  # every name and number has to be free
    WRITTEN_TO.add(key)
