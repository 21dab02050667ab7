"""Threads that put, read, iterate, compact and sync at once, and the checker of histories."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import kvstore
from kvstore.index import Index
from kvstore.simdisk import Operation as Call
from kvstore.simdisk import SimulatedDisk
from tests.disks import PATIENCE, FaultyFileSystem, Pause
from tests.helpers import Worker, elsewhere
from tests.proof.engines import ENGINES
from tests.proof.history import Contents
from tests.proof.programs import threads
from tests.proof.programs.linearizability import Held, Kind, Operation, misfit
from tests.proof.promises import Broken
from tests.proof.share import Share
from tests.proof.subject import PATH, Subject

SHARE = Share(threads)
LOG = ENGINES["log"]
per_engine = pytest.mark.parametrize("subject", ENGINES.values(), ids=ENGINES)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_operations_that_were() -> None:
    SHARE.agrees_with_the_book()


# --- the programme -----------------------------------------------------------------------


class Watching(threads.Turns):
    """Turns that remember every function that was called."""

    def __init__(self, seed: str, meets: Iterable[CodeType]) -> None:
        super().__init__(seed, frozenset(meets))
        self.called: set[CodeType] = set()

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.called.add(frame.f_code)
        return super()._enter(frame, event, argument)


@pytest.fixture(scope="module")
def watched() -> dict[str, Watching]:
    """Let threads play on every engine, and remember where they were."""
    turns = {name: Watching("7", subject.meets) for name, subject in ENGINES.items()}
    for name, subject in ENGINES.items():
        for case in ("turns always 7", "turns os 7"):
            threads.check(threads.scenes(subject, case, turns[name]))
    return turns


@per_engine
def test_threads_take_every_lock_that_there_is(
    subject: Subject, watched: dict[str, Watching]
) -> None:
    names = [name for _, name in subject.locks(subject.open(SimulatedDisk()))]
    taken = watched[subject.name].taken
    assert min(taken[name] for name in names) >= 100, f"hardly ever: {taken}"


@per_engine
def test_threads_meet_everywhere_where_they_are_said_to_meet(
    subject: Subject, watched: dict[str, Watching]
) -> None:
    passed = {code for code, _ in watched[subject.name].visits}
    missed = sorted(code.co_qualname for code in subject.meets - passed)
    assert not missed, "no thread came here, or it is the code of something else now"


ALONE = {  # the modules with which a thread is alone
    "log": "damage engine errors filesystem manifest opening posix powercut record recovery "
    "reports segment simdisk watermark"
}


@per_engine
def test_threads_meet_nowhere_else(
    subject: Subject, watched: dict[str, Watching]
) -> None:
    meeting = {code.co_filename for code in subject.meets}
    called = {Path(code.co_filename) for code in watched[subject.name].called}
    others = {file.stem for file in called if "kvstore" in file.parts} - {
        Path(file).stem for file in meeting
    }
    assert others <= set(ALONE[subject.name].split()), (
        "do threads meet in these modules?"
    )


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


def test_every_plot_is_played_and_every_way_to_change_is_used() -> None:
    plots, kinds = set(), set()
    for scene in itertools.islice(threads.scenes(LOG, "turns os 2"), 40):
        threads.check([scene])
        plots.add(scene.plot)
        kinds |= {each.kind for w in scene.witnesses for _, each in w.history}
    assert plots == set(threads.PLOTS)
    assert kinds == set(KINDS)


def test_who_plays_leaves_the_interpreter_as_it_was() -> None:
    interval, tracer = sys.getswitchinterval(), sys.gettrace()
    threads.run(LOG, "free os 1")
    assert sys.getswitchinterval() == interval, "threads change as often as before"
    assert sys.gettrace() is tracer


def test_threads_that_wait_for_each_other_are_found_without_a_clock() -> None:
    turns = threads.Turns("seed", ())
    first, second = turns.lock("first"), turns.lock("second")

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


def test_a_bug_is_told_with_its_promise_and_the_case_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def move(index: Index, moves: Iterable[tuple[bytes, int, int]]) -> None:
        for key, _, new in moves:
            index.top[key] = new  # whatever was put or deleted meanwhile

    monkeypatch.setattr(Index, "move", move)
    with pytest.raises(Broken) as caught:
        threads.run(LOG, "turns os 1")
    assert caught.value.breach in {threads.NEWEST, threads.STILL, threads.WHOLE}
    assert caught.value.case == "threads log turns os 1"
    assert "seed 1, play " in caught.value.state


# --- nothing waits for a compaction ------------------------------------------------------


class Beside:
    """A store that can be rearranged, what it holds, and what is done to it meanwhile."""

    def __init__(self, subject: Subject, path: Path) -> None:
        self.subject, self.path = subject, str(path)
        self.disk = FaultyFileSystem()
        self.db = subject.open(self.disk, small=300, path=self.path)
        self.expected: Contents = {}
        for number in range(60):
            self.put(b"%d" % (number % 30), b"%d" % number * 10)
        self.put(b"gone", b"")
        self.delete(b"gone")  # so what was written last is rearranged too
        self.disk.forget()

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

    def fill_a_file(self) -> None:
        self.put(b"large", b"x" * 300)
        self.put(b"next", b"1")

    def works(self) -> dict[str, Callable[[], None]]:
        """Return all that goes on while the files change, each under its name."""
        return {
            "a put": partial(self.put, b"1", b"meanwhile"),
            "a delete": partial(self.delete, b"4"),
            "a batch": self.batch,
            "a get": self.get,
            "an iteration": self.iterate,
        }

    def calls(self) -> list[Call]:
        """Rearrange the files, and return the calls that this takes."""
        self.subject.rearrange(self.db)
        return list(self.disk.operations)

    def files(self) -> list[Path]:
        """Return the files of the store."""
        return list(Path(self.path).iterdir())

    def meanwhile(self, number: int, works: dict[str, Callable[[], None]]) -> None:
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
    calls = alone.calls()
    image = {f"{PATH}/{file.name}": file.read_bytes() for file in alone.files()}
    records = {Path(path).name for path in subject.layout(image).records}
    begin = next(n for n, call in enumerate(calls) if call.name == "read")
    copied = [n for n, call in enumerate(calls) if n > begin and call.path in records]
    assert len(copied) > 5, "the copying is meant to take some calls"
    end = max(copied)
    for number in (*range(begin, end, 11), *range(end - 3, len(calls))):
        store = Beside(subject, tmp_path / f"store{number}")
        more = {"a sync": store.db.sync, "a full file": store.fill_a_file}
        store.meanwhile(number, store.works() | (more if number <= end else {}))
        store.end()


class Overtaken:
    """Has some work done in another thread before one line of the engine in this one."""

    def __init__(
        self, number: int, subject: Subject, work: Callable[[], object]
    ) -> None:
        self.left, self.meets, self.work = number, subject.meets, work

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Count the lines."""
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                elsewhere(self.work)
        return self.trace if frame.f_code in self.meets else None


