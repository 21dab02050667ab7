"""A store and a dict are told the same, and hold the same, whatever they are told.

Hypothesis draws the story: every operation of the store in any order, and between them
processes that are killed, power cuts, failed fsyncs, full disks, and calls that come from
inside another one. The history beside the store remembers every state since the last one that
is known to be on the disk. After a crash the store has to hold one of those, and goes on from
there.

A case is the seed of some stories.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from textwrap import shorten
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import kvstore
from kvstore.powercut import Image, Picks, PowerCut
from kvstore.simdisk import Operation, SimulatedDisk, no_fault
from tests.proof.faults import CHANGES_OF_A_DISK, FailingSync, FullDisk, failing
from tests.proof.history import Contents, History, after, in_words
from tests.proof.programme import Tally, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.subject import HOUR, PATH, Engine, Flag, Subject, Sync
from tests.proof.surviving import NOT_KEPT, READER, UNTOLD, read, strays

NAME = "model"
NEEDS = frozenset(Promise)
SHARE = 16  # cases in every test run
OUTCOMES = 5  # how many are looked at of each power cut

DIFFER = Breach(Promise.NEWEST, "a store and a dict differ")
TWO_WRITERS = Breach(Promise.ONE_WRITER, "a second writer is not kept out")
FILES = Breach(Promise.ONE_MOMENT, "the files do not hold what the store holds")
MOVING = Breach(Promise.STILL, "an iteration or a reader sees what came later")
NOT_WHOLE = Breach(Promise.WHOLE, "a batch is not what a dict would become by it")
CRASHED = Breach(Promise.ONLY_THE_END, "a store does not go on after a crash")
UNSAFE = Breach(Promise.SAFE, "a store can't be closed, synced and opened again")
FROM_INSIDE = Breach(Promise.NO_GUESSES, "a call from inside: not done, nor refused")
GUESSES = Breach(Promise.NO_GUESSES, "a store does not say what is so")

# Hypothesis mixes in constants that it finds in the modules that happen to be loaded, none
# of them below 100. With small numbers and lists they don't change the story of a seed.
SEEDS = st.integers(0, 99)
KEYS = st.sampled_from([b"", b"\0", *(b"%d" % number for number in range(8))])
# Half of the values are equally long. So a record that a crash took fits the place where it
# lay when the next ones are written, and could come back unnoticed.
VALUES = st.sampled_from(
    [bytes([letter]) * n for n in (1, 1, 1, 1, 0, 30, 700) for letter in b"abcdefghij"]
)
UPDATES = st.dictionaries(KEYS, VALUES, max_size=4)
CHANGES = st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=5)
SYNCS = st.sampled_from(["os", "always", HOUR])
SIZES = st.sampled_from([5000, 5000, 200, 60, 1])
SHARES = st.sampled_from([0.0, 0.3, 0.5, 0.7])
THEN = st.sampled_from(["go on", "compact", "reopen"])
ABSENT, INSIDE = b"absent", (b"inside", b"put")

Steps = list[tuple[bytes, bytes | None]]  # None: the key is deleted, if it is there
Calls = dict[str, Callable[[], object]]

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    max_examples=16,
    stateful_step_count=40,
    report_multiple_bugs=False,
    phases={*settings().phases} - {Phase.explain},
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def keeps(breach: Breach) -> Iterator[None]:
    """Take whatever goes wrong for this, unless something else is named."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        raise Broken(breach, f"{type(error).__name__}: {error}") from error


def equal(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, expected was {expected!r}")


def raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what} raised no {error.__name__}")


def unchanged(before: Image, disk: SimulatedDisk, what: str) -> None:
    found = disk.image()
    paths = before.keys() | found.keys()
    differ = sorted(p for p in paths if before.get(p) != found.get(p))
    equal(differ, [], f"the files that {what} changed")


def record_bytes(db: Engine) -> int:
    stats = db.stats()
    return stats.live_bytes + stats.dead_bytes


