"""Damage of every kind to every file of a store, and what each may lead to.

Small stores are left in every state that a store can be left in: closed, in use, killed,
out of power. Then their files are damaged on a simulated disk: each bit flipped, each file
cut at each length, taken away or exchanged for another store's, each sector filled with
zeros or exchanged with each other sector. Whatever is damaged, opening the store for
reading and for writing gives the right answer or an error that names the place. Which of
them it has to be, the engine's formats decide: see `Subject.expected`.

An error changes no file. What salvage then copies are values that were written, and its
report is not empty. No damaged length is believed: apart from heads of a fixed size, no read
asks for more than the file has. Salvage reads at most twice as much as there is, and three
times as much again for each place that it leaves out.

A case is a state and a kind of damage, such as ``closed bit``; to replay one damage, its
place follows. ``live`` flips bits under an open store, ``several`` does up to four damages
at once to a store made by chance.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import kvstore
from kvstore.filesystem import File
from kvstore.powercut import Image
from kvstore.simdisk import Operation, SimulatedDisk
from tests.proof.history import Contents, in_words
from tests.proof.programme import Tally, fingerprint, fingerprint_of, line
from tests.proof.promises import Breach, Broken, Promise
from tests.proof.samples import BY_CHANCE, STATES, left_as
from tests.proof.subject import PATH, Expected, Flag, Left, Subject, Tail

NAME = "damage"
NEEDS = frozenset({Promise.NO_GUESSES})
TARGET = "rescued"
FLAGS: tuple[Flag, ...] = ("r", "c")

_no_guesses = partial(Breach, Promise.NO_GUESSES)
UNNOTICED = _no_guesses("damage is not noticed")
NAMELESS = _no_guesses("damage is an error that the store has no name for")
MISPLACED = _no_guesses("the error does not name the damaged place")
ALARM = _no_guesses("an error, and nothing that counts is damaged")
UNREPORTED = _no_guesses("a torn tail is not reported as it is, or not kept")
TOUCHED = _no_guesses("a store that can't be opened, or is only read, changes")
BELIEVED = _no_guesses("a length is believed before it was checked")
UNLISTED = _no_guesses("verify does not name the damaged place, or another")
MADE_UP = _no_guesses("salvage copies what was not written, or is silent")
CHECKED = Breach(Promise.NEWEST, "a value is returned that was not written")
NEWEST = Breach(Promise.NEWEST, "a key does not hold what was written last")
PREFIX = Breach(Promise.ONLY_THE_END, "it is not the history up to the damage")
FINAL = Breach(Promise.ONLY_THE_END, "a store does not stay as it was opened")


def files(image: Image) -> list[str]:
    """Return the paths of the files in the store's directory."""
    directory = f"{PATH}/"
    return sorted(p for p in image if p.startswith(directory) and p != directory)


# The kinds of damage. Each has its places in an image, as words, and a way to do it there.


def bits_of(image: Image) -> Iterator[str]:
    for path in files(image):
        for bit in range(8 * len(image[path])):
            yield f"{path} {bit // 8} {bit % 8}"


