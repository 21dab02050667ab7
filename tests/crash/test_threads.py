"""Threads that put, read, iterate, compact and sync at once, and the checker of histories."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import threads
from faults import FaultyFileSystem
from linearizability import Held, Kind, Operation, misfit
from proof import Broken
from share import Share
from support import PATIENCE, Contents, Pause, Worker, read, segments

import kvstore
from kvstore.index import Index
from kvstore.manifest import MANIFEST
from kvstore.segment import segment_name
from kvstore.store import Store

SHARE = Share(threads)


@pytest.mark.parametrize("case", threads.CASES)
def test_threads_at_once_break_no_promise(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_operations_that_were() -> None:
    SHARE.agrees_with_the_book()


# The programme


@pytest.mark.parametrize("case", ["turns always 1"])
def test_files_change_all_the_time_while_threads_play(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        change = getattr(Store, name)

        def counted(*arguments: object) -> None:
            changes[name] += 1
            change(*arguments)

        return counted

    for name in ("_begin_segment", "_switch"):
        monkeypatch.setattr(Store, name, count(name))
    monkeypatch.setattr(threads, "PLAYS", 20)
    threads.run(case)
    assert changes["_begin_segment"] > 40, "segments are meant to be begun all the time"
    assert changes["_switch"] > 4, "segments are meant to be compacted all the time"


def test_turns_are_the_same_in_a_second_run() -> None:
    def histories() -> list[list[tuple[bytes, Operation]]]:
        scenes = itertools.islice(threads.scenes("turns always 3"), 20)
        found = []
        for scene in scenes:
            scene.prepare()
            scene.play()
            found += [witness.history for witness in scene.witnesses]
        return found

    assert histories() == histories(), "the seed is meant to say who runs when"


def test_who_plays_leaves_the_interpreter_as_it_was() -> None:
    interval, tracer = sys.getswitchinterval(), sys.gettrace()
    threads.run("free os 1")
    assert sys.getswitchinterval() == interval, "threads change as often as before"
    assert sys.gettrace() is tracer


def test_threads_that_wait_for_each_other_are_found_without_a_clock() -> None:
    turns = threads.Turns("seed")
    first, second = turns.lock(), turns.lock()

    def take(one: threads.TurnLock, other: threads.TurnLock) -> None:
        with one:
            turns.step_back()
            with other:
                pass

    works = {"ada": partial(take, first, second), "bob": partial(take, second, first)}
    with pytest.raises(threads.Deadlock) as caught:
        turns.run(works)
    assert "ada waits for bob" in str(caught.value)
    assert "bob waits for ada" in str(caught.value)


def test_a_bug_is_told_with_its_promise_and_the_case_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def move(index: Index, key: bytes, _old: int, new: int) -> None:
        index[key] = new  # whatever was put or deleted meanwhile

    monkeypatch.setattr(Index, "move", move)
    with pytest.raises(Broken) as caught:
        threads.run("turns os 1")
    assert caught.value.promise in {threads.NEWEST, threads.STILL, threads.WHOLE}
    assert caught.value.case == "threads turns os 1"
    assert "seed 1, play " in caught.value.state


# Nothing waits for a compaction


class Beside:
    """A store that can be compacted, what it holds, and all that is done to it meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filesystem = FaultyFileSystem()
        self.db = kvstore.open(path, segment_bytes=300, filesystem=self.filesystem)
        self.expected: Contents = {}
        for number in range(60):
            self.put(b"%d" % (number % 30), b"%d" % number * 10)
        self.put(b"gone", b"")
        self.delete(b"gone")  # so the active segment, too, is sealed and merged
        self.first = segment_name(1)
        self.merged = segment_name(self.db.stats().segments + 2)

    def put(self, key: bytes, value: bytes) -> None:
        self.db[key] = self.expected[key] = value

    def delete(self, key: bytes) -> None:
        del self.db[key], self.expected[key]

    def batch(self) -> None:
        with self.db.batch() as batch:
            batch[b"2"] = batch[b"new"] = b"batch"
            del batch[b"5"]
        self.expected |= {b"2": b"batch", b"new": b"batch"}
        del self.expected[b"5"]

    def get(self) -> None:
        assert {key: self.db[key] for key in self.expected} == self.expected
        assert b"gone" not in self.db

    def iterate(self) -> None:
        assert dict(self.db.items()) == self.expected
        assert set(self.db) == self.expected.keys()
        assert len(self.db) == len(self.expected)

    def rotate(self) -> None:
        before = len(segments(self.path))
        self.put(b"large", b"x" * 300)
        self.put(b"next", b"1")
        assert len(segments(self.path)) > before, "a put found its segment full"

    def works(self) -> dict[str, Callable[[], None]]:
        """Return all that has to go on, each under its name."""
        return {
            "a put": partial(self.put, b"1", b"meanwhile"),
            "a delete": partial(self.delete, b"4"),
            "a batch": self.batch,
            "a get": self.get,
            "an iteration": self.iterate,
            "a sync": self.db.sync,
        }

    def go_on(self, works: dict[str, Callable[[], None]], operation: str) -> None:
        """Do everything while a compaction stands before one of its calls."""
        (stop,) = self.filesystem.faults
        assert isinstance(stop, Pause)
        compaction = Worker(self.db.compact)
        assert stop.reached.wait(PATIENCE), f"no compaction came to its {operation}"
        for what, work in works.items():
            Worker(work).done()
            assert compaction.is_alive(), (
                f"{what} waited for a compaction that stood before its {operation}"
            )
        stop.go_on.set()
        compaction.done()

    def end(self) -> None:
        """Make sure that all of it was done, and that it lasts."""
        self.iterate()
        assert self.db.verify().ok
        self.db.close()
        assert read(self.path) == self.expected


