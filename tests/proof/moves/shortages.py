"""Descriptors run out, or space."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import kvstore
from kvstore.simdisk import SimulatedDisk, no_fault
from tests.disks import NO_SYNC
from tests.helpers import in_a_fork
from tests.proof.faults import FullDisk
from tests.proof.history import in_words
from tests.proof.moves.story import LENGTH, LOST, STOPPED, Story, Trial
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import PATH, Engine

LASTS = Breach(Promise.NO_GUESSES, "writes are refused for a shortage that is over")
NEEDLESS = Breach(Promise.NO_GUESSES, "a read needs a descriptor that it does not need")
NAMELESS = Breach(Promise.NO_GUESSES, "an error does not say which file it is about")
WRONG = Breach(Promise.NO_GUESSES, "an error that the shortage does not explain")


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let no more files be opened while the block lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
    with suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


LARGE = 1_200_000  # more than a map of the file is behind its end, where there are maps


def descriptors(trial: Trial) -> None:
    """Let there be no descriptors for one step; then do the step again."""
    story = trial.story(trial.folder / "db")
    story.open()
    story.db.close()
    large = trial.subject.open(NO_SYNC, path=str(trial.folder / "large"))
    large[b"large"] = bytes(LARGE)
    closed = False
    for number, (what, step) in enumerate(story.steps()):
        if number == trial.number:
            closed = without_descriptors(story, what, step, large)
        if not closed:
            after_a_shortage(what, step)
    large.close()
    trial.hold(trial.folder / "db", story.model, LOST)
    trial.hold(trial.folder / "large", {b"large": bytes(LARGE)}, LOST)


def without_descriptors(
    story: Story, what: str, step: Callable[[], object], large: Engine
) -> bool:
    """Try a step, and reads; say whether the step has closed the store."""
    before = story.model
    with no_descriptors():
        try:
            large[b"large"]
        except OSError as error:
            raise Broken(NEEDLESS, f"get: {error!r}") from error
        try:
            step()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise Broken(WRONG, f"{what}: {error!r}") from error
        except kvstore.KVStoreError as error:
            raise Broken(WRONG, f"{what}: {error!r}") from error
        else:
            return what == "close"
    story.model = before
    if what == "close":
        with suppress(kvstore.ClosedError):  # it has let go, and said that it failed
            story.db.sync()
    return False


def after_a_shortage(what: str, step: Callable[[], object]) -> None:
    """Do a step for which there is enough of everything again."""
    try:
        step()
    except kvstore.WriteRefusedError as error:
        raise Broken(LASTS, f"{what}: {error}") from error
    except KeyError:  # a deletion that was done before
        if what != "delete":
            raise


FEW = 48  # descriptors
FILES = 120


def few(trial: Trial) -> None:
    """Have more files than descriptors, in a child."""
    path = trial.folder / "db"

    def child() -> str:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + FEW, free + FEW))
        told = {b"%d" % number: b"%d" % number * 9 for number in range(FILES)}
        try:
            for flag in ("c", "w"):
                with trial.subject.open(NO_SYNC, flag, small=1, path=str(path)) as db:
                    if flag == "w" and dict(db.items()) != told:
                        return "it does not hold what it held"
                    db.update(told)
                    told[b"0"] = b"0" * 9
                    if dict(db.items()) != told or any(db[k] != told[k] for k in told):
                        return "it does not hold what it took"
                    trial.subject.rearrange(db)
                    if dict(db) != told:
                        return "it does not hold what it took, once rearranged"
        except (OSError, kvstore.KVStoreError) as error:
            return repr(error)
        return ""

    said = in_a_fork(child)
    if said:
        raise Broken(STOPPED, f"{FILES} files, {FEW} descriptors: {said[-300:]}")


SPACE = 200  # bytes that are left at most


def full(trial: Trial) -> None:
    """Let a simulated disk be full for a while."""
    disk = SimulatedDisk(sector_bytes=64, seed=1)
    story = Story(trial.subject, disk, PATH)
    space, begins = trial.number % SPACE, 1 + trial.number % (LENGTH - 2)
    is_full = FullDisk(disk, space, stays_full=True)
    closed = False
    for number, (what, step) in enumerate(story.steps()):
        before = story.model
        disk.fault = is_full if begins <= number < begins + 4 else no_fault
        if disk.fault is no_fault:
            after_a_shortage(what, step)
            continue
        try:
            step()
            closed = what == "close"
        except OSError as error:
            is_told(error, what)
            story.model = before
        except kvstore.KVStoreError as error:
            raise Broken(WRONG, f"{what}: {error!r}") from error
        if not closed:
            story.see()
    disk.fault = no_fault
    with suppress(kvstore.ClosedError):
        story.db.close()
    with trial.subject.open(SimulatedDisk(disk.image()), "w") as db:
        if dict(db) != story.model:
            raise Broken(LOST, f"{in_words(dict(db))}, not {in_words(story.model)}")


def is_told(error: OSError, what: str) -> None:
    """See that an error is that of a full disk, and names a file."""
    if error.errno != errno.ENOSPC:
        raise Broken(WRONG, f"{what}: {error!r}") from error
    if not error.filename:
        raise Broken(NAMELESS, f"{what}: {error!r}") from error


def tmpfs(trial: Trial) -> None:
    """Fill a real disk of a few kilobytes, and make space again."""
    mounted = trial.folder / "mounted"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={64 + 4 * trial.number}k", "tmpfs"]
    if not shutil.which("mount") or os.geteuid() != 0 or quiet(*command, mounted):
        trial.tally.count("small disks that we may not mount here*")
        return
    try:
        fill(trial, mounted)
    finally:
        quiet("umount", "-l", mounted)


def quiet(*command: str | Path) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def fill(trial: Trial, mounted: Path) -> None:
    """Write until there is no space, look, make space, and go on."""
    ballast = mounted / "ballast"
    ballast.write_bytes(bytes(12_000))
    story = trial.story(mounted / "db")
    story.open()
    try:
        for number in itertools.count():
            story.change({b"%d" % (number % 500): os.urandom(300)})
    except OSError as error:
        is_told(error, "put")
    story.see()
    with suppress(OSError):
        trial.subject.rearrange(story.db)
    story.see()
    ballast.unlink()
    after_a_shortage("put", lambda: story.change({b"more": b"1" * 90}))
    story.see()
    story.db.close()
    trial.hold(mounted / "db", story.model, LOST)
    trial.tally.count("small disks filled*")
