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
from types import CodeType, FrameType
from typing import Any, get_args

import pytest

import kvstore
from kvstore.simdisk import Operation as Call
from tests.disks import PATIENCE, FaultyFileSystem, Pause, on_a_disk
from tests.helpers import Worker, elsewhere
from tests.proof.engines import ENGINES
from tests.proof.history import Changes, Contents, after
from tests.proof.programs import threads
from tests.proof.programs.linearizability import Held, Kind, Operation, misfit
from tests.proof.share import Share
from tests.proof.subject import Subject
from tests.proof.workloads import make

SHARE = Share(threads)
Work = Callable[[], object]
LOG = ENGINES["log"]
per_engine = pytest.mark.parametrize("subject", ENGINES.values(), ids=ENGINES)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_operations_that_were() -> None:
    SHARE.agrees_with_the_book()


# --- the programme -----------------------------------------------------------------------


@per_engine
def test_threads_meet_everywhere_where_they_are_said_to_meet(subject: Subject) -> None:
    turns = threads.Turns("7", subject.meets)
    for case in ("turns always 7", "turns os 7"):
        threads.check(threads.scenes(subject, case, turns))
    missed = subject.meets - {code for code, _ in turns.visits}
    names = sorted(code.co_qualname for code in missed)
    assert not names, "no thread came here, or it is the code of something else now"


def test_turns_are_the_same_in_a_second_run() -> None:
    def histories() -> list[list[tuple[bytes, Operation]]]:
        scenes = itertools.islice(threads.scenes(LOG, "turns always 3"), 20)
        found = []
        for scene in scenes:
            scene.prepare()
            scene.play()
            found += [witness.history for witness in scene.witnesses]
        return found

    assert histories() == histories(), "the seed is meant to say who runs when"


def test_threads_that_wait_for_each_other_are_found_without_a_clock() -> None:
    turns = threads.Turns("seed", ())
    first, second = turns.lock(), turns.lock()

    def take(one: threads.TurnLock, other: threads.TurnLock) -> None:
        with one, one:
            turns.step_back()
            with other:
                pass

    works = {"ada": partial(take, first, second), "bob": partial(take, second, first)}
    with pytest.raises(threads.Deadlock) as caught:
        turns.run(works)
    assert "ada waits for bob" in str(caught.value)
    assert "bob waits for ada" in str(caught.value)


# --- nothing waits for a compaction ------------------------------------------------------


class Beside:
    """A store that can be rearranged, what it holds, and what is done to it meanwhile."""

    def __init__(self, subject: Subject, path: Path) -> None:
        self.subject, self.path = subject, str(path)
        self.disk = FaultyFileSystem()
        self.db = subject.open(self.disk, small=300, path=self.path)
        self.expected: Contents = {}
        for number in range(60):
            self.change({b"%d" % (number % 30): b"%d" % number * 10})
        self.change({b"gone": b""})
        self.change({b"gone": None})  # so what was written last is rearranged too
        self.disk.forget()

    def change(self, changes: Changes) -> None:
        make(self.db, changes)
        self.expected = after(self.expected, changes)

    def get(self) -> None:
        assert {key: self.db[key] for key in self.expected} == self.expected
        assert b"gone" not in self.db

    def iterate(self) -> None:
        assert dict(self.db.items()) == self.expected
        assert set(self.db) == self.expected.keys()
        assert len(self.db) == len(self.expected)

    def works(self) -> dict[str, Work]:
        batch = {b"2": b"batch", b"new": b"batch", b"5": None}
        return {
            "a put": partial(self.change, {b"1": b"meanwhile"}),
            "a delete": partial(self.change, {b"4": None}),
            "a batch": partial(self.change, batch),
            "a get": self.get,
            "an iteration": self.iterate,
        }

    def more_works(self) -> dict[str, Work]:
        fill = partial(self.change, {b"large": b"x" * 300})
        return {
            "a sync": self.db.sync,
            "a full file": fill,
            "a put in the next": partial(self.change, {b"next": b"1"}),
        }

    def meanwhile(self, number: int, works: dict[str, Work]) -> None:
        """Do some work while a rearrangement stands before the call of this number."""
        stop, numbers = Pause(), itertools.count()

        def rule(_: Call) -> None:
            if next(numbers) == number:
                stop()

        self.disk.rules.append(rule)
        rearranging = Worker(partial(self.subject.rearrange, self.db))
        assert stop.reached.wait(PATIENCE), f"no {number} calls were made"
        for what, work in works.items():
            Worker(work).done()
            assert rearranging.is_alive(), f"{what} waited for call {number}"
        stop.go_on.set()
        rearranging.done()

    def end(self) -> None:
        """Make sure that all of it was done, and that it lasts."""
        self.iterate()
        assert not self.subject.damage(self.db)
        self.db.close()
        with self.subject.open(self.disk, "r", path=self.path) as db:
            assert dict(db) == self.expected