@pytest.mark.parametrize(
    ("operation", "which"), [("read", 1), ("create", 1), ("write", 3), ("sync", 2)]
)
def test_nothing_waits_for_a_compaction_that_merges(
    tmp_path: Path, operation: str, which: int
) -> None:
    store = Beside(tmp_path / "store")
    name = store.first if operation == "read" else store.merged
    store.filesystem.faults.append(Pause(operation, None, name, which))
    store.go_on(store.works() | {"a new segment": store.rotate}, operation)
    store.end()


def test_only_a_new_segment_waits_for_a_compaction_that_changes_the_manifest(
    tmp_path: Path,
) -> None:
    store = Beside(tmp_path / "store")
    # The first change begins a segment for new records, the second one is the compaction's.
    store.filesystem.faults.append(Pause("rename", None, MANIFEST, 2))
    store.go_on(store.works(), "rename")
    store.end()


# The checker

FITTING = {
    "one after the other": [
        Operation("put", b"1", 1, 2),
        Operation("get", b"1", 3, 4),
        Operation("delete", True, 5, 6),
        Operation("get", None, 7, 8),
        Operation("delete", False, 9, 10),
    ],
    "a get beside a put sees either": [
        Operation("put", b"1", 1, 2),
        Operation("put", b"2", 3, 8),
        Operation("get", b"1", 4, 5),
        Operation("get", b"2", 6, 7),
    ],
    "of two puts at once either is the last": [
        Operation("put", b"1", 1, 4),
        Operation("put", b"2", 2, 3),
        Operation("get", b"1", 5, 6),
    ],
    "a get that began before a put ends after the next": [
        Operation("get", b"1", 1, 8),
        Operation("put", b"1", 2, 3),
        Operation("put", b"2", 4, 5),
        Operation("get", b"2", 6, 7),
    ],
    "a put that never returned was done": [
        Operation("put", b"1", 1),
        Operation("get", b"1", 2, 3),
    ],
    "a put that never returned was done late": [
        Operation("put", b"1", 1),
        Operation("get", None, 2, 3),
        Operation("get", b"1", 4, 5),
    ],
    "a put that never returned was not done": [
        Operation("put", b"1", 1),
        Operation("get", None, 2, 3),
    ],
    "of two deletes at once one finds the key": [
        Operation("put", b"1", 1, 2),
        Operation("delete", True, 3, 6),
        Operation("delete", False, 4, 5),
    ],
    "a batch deletes what is not there": [
        Operation("put", None, 1, 2),
        Operation("in", False, 3, 4),
    ],
}
MISFITS = {
    "a value that was never put": [
        Operation("put", b"1", 1, 2),
        Operation("get", b"2", 3, 4),
    ],
    "a value from before a put that has returned": [
        Operation("put", b"1", 1, 2),
        Operation("delete", True, 3, 4),
        Operation("put", b"2", 5, 6),
        Operation("get", b"1", 7, 8),
    ],
    "an old value after the new one was seen": [
        Operation("put", b"1", 1, 2),
        Operation("put", b"2", 3, 8),
        Operation("get", b"2", 4, 5),
        Operation("get", b"1", 6, 7),
    ],
    "a put that got lost": [
        Operation("put", b"1", 1, 2),
        Operation("put", b"2", 3, 4),
        Operation("get", b"1", 5, 6),
    ],
    "a value before it was put": [
        Operation("get", b"1", 1, 2),
        Operation("put", b"1", 3, 4),
    ],
    "a key that is back": [
        Operation("put", b"1", 1, 2),
        Operation("delete", True, 3, 4),
        Operation("in", True, 5, 6),
    ],
    "a delete that did nothing": [
        Operation("put", b"1", 1, 2),
        Operation("delete", True, 3, 4),
        Operation("get", b"1", 5, 6),
    ],
    "two deletes that both find the key": [
        Operation("put", b"1", 1, 2),
        Operation("delete", True, 3, 6),
        Operation("delete", True, 4, 5),
    ],
    "a delete that misses a key that is there": [
        Operation("put", b"1", 1, 2),
        Operation("delete", False, 3, 4),
    ],
    "a put that never returned, seen and then not": [
        Operation("put", b"1", 1),
        Operation("get", b"1", 2, 3),
        Operation("get", None, 4, 5),
    ],
}