def sectors_of(size: int, image: Image) -> Iterator[str]:
    for path in files(image):
        sectors = range(-(-len(image[path]) // size))
        yield from (f"{path} {number}" for number in sectors)


def flip(image: Image, path: str, byte: str, bit: str) -> Image:
    raw = bytearray(image[path])
    raw[int(byte)] ^= 1 << int(bit)
    return image | {path: bytes(raw)}


def cut(image: Image, path: str, length: str) -> Image:
    return image | {path: image[path][: int(length)]}


def without(image: Image, path: str) -> Image:
    return {each: raw for each, raw in image.items() if each != path}


def overwrite(size: int, image: Image, path: str, number: str, sector: bytes) -> Image:
    """Put other bytes in the place of a sector. The file keeps its length."""
    raw, place = image[path], int(number) * size
    whole = raw[:place] + sector.ljust(size, b"\0") + raw[place + size :]
    return image | {path: whole[: len(raw)]}


def exchange(
    size: int, image: Image, path: str, number: str, other: str, other_number: str
) -> Image:
    one, two = (
        image[each][int(at) * size :][:size]
        for each, at in ((path, number), (other, other_number))
    )
    image = overwrite(size, image, path, number, two)
    return overwrite(size, image, other, other_number, one)


class Kind(NamedTuple):
    """A kind of damage."""

    places: Callable[[Image], Iterable[str]]
    do: Callable[..., Image]
    counted: str
    thorough: int = 1  # one in so many is salvaged, or opened once more


def kinds_of_sectors(size: int) -> dict[str, Kind]:
    zeros, swap = partial(overwrite, size, sector=b""), partial(exchange, size)
    sectors = partial(sectors_of, size)

    def pairs(image: Image) -> Iterator[str]:
        return map(" ".join, itertools.combinations(sectors(image), 2))

    return {
        f"zero{size}": Kind(sectors, zeros, "sectors zeroed"),
        f"swap{size}": Kind(pairs, swap, "sectors swapped", 10),
    }


KINDS = {
    "bit": Kind(bits_of, flip, "bits flipped", 50),
    "cut": Kind(partial(sectors_of, 1), cut, "truncations", 10),
    "gone": Kind(files, without, "files gone"),
    **kinds_of_sectors(512),
    **kinds_of_sectors(64),
}


MIXTURES = 40  # of each store made by chance
SINGLE = ("bit", "cut", "gone", "zero512", "swap512")


def several_by_chance(subject: Subject, name: str, image: Image) -> Iterator[str]:
    """Yield mixtures of up to four damages, such as ``cut ONE 3 + gone OTHER``."""
    chance = random.Random(name)
    for _ in range(MIXTURES):
        damaged, parts = image, list[str]()
        for _ in range(chance.choice((1, 1, 2, 3, 4))):
            parts.append(by_chance(chance, damaged))
            damaged = several(damaged, *parts[-1].split())
        if not subject.unfinished(damaged):
            yield " + ".join(parts)


def by_chance(chance: random.Random, image: Image) -> str:
    """Return one damage, to files that have bytes, as words."""
    kind = chance.choice(SINGLE)
    path = chance.choice([each for each in files(image) if image[each]])
    length = len(image[path])
    sectors = list(sectors_of(512, image))
    place = {
        "bit": f"{path} {chance.randrange(length)} {chance.randrange(8)}",
        "cut": f"{path} {chance.randrange(length)}",
        "gone": path,
        "zero512": chance.choice(sectors),
        "swap512": " ".join(chance.choices(sectors, k=2)),
    }[kind]
    return f"{kind} {place}"


def several(image: Image, *words: str) -> Image:
    for part in " ".join(words).split(" + "):
        kind, *place = part.split()
        image = KINDS[kind].do(image, *place)
    return image


def kind_named(subject: Subject, kind: str, name: str) -> Kind:
    if kind == "foreign":  # files of another store with the same history
        other = left_as(subject.name, name, seed=1).image
        return Kind(files, lambda ours, p: ours | {p: other[p]}, "files exchanged")
    if kind == "several":
        places = partial(several_by_chance, subject, name)
        return Kind(places, several, "mixtures of damage")
    return KINDS[kind]


# What has to come of it.


class Found(NamedTuple):
    """What a store says that could be opened."""

    contents: Contents
    items: Contents
    length: int
    torn: Tail | None
    opening: int  # how many calls to the disk it took to open it


@dataclass
class Trial:
    """One damage to one store, and whether the store holds its promises."""

    subject: Subject
    left: Left
    damaged: Image
    case: str  # the words that replay it: state, kind and place
    flag: Flag = "r"

    @cached_property
    def expected(self) -> Expected:
        return self.subject.expected(self.left, self.damaged)

    def broken(self, breach: Breach, what: str) -> Broken:
        state = f"a store left {self.case}; opened with flag {self.flag!r}: {what}"
        return Broken(breach, state, line(NAME, self.subject, self.case))

    def check(self, tally: Tally, counted: str, *, thorough: bool) -> None:
        """Open the store with each flag, and check what comes of it."""
        number = fingerprint_of(self.damaged)
        tally.meet(counted, number)
        for self.flag in FLAGS:
            for outcome in self.outcomes(thorough=thorough and self.flag == "c"):
                words = f"different damages: {outcome}"
                tally.meet(words, fingerprint(number, self.flag))

    def outcomes(self, *, thorough: bool) -> Iterator[str]:
        """Open the store, read all of it, and check and tell what comes of it."""
        disk = SimulatedDisk(self.damaged)
        outcome = self.look(disk, self.flag)
        if isinstance(outcome, Found):
            self.check_found(outcome, disk)
            if thorough:
                self.check_final(outcome, disk)
            yield "a right answer" if outcome.torn is None else "a torn tail"
            return
        self.check_error(outcome, disk)
        yield "an error"
        if thorough:
            self.rescue(disk)
            yield "a rescue"

    def look(self, disk: SimulatedDisk, flag: Flag) -> Found | kvstore.KVStoreError:
        """Return what is found in the store, or the error that it has a name for."""
        try:
            with self.subject.open(disk, flag) as db:
                opening = len(disk.operations)
                contents = {key: db[key] for key in db}
                torn = self.subject.torn_tail(db)
                return Found(contents, dict(db.items()), len(db), torn, opening)
        except kvstore.KVStoreError as error:
            return error
        except Exception as error:
            raise self.broken(NAMELESS, repr(error)) from error

    def check_error(self, error: kvstore.KVStoreError, disk: SimulatedDisk) -> None:
        """Check that an error is due and names the place, and that nothing was changed."""
        due = self.expected.errors
        if not due and not self.expected.moved:
            raise self.broken(ALARM, repr(error))
        if not self.names_the_place(error):
            raise self.broken(MISPLACED, f"{error!r}, and the damage is at {due}")
        self.check_reads(disk.operations)
        self.check_untouched(disk)

    def names_the_place(self, error: kvstore.KVStoreError) -> bool:
        """Say whether an error is of the right kind, and names a damaged place."""
        foreign = self.expected.foreign
        if type(error) is kvstore.ForeignDirectoryError:
            return bool(foreign) and foreign in str(error)
        if type(error) is not kvstore.CorruptionError or error.path not in str(error):
            return False
        if self.expected.moved and error.path == self.left.layout.tail:
            return True
        due = self.expected.errors.get(error.path, set())
        return error.offset in due and error.path != foreign

    def check_found(self, found: Found, disk: SimulatedDisk) -> None:
        """Check that what was found is right, and what became of the files."""
        self.check_contents(found)
        self.check_tail(found.torn, disk.image())
        self.check_reads(disk.operations[: found.opening])
        if self.flag == "r":
            self.check_untouched(disk)

    def check_contents(self, found: Found) -> None:
        """Check that no error was due, and that the answers are right."""
        contents, right = found.contents, self.left.contents[self.expected.end]
        answers = f"found {in_words(contents)}, and right is {in_words(right)}"
        if not self.left.written.issuperset(contents.items()):
            raise self.broken(CHECKED, answers)
        if self.expected.errors:
            due = ", ".join(sorted(self.expected.errors))
            raise self.broken(UNNOTICED, f"no error for {due}; {answers}")
        if contents != right and not self.expected.moved:
            raise self.broken(PREFIX, answers)
        if found.items != contents or found.length != len(contents):
            raise self.broken(NEWEST, "gets, an iteration and the length differ")

    def check_tail(self, torn: Tail | None, image: Image) -> None:
        """Check that bytes after the end of the log are reported, and kept by a writer."""
        path = self.left.layout.tail
        log = self.damaged[path]
        end = torn.offset if torn and self.expected.moved else self.expected.end
        if torn is None:
            if end < len(log):
                raise self.broken(UNREPORTED, f"no word of {len(log) - end} bytes")
            return
        kept, rest = (log, None) if self.flag == "r" else (log[:end], log[end:])
        right = path, end, len(log) - end
        told = torn[:3], image[path], image.get(torn.kept_as or "")
        if told != (right, kept, rest):
            what = f"reported: {torn}; there are {len(log) - end} bytes at {end}"
            raise self.broken(UNREPORTED, what)

    def check_untouched(self, disk: SimulatedDisk) -> None:
        """Check that no file was changed, but for a writer's lock."""
        lock = {} if self.flag == "r" else {self.subject.lock_file: b""}
        before, now = self.damaged | lock, disk.image() | lock
        if before != now:
            paths = sorted(dict(before.items() ^ now.items()))
            raise self.broken(TOUCHED, f"changed: {', '.join(paths)}")

    def check_final(self, found: Found, disk: SimulatedDisk) -> None:
        """Check that whoever opens the store next finds the same."""
        again = self.look(disk, "r")
        if not isinstance(again, Found) or again[:4] != (*found[:3], None):
            raise self.broken(FINAL, f"the next one to open it finds {again!r}")

    def check_reads(self, operations: list[Operation]) -> None:
        """Check how many bytes were read until the store was open, or refused."""
        for path, count in self.bytes_read(operations).items():
            most = self.expected.most(path, self.flag)
            if count > most:
                what = f"{count} bytes of {path} were read, and {most} are enough"
                raise self.broken(BELIEVED, what)

    def bytes_read(self, operations: list[Operation]) -> Counter[str]:
        """Count bytes, file by file, and check that each read asks for what there is."""
        read: Counter[str] = Counter()
        for name, path, offset, length in operations:
            if name == "read" and path in self.damaged:
                size, end = len(self.damaged[path]), offset + length
                if end > size and end > self.expected.fixed(path):
                    what = f"{length} bytes at {offset} of {path}, which has {size}"
                    raise self.broken(BELIEVED, f"asked for: {what}")
                read[path] += max(0, min(end, size) - offset)
        return read

    def rescue(self, disk: SimulatedDisk) -> None:
        """Salvage what is left, and check that it was written, and that all is reported."""
        before, calls = disk.image(), len(disk.operations)
        try:
            report = self.subject.salvage(disk, PATH, TARGET)
            with self.subject.open(disk, "r", path=TARGET) as db:
                rescued = dict(db)
        except kvstore.StoreNotFoundError as error:
            if any(path in before for path in self.left.layout.records):
                raise self.broken(MADE_UP, repr(error)) from error
            return
        except Exception as error:
            raise self.broken(MADE_UP, repr(error)) from error
        if not self.left.written.issuperset(rescued.items()):
            raise self.broken(MADE_UP, f"rescued {in_words(rescued)}")
        if report.silent:
            raise self.broken(MADE_UP, f"the report has nothing to say: {report.words}")
        if not before.items() <= disk.image().items():
            raise self.broken(TOUCHED, "salvage has changed the damaged store")
        read = self.bytes_read(disk.operations[calls:]).total()
        most = (2 + 3 * report.left_out) * sum(map(len, before.values()))
        if read > most:
            raise self.broken(BELIEVED, f"salvage has read {read} bytes, not {most}")


# Damage to a store that is open.


@dataclass
class LiveView:
    """A mapped file, in which later changes of the file show, as in the real one."""

    disk: SimulatedDisk
    file: File
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self.length)
        return self.disk.pread(self.file.descriptor, end - start, start)


class LiveDisk(SimulatedDisk):
    """A simulated disk of which an open store sees the changes."""

    def map(self, file: File, length: int) -> LiveView:
        return LiveView(self, file, length)

    def flip(self, path: str, byte: int, bit: int) -> None:
        directory, name = path.split("/")
        file = self.open_directory(directory).open(name, writable=True)
        (value,) = self.pread(file.descriptor, 1, byte)
        self.pwrite(file.descriptor, bytes([value ^ 1 << bit]), byte)


class LiveTrial:
    """A store that is open, while one bit after the other is flipped and flipped back."""

    def __init__(self, subject: Subject, name: str) -> None:
        left = left_as(subject.name, name)
        self.subject, self.name, self.place = subject, name, ""
        self.disk = LiveDisk(left.image)
        self.db = subject.open(self.disk)
        self.right = left.contents[subject.expected(left, left.image).end]
        self.image = self.disk.image()
        self.layout = subject.layout(self.image)

    def broken(self, breach: Breach, what: str) -> Broken:
        case = line(NAME, self.subject, self.name, "live", self.place)
        state = f"bit {self.place} of a store left {self.name}, while open: {what}"
        return Broken(breach, state, case)

    def check(self, place: str) -> None:
        """Flip a bit, read everything, verify, and flip it back."""
        self.place = place
        path, *numbers = place.split()
        byte, bit = map(int, numbers)
        self.disk.flip(path, byte, bit)
        self.check_gets(path, byte)
        self.check_verify(path, byte)
        self.disk.flip(path, byte, bit)

    def check_gets(self, path: str, byte: int) -> None:
        """Check that each key is right, or that the error names the record."""
        if set(self.db) != self.right.keys():
            raise self.broken(NEWEST, f"the keys are {sorted(self.db)}")
        for key, value in self.right.items():
            try:
                got = self.db[key]
            except kvstore.CorruptionError as error:
                starts = self.layout.borders(path) if error.path == path else [-1]
                if error.offset != starts[bisect_right(starts, byte) - 1]:
                    raise self.broken(MISPLACED, repr(error)) from error
            else:
                if got != value:
                    raise self.broken(CHECKED, f"{key!r} holds {got!r}, not {value!r}")

    def check_verify(self, path: str, byte: int) -> None:
        """Check that verify names the damaged place, if it counts."""
        found = self.subject.damage(self.db)
        named = [p == path and 0 <= byte - at < length for p, at, length in found]
        if named != ([True] if path in self.layout.live else []):
            raise self.broken(UNLISTED, f"it says {found}")

    def check_whole(self) -> None:
        """Check that nothing is wrong when nothing is flipped."""
        self.place = "0 0 0"
        if dict(self.db) != self.right or self.subject.damage(self.db):
            what = f"nothing is flipped, and {self.subject.damage(self.db)}"
            raise self.broken(ALARM, what)


# The programme.


def cases(_: Subject) -> list[str]:
    small = [name for name in STATES if name != "large"]
    return [
        *(f"{name} {kind}" for name in small for kind in (*KINDS, "foreign")),
        *(f"large {kind}" for kind in SINGLE),
        *(f"{name} live" for name in ("closed", "mended")),
        *(f"{BY_CHANCE}{seed} several" for seed in range(1, 9)),
    ]


def another(_: Subject, seed: int) -> str:
    """Return a case with a store made by chance, and mixtures of damage."""
    return f"{BY_CHANCE}{seed} several"


def run(subject: Subject, case: str) -> Tally:
    name, kind, *place = case.split()
    tally = Tally()
    try_all = run_live if kind == "live" else run_kind
    try_all(subject, name, kind, " ".join(place), tally)
    return tally


def run_kind(subject: Subject, name: str, kind: str, place: str, tally: Tally) -> None:
    """Try one place or, after the undamaged store, every place."""
    left, how = left_as(subject.name, name), kind_named(subject, kind, name)
    if not place:
        whole = Trial(subject, left, left.image, f"{name} {kind}")
        whole.check(Tally(), "", thorough=True)
    for number, each in enumerate([place] if place else how.places(left.image)):
        damaged = how.do(left.image, *each.split())
        trial = Trial(subject, left, damaged, f"{name} {kind} {each}")
        trial.check(
            tally, f"different {how.counted}", thorough=number % how.thorough == 0
        )


def run_live(subject: Subject, name: str, _: str, place: str, tally: Tally) -> None:
    """Flip one bit under an open store, or each bit."""
    trial = LiveTrial(subject, name)
    trial.check_whole()
    for each in [place] if place else bits_of(trial.image):
        trial.check(each)
        words = "different bits flipped under an open store"
        tally.meet(words, fingerprint(name, each))
    trial.check_whole()