def outcome(cut: PowerCut, picks: Picks) -> str:
    return f"a power cut ({shorten(cut.describe(picks), 300)})"


def bytes_last(cut: PowerCut) -> Picks:
    """Return the outcome where all has arrived but the bytes after what files held."""
    return tuple(
        0 if doubt.ways[0] == "never written" else len(doubt.ways) - 1
        for doubt in cut.doubts
    )


def readable(db: Engine) -> dict[bytes, bytes | None]:
    """Return what a store holds, None for a value that it says is damaged."""
    found: dict[bytes, bytes | None] = dict.fromkeys(db)
    for key in found:
        with suppress(kvstore.CorruptionError):
            found[key] = db[key]
    return found


def agrees(found: dict[bytes, bytes | None], state: Contents) -> bool:
    """Say whether what can be read is what a state says."""
    return found.keys() == state.keys() and all(
        value in (None, state[key]) for key, value in found.items()
    )


def fill(batch: kvstore.Batch, before: Contents, steps: Steps) -> None:
    """Put and delete in a batch; to delete what is not there is a `KeyError`."""
    for number, (key, value) in enumerate(steps):
        if value is not None:
            batch[key] = value
        elif key in after(before, dict(steps[:number])):
            del batch[key]
        else:
            raises(KeyError, partial(batch.__delitem__, key), f"del of {key!r}")


def together(db: Engine, steps: Steps) -> None:
    with db.batch() as batch:
        deletes = any(value is None for _, value in steps)
        fill(batch, dict(db) if deletes else {}, steps)


def writes(subject: Subject, db: Engine, there: Contents) -> Calls:
    """Return every way to change a store that holds this, for one that has to refuse."""
    calls: Calls = {
        "a put": lambda: db.__setitem__(b"1", b""),
        "pop": lambda: db.pop(b"1", None),
        "setdefault": lambda: db.setdefault(ABSENT, b""),
        "update": lambda: db.update({b"1": b""}),
        "a batch": lambda: together(db, [(ABSENT, b"")]),
        "a compaction": lambda: subject.rearrange(db),
    }
    if there:
        calls |= {"popitem": db.popitem, "clear": db.clear}
    return calls | {f"del db[{key!r}]": partial(db.__delitem__, key) for key in there}