@pytest.mark.parametrize("what", FITTING)
def test_a_history_that_can_be_explained_is_accepted(what: str) -> None:
    for history in itertools.permutations(FITTING[what]):
        assert misfit(history) is None, f"{what}: in whatever order it is told"


@pytest.mark.parametrize("what", MISFITS)
def test_a_history_that_can_not_be_explained_is_refused(what: str) -> None:
    for history in itertools.permutations(MISFITS[what]):
        assert misfit(history) is not None, f"{what}: in whatever order it is told"


def test_a_misfit_says_what_the_key_held_and_what_came_then() -> None:
    found = misfit(MISFITS["a put that got lost"])
    assert str(found) == (
        "it holds b'2', and none of these can come next: get b'1' (5 to 6)"
    )


KINDS: tuple[Kind, ...] = ("put", "delete", "get", "in")


def some_history(chance: random.Random) -> list[Operation]:
    """Return up to five operations that overlap, with answers that may be right."""
    count = chance.randint(1, 5)
    stamps = chance.sample(range(2 * count), 2 * count)
    history = []
    for first, second in zip(stamps[::2], stamps[1::2], strict=True):
        kind = chance.choice(KINDS)
        has_value = kind in ("put", "get")
        value = chance.choice((b"1", b"2", None) if has_value else (True, False))
        invoked, returned = sorted((first, second))
        ends = chance.random() < 0.8
        history.append(Operation(kind, value, invoked, returned if ends else math.inf))
    return history


def can_be_explained(history: list[Operation]) -> bool:
    """Say the same as the checker, by trying every order of every choice."""
    returned = [each for each in history if each.returned < math.inf]
    pending = [each for each in history if each.returned == math.inf]
    return any(
        is_right(order)
        for count in range(len(pending) + 1)
        for done in itertools.combinations(pending, count)
        for order in itertools.permutations((*returned, *done))
    )


def is_right(order: tuple[Operation, ...]) -> bool:
    """Say whether operations, one after the other, keep to their stamps and answers."""
    held: Held = None
    for operation in order:
        if not operation.fits(held):
            return False
        held = operation.leaves(held)
    return all(
        later.returned > earlier.invoked
        for earlier, later in itertools.combinations(order, 2)
    )


def test_the_checker_agrees_with_one_that_tries_everything() -> None:
    seed = 1990
    chance = random.Random(seed)
    verdicts: Counter[bool] = Counter()
    for number in range(1000):
        history = some_history(chance)
        fits = misfit(history) is None
        assert fits == can_be_explained(history), f"seed {seed}, {number}: {history}"
        verdicts[fits] += 1
    assert min(verdicts[True], verdicts[False]) > 200, "both kinds are meant to come"
