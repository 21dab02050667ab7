"""The directory of a store, and the working directory, move, go, and come to be others."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import kvstore
from tests.proof.moves.story import ERRORS, LET_IN, LOST, STOPPED, THEIRS, Story, Trial
from tests.proof.promises import Breach, Broken, Promise

OTHERS = Breach(Promise.ONE_WRITER, "a store was written to by another store's handle")
LIES = Breach(Promise.SAFE, "something is said to be safe, and the directory is gone")


def goes_on(
    trial: Trial, story: Story, move: Callable[[], object], where: Callable[[], Path]
) -> None:
    """Live through the script. Before one step the ground moves, and nothing else changes.

    `where` says where the store is then.
    """
    what = "begin"
    try:
        for number, (what, step) in enumerate(story.steps()):
            if number == trial.number:
                move()
            step()
            if what == "sync" and trial.others_are_let_in(where()):
                raise Broken(LET_IN, f"at step {number}")
    except (*ERRORS, kvstore.KVStoreError) as error:
        raise Broken(STOPPED, f"{what}: {error!r}") from error
    trial.hold(where(), story.model, LOST)


def chdir(trial: Trial) -> None:
    """Open a store by a relative path; then paths begin elsewhere."""
    here, there = trial.folder / "here", trial.folder / "there"
    here.mkdir()
    there.mkdir()
    trial.others(there / "db")
    with contextlib.chdir(here):
        goes_on(trial, trial.story("db"), lambda: os.chdir(there), lambda: here / "db")
    trial.hold(there / "db", THEIRS, OTHERS)


def renamed(trial: Trial, above: str = "") -> None:
    """Give the directory, or the one above, another name; let others have the old one."""
    path = now = trial.folder / above / "db"
    renamed = trial.folder / (above or "db")
    path.parent.mkdir(exist_ok=True)

    def move() -> None:
        nonlocal now
        now = renamed.rename(trial.folder / "elsewhere") / path.relative_to(renamed)
        path.parent.mkdir(exist_ok=True)
        trial.others(path)

    goes_on(trial, trial.story(path), move, lambda: now)
    trial.hold(path, THEIRS, OTHERS)


def removed(trial: Trial) -> None:
    path = trial.folder / "db"
    goes_no_further(trial, trial.story(path), lambda: shutil.rmtree(path))
    if path.exists():
        raise Broken(LIES, f"there is a directory again: {os.listdir(path)}")


def replaced(trial: Trial) -> None:
    """Remove the directory, and let others make a store there."""
    path = trial.folder / "db"

    def move() -> None:
        shutil.rmtree(path)
        trial.others(path)

    goes_no_further(trial, trial.story(path), move)
    trial.hold(path, THEIRS, OTHERS)


def goes_no_further(trial: Trial, story: Story, move: Callable[[], object]) -> None:
    """Live through the script. From one step on, nothing may be said to be safe."""
    for number, (what, step) in enumerate(story.steps()):
        if number == trial.number:
            move()
        try:
            step()
        except (OSError, kvstore.KVStoreError):
            if number < trial.number:
                raise
        else:
            if number >= trial.number and what in ("sync", "close"):
                raise Broken(LIES, f"{what} returns")


def unlocked(trial: Trial) -> None:
    """Remove the file that a writer locks."""
    path, name = trial.folder / "db", trial.subject.lock_file.rpartition("/")[2]
    if name:
        goes_on(trial, trial.story(path), (path / name).unlink, lambda: path)