@per_engine
def test_nothing_waits_for_a_compaction_that_copies_and_no_write_for_one_that_ends(
    subject: Subject, tmp_path: Path
) -> None:
    alone = Beside(subject, tmp_path / "alone")
    subject.rearrange(alone.db)
    calls = alone.disk.operations.copy()
    image = on_a_disk(Path(alone.path)).image()
    records = {Path(path).name for path in subject.layout(image).records}
    begin = next(n for n, call in enumerate(calls) if call.name == "read")
    copied = [n for n, call in enumerate(calls) if n > begin and call.path in records]
    assert len(copied) > 5, "the copying is meant to take some calls"
    end = max(copied)
    for number in (*range(begin, end, 11), *range(end - 3, len(calls))):
        store = Beside(subject, tmp_path / f"store{number}")
        more = store.more_works() if number <= end else {}
        store.meanwhile(number, store.works() | more)
        store.end()


class Overtaken:
    """Has some work done in another thread before one line of the engine in this one."""

    def __init__(self, number: int, meets: frozenset[CodeType], work: Work) -> None:
        self.left, self.meets, self.work = number, meets, work

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                elsewhere(self.work)
        return self.trace if frame.f_code in self.meets else None

    def answer(self, look: Work) -> object:
        """Return what comes of a look that is overtaken."""
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            return look()
        except (LookupError, AttributeError, kvstore.KVStoreError) as error:
            return error
        finally:
            sys.settrace(before)


def get_beside(store: Beside) -> bytes:
    with store.subject.open(store.disk, "r", path=store.path) as db:
        return db[b"1"]


@per_engine
@pytest.mark.parametrize(
    "look", [lambda store: store.db.get(b"1"), get_beside], ids=["get", "open"]
)
def test_who_is_overtaken_by_a_compaction_looks_again(
    subject: Subject, tmp_path: Path, look: Callable[[Beside], object]
) -> None:
    for number in range(1, 21):
        store = Beside(subject, tmp_path / f"store{number}")
        for dead in range(0, 30, 4):
            store.change({b"%d" % dead: None})
        store.db.close()
        store.db = db = subject.open(store.disk, path=store.path)
        overtaken = Overtaken(number, subject.meets, partial(subject.rearrange, db))
        found = overtaken.answer(partial(look, store))
        assert found == store.expected[b"1"], f"overtaken before line {number}"
        store.end()
        if overtaken.left > 0:
            break
    assert number > 5, "there are meant to be some lines"


# --- the checker -------------------------------------------------------------------------

KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
ANSWERS = {"1": b"1", "2": b"2", "none": None, "yes": True, "no": False}


def histories(table: str) -> dict[str, list[Operation]]:
    """Return histories by name, each operation told as stamps, call, and value."""
    named = (row.split(": ") for row in table.strip().splitlines())
    return {name: [told(words) for words in row.split(", ")] for name, row in named}


