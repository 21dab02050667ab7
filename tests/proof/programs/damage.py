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

UNNOTICED = Breach(Promise.NO_GUESSES, "damage is not noticed")
NAMELESS = Breach(
    Promise.NO_GUESSES, "damage is an error that the store has no name for"
)
MISPLACED = Breach(Promise.NO_GUESSES, "the error does not name the damaged place")
ALARM = Breach(Promise.NO_GUESSES, "an error, and nothing that counts is damaged")
UNREPORTED = Breach(
    Promise.NO_GUESSES, "a torn tail is not reported as it is, or not kept"
)
TOUCHED = Breach(
    Promise.NO_GUESSES, "a store that can't be opened, or is only read, changes"
)
BELIEVED = Breach(Promise.NO_GUESSES, "a length is believed before it was checked")
UNLISTED = Breach(
    Promise.NO_GUESSES, "verify does not name the damaged place, or another"
)
MADE_UP = Breach(
    Promise.NO_GUESSES, "salvage copies what was not written, or is silent"
)
CHECKED = Breach(Promise.NEWEST, "a value is returned that was not written")
NEWEST = Breach(Promise.NEWEST, "a key does not hold what was written last")
PREFIX = Breach(
    Promise.ONLY_THE_END, "what is found is not the history up to the damage"
)
FINAL = Breach(Promise.ONLY_THE_END, "a store does not stay as it was opened")


def in_store(name: str) -> str:
    """Return the path of a file of the store."""
    return f"{PATH}/{name}"


def file_names(image: Image) -> list[str]:
    """Return the names of the files in the store's directory."""
    paths = (path for path in image if path.startswith(in_store("")))
    return sorted(filter(None, (path.removeprefix(in_store("")) for path in paths)))


# The kinds of damage. Each has its places in an image, as words, and a way to do it there.


def bits_of(image: Image) -> Iterator[str]:
    """Yield every bit of every file."""
    for name in file_names(image):
        for byte in range(len(image[in_store(name)])):
            for bit in range(8):
                yield f"{name} {byte} {bit}"


def lengths_of(image: Image) -> Iterator[str]:
    """Yield every length that a file can be cut to."""
    for name in file_names(image):
        for length in range(len(image[in_store(name)])):
            yield f"{name} {length}"