def get_beside(store: Beside) -> bytes:
    """Get a value in a store that is opened for reading."""
    with store.subject.open(store.disk, "r", path=store.path) as db:
        return db[b"1"]


@per_engine
@pytest.mark.parametrize(
    "look", [lambda store: store.db.get(b"1"), get_beside], ids=["get", "open"]
)
def test_who_is_overtaken_by_a_compaction_looks_again(
    subject: Subject, tmp_path: Path, look: Callable[[Beside], bytes]
) -> None:
    for number in range(1, 21):
        store = Beside(subject, tmp_path / f"store{number}")
        for dead in range(0, 30, 4):
            store.delete(b"%d" % dead)
        store.db.close()
        store.db = db = subject.open(store.disk, path=store.path)
        overtaken = Overtaken(number, subject, partial(subject.rearrange, db))
        before = sys.gettrace()
        sys.settrace(overtaken.trace)
        try:
            found: object = look(store)
        except (LookupError, AttributeError, kvstore.KVStoreError) as error:
            found = error
        finally:
            sys.settrace(before)
        assert found == store.expected[b"1"], f"overtaken before line {number}"
        store.end()
        if overtaken.left > 0:
            break
    assert number > 5, "there are meant to be some lines"


# --- the checker -------------------------------------------------------------------------

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
    "a pop returns what it deletes": [
        Operation("put", b"1", 1, 2),
        Operation("pop", b"1", 3, 6),
        Operation("pop", None, 4, 5),
    ],
    "of two defaults at once one is put": [
        Operation("setdefault", b"2", 1, 4, b"1"),
        Operation("setdefault", b"2", 2, 3, b"2"),
        Operation("get", b"2", 5, 6),
    ],
    "a default that never returned was put": [
        Operation("setdefault", b"1", 1, default=b"1"),
        Operation("setdefault", b"1", 2, 3, b"2"),
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
    "two pops of one value": [
        Operation("put", b"1", 1, 2),
        Operation("pop", b"1", 3, 6),
        Operation("pop", b"1", 4, 5),
    ],
    "a pop that deleted another value than it returned": [
        Operation("put", b"1", 1, 2),
        Operation("put", b"2", 3, 6),
        Operation("pop", b"1", 4, 5),
        Operation("get", None, 7, 8),
    ],
    "two winners of a default": [
        Operation("setdefault", b"1", 1, 4, b"1"),
        Operation("setdefault", b"2", 2, 3, b"2"),
    ],
    "a default over a value": [
        Operation("put", b"1", 1, 2),
        Operation("setdefault", b"2", 3, 4, b"2"),
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


KINDS: tuple[Kind, ...] = ("put", "delete", "pop", "setdefault", "get", "in")


def some_history(chance: random.Random) -> list[Operation]:
    """Return up to five operations that overlap, with answers that may be right."""
    count = chance.randint(1, 5)
    stamps = chance.sample(range(2 * count), 2 * count)
    history = []
    for first, second in zip(stamps[::2], stamps[1::2], strict=True):
        kind = chance.choice(KINDS)
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