class StoreAndDict(RuleBasedStateMachine):
    """What can be done to a store, done to a dict as well."""

    subject: ClassVar[Subject]
    tally: ClassVar[Tally]
    disk: SimulatedDisk
    db: Engine
    sync_mode: Sync
    small: int
    steps: int = 0

    @initialize(sector=st.sampled_from([1, 512, 4096]), sync=SYNCS, size=SIZES)
    @keeps(DIFFER)
    def begin(self, sector: int, sync: Sync, size: int) -> None:
        self.sync_mode, self.small = sync, size
        self.disks = itertools.count(1)
        self.disk = SimulatedDisk(sector_bytes=sector)
        self.history = History()
        self.dead: list[Engine] = []  # of processes that ended; nobody lets go there
        self.open()

    def open(self, flag: Flag = "c") -> None:
        self.db = self.subject.open(self.disk, flag, self.sync_mode, self.small)

    def reader(self, disk: SimulatedDisk | None = None, path: str = PATH) -> Engine:
        return self.subject.open(disk or self.disk, "r", path=path)

    def close(self) -> None:
        """Close the store. From then on all that it holds is safe."""
        self.db.close()
        self.history.is_done()
        self.history.is_safe()

    def is_done(self) -> None:
        self.history.is_done()
        if self.sync_mode == "always":
            self.history.is_safe()

    def becomes(self, *steps: tuple[bytes, bytes | None]) -> None:
        """Change the dict as the store was changed."""
        self.history.plan(dict(steps))
        self.is_done()

    @rule(key=KEYS, value=VALUES)
    @keeps(DIFFER)
    def put(self, key: bytes, value: bytes) -> None:
        self.db[key] = value
        self.becomes((key, value))

    @rule(key=KEYS)
    @keeps(DIFFER)
    def delete(self, key: bytes) -> None:
        if key in self.history.now:
            del self.db[key]
            self.becomes((key, None))
        else:
            raises(KeyError, partial(self.db.__delitem__, key), f"del db[{key!r}]")

    @rule(key=KEYS, default=st.booleans())
    @keeps(DIFFER)
    def pop(self, key: bytes, default: bool) -> None:
        """Remove a key and get its value, or the default, or an error."""
        if default or key in self.history.now:
            found = self.db.pop(key, None) if default else self.db.pop(key)
            equal(found, self.history.now.get(key), f"pop({key!r})")
            self.becomes((key, None))
        else:
            raises(KeyError, partial(self.db.pop, key), f"pop({key!r})")

    @rule()
    @keeps(DIFFER)
    def popitem(self) -> None:
        if self.history.now:
            key, value = self.db.popitem()
            equal(self.history.now.get(key), value, f"popitem, for {key!r},")
            self.becomes((key, None))
        else:
            raises(KeyError, self.db.popitem, "popitem of an empty store")

    @rule(key=KEYS, value=VALUES)
    @keeps(DIFFER)
    def setdefault(self, key: bytes, value: bytes) -> None:
        held = self.history.now.get(key, value)
        equal(self.db.setdefault(key, value), held, f"setdefault({key!r})")
        self.becomes((key, held))

    @rule(update=UPDATES)
    @keeps(DIFFER)
    def update(self, update: Contents) -> None:
        self.db.update(update)
        for change in update.items():
            self.becomes(change)

    @rule()
    @keeps(DIFFER)
    def clear(self) -> None:
        keys = list(self.db)
        self.db.clear()
        for key in keys:
            self.becomes((key, None))

    @rule(steps=CHANGES, end=st.sampled_from(["whole", "an error", "a wrong type"]))
    @keeps(NOT_WHOLE)
    def batch(self, steps: Steps, end: str) -> None:
        """Change several keys, wholly or not at all."""
        before, text = self.history.now, "text"
        with suppress(ZeroDivisionError, TypeError), self.db.batch() as batch:
            fill(batch, before, steps)
            changed = {k for k, value in steps if value is not None or k in before}
            equal(len(batch), len(changed), "the length of the batch")
            equal(dict(self.db), before, "the store, before the batch ends,")
            if end == "an error":
                raise ZeroDivisionError
            if end == "a wrong type":
                batch[b"1"] = text  # type: ignore[assignment]
        raises(kvstore.ClosedError, lambda: len(batch), "a batch after its block")
        if end == "whole":
            self.becomes(*steps)

    @rule(key=st.sampled_from([ABSENT, b"also " + ABSENT]), keys=st.integers(0, 2))
    @keeps(NOT_WHOLE)
    def batch_in_vain(self, key: bytes, keys: int) -> None:
        """Put and delete what is not there, in one batch: nothing has to be written."""
        before, several = record_bytes(self.db), [key + b"%d" % n for n in range(keys)]
        together(self.db, [(k, value) for k in several for value in (b"", None)])
        equal(record_bytes(self.db), before, "the records after a batch in vain")

    def change(self, steps: Steps) -> None:
        for key, value in steps:
            if value is None:
                self.db.pop(key, None)
            else:
                self.db[key] = value
            self.becomes((key, value))

    @rule(steps=CHANGES, then=THEN)
    @keeps(MOVING)
    def iterate(self, steps: Steps, then: str) -> None:
        """Write in the middle of an iteration, which does not see it."""
        expected = list(self.db.items())
        items, keys = iter(self.db.items()), iter(self.db)
        values = iter(self.db.values())
        begun = list(itertools.islice(items, 1))
        self.change(steps)
        self.call(then)
        if then != "reopen":
            self.same()
        equal(begun + list(items), expected, "the items")
        equal(list(keys), [key for key, _ in expected], "the keys")
        equal(list(values), [value for _, value in expected], "the values")

    @rule(steps=CHANGES, then=THEN)
    @keeps(MOVING)
    def read_beside(self, steps: Steps, then: str) -> None:
        """Open the store beside its writer, for reading only."""
        before = self.history.now
        with self.reader() as reader:
            equal(dict(reader), before, "the reader")
            self.change(steps)
            self.call(then)
            image = self.disk.image()
            equal(dict(reader), before, "the reader, after the writer went on,")
            equal(self.subject.torn_tail(reader), None, "the tail that the reader saw")
            with keeps(READER):
                for what, call in writes(self.subject, reader, before).items():
                    raises(kvstore.ReadOnlyError, call, f"{what} by a reader")
        with keeps(READER):
            unchanged(image, self.disk, "a reader")

    @rule()
    @keeps(UNSAFE)
    def sync(self) -> None:
        self.call("sync")

    @rule(least_dead=SHARES)
    @keeps(FILES)
    def compact(self, least_dead: float) -> None:
        """Rearrange the files, and see that nothing is left over, and nothing dead."""
        self.rearrange(least_dead)
        equal(strays(self.subject, self.disk.image()), [], "what is left over")
        if not least_dead:
            equal(self.db.stats().dead_bytes, 0, "the dead bytes that are left")

    def rearrange(self, least_dead: float) -> None:
        """Rearrange the files, and see that they hold what they held."""
        self.subject.rearrange(self.db, least_dead)
        with keeps(FILES), self.reader() as reader:
            equal(dict(reader), self.history.now, "the files, after a compaction,")

    def call(self, what: str) -> None:
        """Make one call on the store as a whole."""
        if what == "sync":
            self.db.sync()
            self.history.is_done()
            self.history.is_safe()
        elif what == "compact":
            self.rearrange(0.5)
        elif what == "reopen":
            self.close()
            self.open()

    @rule()
    @keeps(GUESSES)
    def report(self) -> None:
        """Hold what the store says of itself against its files."""
        image = self.disk.image()
        size = sum(len(image[path]) for path in self.subject.layout(image).live)
        stats = self.db.stats()
        told = stats.keys, stats.bytes_on_disk
        equal(told, (len(self.history.now), size), "the keys and bytes of stats")
        equal(self.subject.damage(self.db), [], "the damage")
        unchanged(image, self.disk, "a look at the store")

    @rule()
    @keeps(GUESSES)
    def salvage(self) -> None:
        """Salvage the store, of which nothing is damaged."""
        copy = SimulatedDisk(self.disk.image())
        report = self.subject.salvage(copy, PATH, "rescued")
        equal((report.silent, report.left_out), (True, 0), f"{report.words}: complete")
        with self.reader(copy, "rescued") as rescued:
            equal(dict(rescued), self.history.now, "what was rescued")

    @rule(flag=st.sampled_from(["c", "w", "n"]))
    @keeps(TWO_WRITERS)
    def open_twice(self, flag: Flag) -> None:
        image = self.disk.image()
        raises(kvstore.LockedError, lambda: self.open(flag), "a second open")
        unchanged(image, self.disk, "a second open")

    @rule(wrong=st.sampled_from(["text", None, 7, bytearray(b"1")]))
    @keeps(GUESSES)
    def mistake_types(self, wrong: Any) -> None:
        db, before = self.db, record_bytes(self.db)
        calls: Calls = {
            "setdefault of a key": lambda: db.setdefault(wrong, b""),
            "setdefault of a value": lambda: db.setdefault(ABSENT, wrong),
            "update": lambda: db.update({wrong: b""}),
            "a batch": lambda: together(db, [(b"1", b""), (wrong, b"")]),
        }
        for what, call in calls.items():
            raises(TypeError, call, f"{what} with {wrong!r}")
        equal(record_bytes(self.db), before, "the records after wrong types")

    @rule()
    @keeps(GUESSES)
    def use_after_close(self) -> None:
        """Close the store, use it all the same, and open it again."""
        self.close()
        self.db.close()
        calls = writes(self.subject, self.db, {b"1": b""}) | {
            "get": lambda: self.db.get(b"1"),
            "in": lambda: b"1" in self.db,
            "items": lambda: list(self.db.items()),
            "sync": self.db.sync,
        }
        for what, call in calls.items():
            raises(kvstore.ClosedError, call, f"{what} after close")
        self.open()

    @rule(
        steps=CHANGES,
        at=st.sampled_from([0, 0, 0, 1, 2, 4]),
        what=st.sampled_from(["a batch", "sync", "compact"]),
    )
    @keeps(GUESSES)
    def call_from_inside(self, steps: Steps, at: int, what: str) -> None:
        """Call the store from inside one of its calls, as a signal handler would."""
        if what != "a batch":
            self.change([(b"0", b"a"), *steps])
        left, before, late = itertools.count(at, -1), self.history.now, []
        states = before, after(before, dict(steps)) if what == "a batch" else before

        def look(operation: Operation) -> None:
            if operation.name in CHANGES_OF_A_DISK and next(left) == 0:
                self.tally.count("calls from inside of the model*")
                with keeps(FROM_INSIDE):
                    held = self.look_inside(f"inside {operation}", states)
                if held == before and what != "sync":
                    self.becomes(INSIDE)
                elif held is not None:  # in a sync: that is for what came before it
                    late.append(INSIDE)

        with failing(self.disk, look):
            if what == "a batch":
                together(self.db, steps)
                self.becomes(*steps)
            else:
                self.call(what)
        for step in late:
            self.becomes(step)

    def look_inside(self, where: str, states: tuple[Contents, ...]) -> Contents | None:
        """See that one can read, and put or be told why not; nothing hangs.

        Returns what the store held before the put, if that was done.
        """
        db, keys = self.db, {key for state in states for key in state}
        held = {key: value for key in keys if (value := db.get(key)) is not None}
        if held not in states:
            raise AssertionError(f"{where} it holds {held!r}, possible was {states!r}")
        compact = partial(self.subject.rearrange, db)
        for call in (db.sync, db.close, compact, db.popitem if held else db.close):
            raises(kvstore.ReentrantError, call, f"{call} {where}")
        key, value = INSIDE
        there = db.get(key)
        try:
            db[key] = value
        except kvstore.ReentrantError:
            equal(db.get(key), there, f"what was refused {where}")
            return None
        return held

    @rule(flag=st.sampled_from(["c", "w"]), sync=SYNCS, size=SIZES)
    @keeps(UNSAFE)
    def reopen(self, flag: Flag, sync: Sync, size: int) -> None:
        self.close()
        self.sync_mode, self.small = sync, size
        self.open(flag)
        equal(self.subject.torn_tail(self.db), None, "the tail of a store after close")

    @rule()
    @keeps(FILES)
    def begin_anew(self) -> None:
        """Close the store, and begin with an empty one in its place."""
        self.close()
        self.open("n")
        self.history.plan(dict.fromkeys(self.history.now))
        self.history.is_done()
        self.history.is_safe()

    @rule()
    @keeps(UNSAFE)
    def kill(self) -> None:
        """End the process. Everything that has returned is there."""
        self.tally.count("kills of the model*")
        self.dead.append(self.db)
        self.disk.end_process()
        self.recover("a kill", self.history.after_a_kill)
        equal(self.subject.torn_tail(self.db), None, "the tail after a kill")

    @rule(
        steps=CHANGES,
        whole=st.booleans(),
        closed=st.sampled_from([False, False, False, True]),
        seed=SEEDS,
    )
    @keeps(CRASHED)
    def lose_power(self, steps: Steps, whole: bool, closed: bool, seed: int) -> None:
        """Write and lose power. What is lost is the end of what was not known to be safe."""
        if whole:
            together(self.db, steps)
            self.becomes(*steps)
        else:
            self.change(steps)
        if closed:
            self.close()
        self.recover(self.power_cut(seed))

    @rule(synced=st.integers(0, 3), seed=SEEDS)
    @keeps(CRASHED)
    def lose_power_twice(self, synced: int, seed: int) -> None:
        """Lose records, write others of the same length in their places, and lose those."""
        self.change([(b"%d" % number, b"a") for number in range(4)])
        self.recover(self.power_cut(seed))
        self.change([(b"%d" % number, b"b") for number in range(synced)])
        self.call("sync")
        self.change([(b"%d" % number, b"b") for number in range(synced, 4)])
        self.recover(self.power_cut(seed))

    def power_cut(self, seed: int) -> str:
        """Look at outcomes of a power cut, and start the machine on one of them.

        If one has torn the log, it is that. What is lost may turn up later where it was, in
        a place that is not written anew.
        """
        self.tally.count("power cuts of the model*")
        self.dead.append(self.db)
        cut = self.disk.power_cut()
        late = bytes_last(cut)
        left: list[tuple[bool, Picks, Image]] = []
        for picks, image in (*cut.images(OUTCOMES, seed), (late, cut.image(late))):
            found = read(self.subject, SimulatedDisk(image))
            verdict = self.history.after_a_power_cut(found.contents or {})
            self.hold(verdict, found.contents, outcome(cut, picks))
            left.append((found.torn is not None, picks, image))
        _, picks, image = max(left, key=itemgetter(0))
        sector, older = self.disk.sector_bytes, self.disk.image()
        seed = next(self.disks)
        self.disk = SimulatedDisk(image, sector_bytes=sector, seed=seed, older=older)
        return outcome(cut, picks)

    def hold(self, breach: Breach | None, found: Contents | None, crash: str) -> None:
        if breach is not None:
            raise Broken(breach, f"after {crash} it holds {in_words(found)}")

    def recover(
        self, crash: str, verdict: Callable[[Contents], Breach | None] | None = None
    ) -> None:
        """Open what a crash has left, and go on with it."""
        before = self.disk.image()
        self.open()
        found = dict(self.db)
        self.hold((verdict or self.history.after_a_power_cut)(found), found, crash)
        self.history.goes_on_from(found)
        self.check_tail(before, self.disk.image())

    def check_tail(self, before: Image, now: Image) -> None:
        """See that what the log has lost is reported, and kept."""
        log, tail = self.subject.layout(before).tail, self.subject.torn_tail(self.db)
        with keeps(UNTOLD):
            if tail is None:
                equal(now[log], before[log], "the log, of which no tail is reported,")
                return
            self.tally.count("torn tails of the model*")
            end = tail.path, tail.offset + tail.length
            equal(end, (log, len(before[log])), "the tail")
            equal(now[log], before[log][: tail.offset], "the log")
        with keeps(NOT_KEPT):
            equal(now[tail.kept_as or ""], before[log][tail.offset :], "what was kept")

    @rule(
        successes=st.sampled_from([0, 0, 1, 2, 3]),
        drops=st.booleans(),
        steps=CHANGES,
        then=st.sampled_from(["sync", "compact", "reopen"]),
        end=st.sampled_from(["close", "kill", "power cut"]),
        seed=SEEDS,
    )
    @keeps(GUESSES)
    def fail_to_sync(
        self, successes: int, drops: bool, steps: Steps, then: str, end: str, seed: int
    ) -> None:
        """Have one fsync fail. If it was the log's, the store takes no more writes."""
        fault = FailingSync(successes)
        self.disk.drops_pages = drops
        if not self.meet(fault, steps, then, drops):
            return
        self.tally.count("failed fsyncs of the model*")
        log = self.subject.layout(self.disk.image()).tail
        if fault.struck is not None and fault.struck.path == log:
            self.check_refusal()
            self.recover(self.end(end, seed))

    @rule(
        space=st.sampled_from(range(0, 400, 5)),
        steps=CHANGES,
        then=st.sampled_from(["go on", "sync", "compact", "reopen"]),
    )
    @keeps(GUESSES)
    def fill_the_disk(self, space: int, steps: Steps, then: str) -> None:
        """Have the disk full, once. The change is not made, and the store goes on."""
        if self.meet(FullDisk(self.disk, space), steps, then, drops=False):
            self.tally.count("full disks of the model*")

    def meet(
        self, fault: FailingSync | FullDisk, steps: Steps, then: str, drops: bool
    ) -> bool:
        """Make a batch and a call on a disk that fails.

        Say whether there was an error and the store is open all the same.
        """
        before, returned = self.history.now, False
        self.history.plan(dict(steps))
        try:
            with failing(self.disk, fault):
                together(self.db, steps)
                self.is_done()
                returned = True
                self.call(then)
        except OSError:
            if returned and then == "reopen":
                self.dead.append(self.db)
                self.recover(f"an error in {fault.struck}")
                return False
            self.check_change(before, returned, drops)
            return True
        equal(fault.struck, None, "the call that failed, and nobody was told,")
        return False

    def check_change(self, before: Contents, returned: bool, drops: bool) -> None:
        """See whether a batch was made on a disk that failed, and whether it should be.

        Where each change has to be on the disk, one may be made that can't be made safe.
        """
        then, found = self.history.now, readable(self.db)
        possible = [then] if returned or self.sync_mode == "always" else []
        possible += [] if returned else [before]
        right = [state for state in possible if agrees(found, state)]
        if not right or (None in found.values() and not drops):
            raise AssertionError(f"it holds {found!r}, possible was {possible!r}")
        if then not in right:
            self.history.forget()

    def check_refusal(self) -> None:
        """See that nothing can be written any more, and that nothing is called safe."""
        image = self.disk.image()
        calls = writes(self.subject, self.db, dict.fromkeys(self.db, b""))
        for what, call in calls.items():
            raises(kvstore.WriteRefusedError, call, f"{what} after a failed fsync")
        unchanged(image, self.disk, "a refused write")
        with suppress(kvstore.WriteRefusedError):
            self.call("sync")  # where it returns, it is held to that

    def end(self, how: str, seed: int) -> str:
        """End the process after a failed fsync, and say how."""
        if how == "power cut":
            return self.power_cut(seed)
        if how == "kill":
            self.dead.append(self.db)
            self.disk.end_process()
        else:
            for _ in range(2):
                raises(kvstore.WriteRefusedError, self.db.close, "close")
        return f"a failed fsync and a {how}"

    @invariant()
    def one_step(self) -> None:
        self.steps += 1
        self.same()

    @keeps(DIFFER)
    def same(self) -> None:
        db, now = self.db, self.history.now
        equal(dict(db), now, "the store")
        equal(len(db), len(now), "its length")
        equal(set(db.keys()), now.keys(), "its keys")
        equal(sorted(db.values()), sorted(now.values()), "its values")
        equal((db == now, db == {ABSENT: b""}), (True, False), "==")
        for key in (b"", b"3", ABSENT):
            equal(db.get(key), now.get(key), f"get({key!r})")
            equal(key in db, key in now, f"{key!r} in it")
        for value in (b"", b"a"):
            equal(value in db.values(), value in now.values(), f"{value!r} in values")

    def teardown(self) -> None:
        """Count the story if it came to its end; some are given up while they are drawn."""
        self.disk.fault = no_fault
        if self.steps == SETTINGS.stateful_step_count:
            self.tally.count("stories of the model")
            self.tally.count("steps of the model", self.steps)
        for db in (*self.dead, self.db):  # so that none syncs when it is forgotten
            with suppress(OSError, kvstore.KVStoreError):
                db.close()


def cases(_: Subject) -> list[str]:
    return [str(number) for number in range(1, SHARE + 1)]


def another(_: Subject, seed: int) -> str:
    return str(seed)


def run(subject: Subject, case: str) -> Tally:
    told = Tally()

    @seed(int(case))
    class Told(StoreAndDict):
        pass

    Told.subject, Told.tally = subject, told
    try:
        run_state_machine_as_test(Told, settings=SETTINGS)
    except Broken as broken:
        steps = "\n    ".join([broken.state, *broken.__notes__])
        raise Broken(broken.breach, steps, line(NAME, subject, case)) from broken
    return told