def sectors_of(size: int, image: Image) -> Iterator[str]:
    """Yield every sector of every file."""
    for name in file_names(image):
        for number in range(-(-len(image[in_store(name)]) // size)):
            yield f"{name} {number}"


def pairs_of_sectors(size: int, image: Image) -> Iterator[str]:
    """Yield every pair of sectors, in one file or in two."""
    for one, other in itertools.combinations(sectors_of(size, image), 2):
        yield f"{one} {other}"


def changed(image: Image, name: str, raw: bytes) -> Image:
    """Return an image in which a file holds something else."""
    return {**image, in_store(name): raw}


def flip(image: Image, name: str, byte: str, bit: str) -> Image:
    """Flip one bit."""
    raw = bytearray(image[in_store(name)])
    raw[int(byte)] ^= 1 << int(bit)
    return changed(image, name, bytes(raw))


def cut(image: Image, name: str, length: str) -> Image:
    """Cut a file short."""
    return changed(image, name, image[in_store(name)][: int(length)])


def take_away(image: Image, name: str) -> Image:
    """Take a file away."""
    return {path: raw for path, raw in image.items() if path != in_store(name)}


def overwrite(size: int, image: Image, name: str, number: str, sector: bytes) -> Image:
    """Put other bytes in the place of a sector. The file keeps its length."""
    raw, place = image[in_store(name)], int(number) * size
    whole = raw[:place] + sector.ljust(size, b"\0") + raw[place + size :]
    return changed(image, name, whole[: len(raw)])


def fill_with_zeros(size: int, image: Image, name: str, number: str) -> Image:
    """Let a sector hold nothing but zeros."""
    return overwrite(size, image, name, number, b"")


def exchange(
    size: int, image: Image, name: str, number: str, other: str, other_number: str
) -> Image:
    """Let two sectors change places."""
    one, two = (
        image[in_store(each)][int(at) * size :][:size]
        for each, at in ((name, number), (other, other_number))
    )
    image = overwrite(size, image, name, number, two)
    return overwrite(size, image, other, other_number, one)


class Kind(NamedTuple):
    """A kind of damage."""

    places: Callable[[Image], Iterable[str]]
    do: Callable[..., Image]
    words: str  # to be completed with the words of a place
    counted: str
    thorough: int = 1  # one in so many is salvaged, or opened once more


def swap_file(other: Image, image: Image, name: str) -> Image:
    """Put the file of this name from another store in the place of ours."""
    return changed(image, name, other[in_store(name)])


def kinds_of_sectors(size: int) -> dict[str, Kind]:
    """Return the kinds of damage that change whole sectors."""
    return {
        f"zero{size}": Kind(
            partial(sectors_of, size),
            partial(fill_with_zeros, size),
            f"sector {{1}} of {{0}}, {size} bytes, is zeros",
            "different sectors zeroed",
        ),
        f"swap{size}": Kind(
            partial(pairs_of_sectors, size),
            partial(exchange, size),
            f"sector {{1}} of {{0}} and sector {{3}} of {{2}}, {size} bytes each, "
            f"have changed places",
            "different sectors swapped",
            10,
        ),
    }


KINDS = {
    "bit": Kind(
        bits_of,
        flip,
        "bit {2} of byte {1} of {0} is flipped",
        "different bits flipped",
        50,
    ),
    "cut": Kind(
        lengths_of, cut, "{0} is cut to {1} bytes", "different truncations", 10
    ),
    "gone": Kind(file_names, take_away, "{0} is gone", "different files gone"),
    **kinds_of_sectors(512),
    **kinds_of_sectors(64),
}


def foreign(engine: str, name: str) -> Kind:
    """Return the exchange of files between a store and another with the same history."""
    do = partial(swap_file, left_as(engine, name, seed=1).image)
    words = "{0} is that of another store"
    return Kind(file_names, do, words, "different files exchanged")


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
    name = chance.choice([each for each in file_names(image) if image[in_store(each)]])
    length = len(image[in_store(name)])
    sectors = list(sectors_of(512, image))
    place = {
        "bit": f"{name} {chance.randrange(length)} {chance.randrange(8)}",
        "cut": f"{name} {chance.randrange(length)}",
        "gone": name,
        "zero512": chance.choice(sectors),
        "swap512": " ".join(chance.choices(sectors, k=2)),
    }[kind]
    return f"{kind} {place}"


def several(image: Image, *words: str) -> Image:
    """Do several damages, one after the other."""
    for part in " ".join(words).split(" + "):
        kind, *place = part.split()
        image = KINDS[kind].do(image, *place)
    return image


def kind_named(subject: Subject, kind: str, name: str) -> Kind:
    """Return the kind of damage of this name, for a state of that name."""
    if kind == "foreign":
        return foreign(subject.name, name)
    if kind == "several":
        places = partial(several_by_chance, subject, name)
        return Kind(places, several, "", "different mixtures of damage")
    return KINDS[kind]


def in_english(subject: Subject, case: str) -> str:
    """Say in words what a store was, and what was done to it."""
    name, kind, *place = case.split()
    if not place:
        return f"a store left {name}, undamaged"
    words = " ".join(place if kind == "several" else [kind, *place])
    parts = (part.split() for part in words.split(" + "))
    damages = (kind_named(subject, each, name).words.format(*at) for each, *at in parts)
    return f"a store left {name}; {', then '.join(damages)}"


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
    case: str  # the words that replay it
    flag: Flag = "r"

    @cached_property
    def expected(self) -> Expected:
        """Return what has to come of it."""
        return self.subject.expected(self.left, self.damaged)

    def broken(self, breach: Breach, what: str) -> Broken:
        """Return the failure, with what was seen."""
        words = in_english(self.subject, self.case)
        state = f"{words}; opened with flag {self.flag!r}: {what}"
        return Broken(breach, state, line(NAME, self.subject, self.case))

    def check(self, tally: Tally, counted: str, *, thorough: bool) -> None:
        """Open the store with each flag, and check what comes of it."""
        number = fingerprint_of(self.damaged)
        tally.meet(counted, number)
        for flag in FLAGS:
            salvages = thorough and flag == "c"
            for outcome in self.check_with(flag, thorough=salvages):
                tally.meet(f"different damages: {outcome}", fingerprint(number, flag))

    def check_with(self, flag: Flag, *, thorough: bool) -> Iterator[str]:
        """Open the store, read all of it, and check what comes of it."""
        self.flag = flag
        disk = SimulatedDisk(self.damaged)
        outcome = self.look(disk, flag)
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
        if (torn[:3], image[path], image.get(torn.kept_as or "")) != (
            right,
            kept,
            rest,
        ):
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


class LiveView:
    """A mapped file, in which later changes of the file show, as in the real one."""

    def __init__(self, disk: SimulatedDisk, file: File, length: int) -> None:
        self.disk = disk
        self.file = file
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self.length)
        return self.disk.pread(self.file.descriptor, end - start, start)


class LiveDisk(SimulatedDisk):
    """A simulated disk of which an open store sees the changes."""

    def map(self, file: File, length: int) -> LiveView:
        """Show the file."""
        return LiveView(self, file, length)

    def flip(self, name: str, byte: int, bit: int) -> None:
        """Flip one bit of a file."""
        file = self.open_directory(PATH).open(name, writable=True)
        (value,) = self.pread(file.descriptor, 1, byte)
        self.pwrite(file.descriptor, bytes([value ^ 1 << bit]), byte)


class LiveTrial:
    """A store that is open, while one bit after the other is flipped and flipped back."""

    def __init__(self, subject: Subject, name: str) -> None:
        left = left_as(subject.name, name)
        self.subject = subject
        self.name = name
        self.disk = LiveDisk(left.image)
        self.db = subject.open(self.disk)
        self.right = left.contents[subject.expected(left, left.image).end]
        self.image = self.disk.image()
        self.layout = subject.layout(self.image)
        self.place = ""

    def broken(self, breach: Breach, what: str) -> Broken:
        """Return the failure, with what was seen."""
        words = in_english(self.subject, f"{self.name} bit {self.place}")
        case = line(NAME, self.subject, self.name, "live", self.place)
        return Broken(breach, f"{words}, while it is open: {what}", case)

    def check(self, place: str) -> None:
        """Flip a bit, read everything, verify, and flip it back."""
        self.place = place
        name, byte, bit = place.split()
        self.disk.flip(name, int(byte), int(bit))
        self.check_gets(in_store(name), int(byte))
        self.check_verify(in_store(name), int(byte))
        self.disk.flip(name, int(byte), int(bit))

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
    """Return each state with each kind of damage."""
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
    """Do one damage, or all of one kind, and check what comes of it."""
    name, kind, *place = case.split()
    tally = Tally()
    if kind == "live":
        run_live(subject, name, " ".join(place), tally)
    else:
        run_kind(subject, name, kind, " ".join(place), tally)
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
        trial.check(tally, how.counted, thorough=number % how.thorough == 0)


def run_live(subject: Subject, name: str, place: str, tally: Tally) -> None:
    """Flip one bit under an open store, or each bit."""
    trial = LiveTrial(subject, name)
    trial.check_whole()
    for each in [place] if place else bits_of(trial.image):
        trial.check(each)
        tally.meet(
            "different bits flipped under an open store", fingerprint(name, each)
        )
    trial.check_whole()