def told(words: str) -> Operation:
    """Return one operation, such as ``3-4 get 1``, or ``3-`` if it never returned."""
    stamps, kind, *default, value = words.replace(" of ", " ").split()
    began, _, ended = stamps.partition("-")
    end = int(ended) if ended else math.inf
    offered = default[0].encode() if default else None
    return Operation(KINDS[kind], ANSWERS[value], int(began), end, offered)


FITTING = histories("""
one after the other: 1-2 put 1, 3-4 get 1, 5-6 delete yes, 7-8 get none, 9-10 delete no
a get beside a put sees either: 1-2 put 1, 3-8 put 2, 4-5 get 1, 6-7 get 2
of two puts at once either is the last: 1-4 put 1, 2-3 put 2, 5-6 get 1
a get around two puts sees the first: 1-8 get 1, 2-3 put 1, 4-5 put 2, 6-7 get 2
a put that never returned was done: 1- put 1, 2-3 get 1
a put that never returned was done late: 1- put 1, 2-3 get none, 4-5 get 1
a put that never returned was not done: 1- put 1, 2-3 get none
of two deletes at once one finds the key: 1-2 put 1, 3-6 delete yes, 4-5 delete no
a batch deletes what is not there: 1-2 put none, 3-4 in no
a pop returns what it deletes: 1-2 put 1, 3-6 pop 1, 4-5 pop none
of two defaults one is put: 1-4 setdefault of 1 2, 2-3 setdefault of 2 2, 5-6 get 2
a default that never returned was put: 1- setdefault of 1 1, 2-3 setdefault of 2 1
""")
MISFITS = histories("""
a value that was never put: 1-2 put 1, 3-4 get 2
a value from before a put that returned: 1-2 put 1, 3-4 delete yes, 5-6 put 2, 7-8 get 1
an old value after the new one was seen: 1-2 put 1, 3-8 put 2, 4-5 get 2, 6-7 get 1
a put that got lost: 1-2 put 1, 3-4 put 2, 5-6 get 1
a value before it was put: 1-2 get 1, 3-4 put 1
a key that is back: 1-2 put 1, 3-4 delete yes, 5-6 in yes
a delete that did nothing: 1-2 put 1, 3-4 delete yes, 5-6 get 1
two deletes that both find the key: 1-2 put 1, 3-6 delete yes, 4-5 delete yes
a delete that misses a key that is there: 1-2 put 1, 3-4 delete no
a put that never returned, seen, then not: 1- put 1, 2-3 get 1, 4-5 get none
two pops of one value: 1-2 put 1, 3-6 pop 1, 4-5 pop 1
a pop of another value than it returned: 1-2 put 1, 3-6 put 2, 4-5 pop 1, 7-8 get none
two winners of a default: 1-4 setdefault of 1 1, 2-3 setdefault of 2 2
a default over a value: 1-2 put 1, 3-4 setdefault of 2 2
""")


@pytest.mark.parametrize("what", [*FITTING, *MISFITS])
def test_a_history_is_accepted_if_it_can_be_explained(what: str) -> None:
    for history in itertools.permutations((FITTING | MISFITS)[what]):
        fits = misfit(history) is None
        assert fits == (what in FITTING), f"{what}: in whatever order it is told"


def test_a_misfit_says_what_the_key_held_and_what_came_then() -> None:
    found = misfit(MISFITS["a put that got lost"])
    assert str(found) == (
        "it holds b'2', and none of these can come next: get b'1' (5 to 6)"
    )


def some_history(chance: random.Random) -> list[Operation]:
    """Return up to five operations that overlap, with answers that may be right."""
    count = chance.randint(1, 5)
    stamps = chance.sample(range(2 * count), 2 * count)
    history = []
    for first, second in zip(stamps[::2], stamps[1::2], strict=True):
        kind = chance.choice(get_args(Kind))
        has_value = kind not in ("delete", "in")
        value = chance.choice((b"1", b"2", None) if has_value else (True, False))
        default = chance.choice((b"1", b"2"))
        invoked, returned = sorted((first, second))
        ends = chance.random() < 0.8
        end = returned if ends else math.inf
        history.append(Operation(kind, value, invoked, end, default))
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
