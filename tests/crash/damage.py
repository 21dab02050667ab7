"""Damage of every kind to every file of a store, and what each may lead to.

Small stores are left in every state that a store can be left in: closed, in use, killed,
out of power. Then their files are damaged on a simulated disk: each bit flipped, each file
cut at each length, taken away or exchanged for another store's, each sector filled with
zeros or exchanged with each other sector. Whatever is damaged, opening the store for
reading and for writing gives the right answer or an error that names the place:

============================= ============================================================
what is damaged               what has to come of it
============================= ============================================================
the manifest, in any way      an error that names it: `ForeignDirectoryError` if its magic
                              is damaged, `CorruptionError` otherwise. If it is another
                              store's, the error names a segment that it takes for its own
a sealed segment, in any way  `CorruptionError` with its path, and the offset of its header
                              or of the record, or batch, in which the damage begins
the active segment, in its    the same
header or below the mark,
or below what the manifest
says of it
the active segment, above     the history up to the last change that ends before the damage.
both                          `torn_tail` says where that is and how many bytes follow, and
                              a writer keeps those. Nothing follows if the file was cut
                              between two changes: that looks like a change never written
the mark, in any way          nothing is lost. But it vouches for nothing then: what the
                              manifest says of the active segment is all that does
LOCK, MANIFEST.new, segments  nothing
that the manifest leaves out,
what was kept of a torn tail
============================= ============================================================

One thing is promised less exactly. A record does not say where in its segment it belongs.
Where a sector that begins with a whole record changes places with another one, above the mark
or right at it, the record passes for the next one, and those between are cut off with the
tail. A torn tail is reported then, and every value that is found was written under its key
once.

An error changes no file. What salvage then copies are values that were written, and its
report is not empty. No damaged length is believed: apart from a header of 32 bytes and
a mark of 40, no read asks for more than the file has. To open a store, its manifest is read
at most three times and each segment once, where a writer reads the part of the active one
above the mark once more: less than three times the store. Salvage reads at most twice as
much as there is, and three times as much again for each place that it leaves out.

A case is a state and a kind of damage, such as ``closed bit``; to replay one damage, its
place follows. ``live`` flips bits under an open store, ``several`` does up to four damages
at once to a store made by chance.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from history import Changes, in_words
from proof import Broken, Contents, Tally

import kvstore
from kvstore import Cut
from kvstore.filesystem import File
from kvstore.manifest import LOCK, MANIFEST, MANIFEST_ASIDE, MANIFEST_MAGIC
from kvstore.mark import MARK, MARK_BYTES
from kvstore.segment import HEADER_BYTES, LONGEST_START, WINDOW_BYTES, segment_name
from kvstore.simdisk import Image, Operation, SimulatedDisk, no_fault
from kvstore.store import Flag

NAME = "damage"
DIRECTORY = "store"
TARGET = "rescued"
FLAGS: tuple[Flag, ...] = ("r", "c")

UNNOTICED = "T8, no guesses: damage is noticed"
NAMELESS = "T8, no guesses: damage is an error that the store has a name for"
MISPLACED = "T8, no guesses: the error names the damaged file and the place in it"
ALARM = "T8, no guesses: there is no error where nothing that counts is damaged"
REPORTED = "T8, no guesses: a torn tail is reported as it is, and kept"
UNTOUCHED = (
    "T8, no guesses: a store that can't be opened, or is only read, is not changed"
)
BELIEVED = "T8, no guesses: no length is believed before it was checked"
LISTED = "T8, no guesses: verify names the damaged place, and no other"
RESCUED = (
    "T8, no guesses: salvage copies only what was written, and says what it left out"
)
CHECKED = "T3, the newest, checked: no value is returned but one that was written"
NEWEST = "T3, the newest, checked: a key holds what was written last"
PREFIX = "T6, only the end: what is found is the history up to the damage"
FINAL = "T6, only the end: a store that was mended stays as it is"


# What was written: the part that knows the formats, apart from the package's own code.

HEAD = Struct("<BQHI")
CHECKSUM_BYTES = 4
PUT = 1
CONTINUED = 128
DESCRIPTIONS_START = 32
DESCRIPTION = Struct("<QIQ")
SHORTEST_MANIFEST = 56


def in_store(name: str) -> str:
    """Return the path of a file of the store."""
    return f"{DIRECTORY}/{name}"


def file_names(image: Image) -> list[str]:
    """Return the names of the files in the store's directory."""
    paths = (path for path in image if path.startswith(in_store("")))
    return sorted(filter(None, (path.removeprefix(in_store("")) for path in paths)))


def described(manifest: bytes) -> list[tuple[int, int, int]]:
    """Return number, seed and length of a manifest's segments, the active one last."""
    return list(DESCRIPTION.iter_unpack(manifest[DESCRIPTIONS_START:-CHECKSUM_BYTES]))


def active_in(image: Image) -> str:
    """Return the path of the segment that takes records."""
    return in_store(segment_name(described(image[in_store(MANIFEST)])[-1][0]))


def is_whole(raw: bytes) -> bool:
    """Say whether some bytes end with their own checksum."""
    checksum = crc32(raw[:-CHECKSUM_BYTES])
    return checksum.to_bytes(CHECKSUM_BYTES, "little") == raw[-CHECKSUM_BYTES:]


def noted(image: Image) -> int:
    """Return how much of the active segment the manifest vouches for."""
    return described(image[in_store(MANIFEST)])[-1][2]


def vouched_for(image: Image) -> int:
    """Return how much of it is on the disk for sure, as manifest and mark say."""
    mark = image[in_store(MARK)]
    number, length = (int.from_bytes(mark[at : at + 8], "little") for at in (12, 24))
    counts = is_whole(mark) and in_store(segment_name(number)) == active_in(image)
    return max(noted(image), length if counts else 0)


class Borders(NamedTuple):
    """Where the header, the records and the batches of a segment begin, and its end."""

    records: list[int]
    batches: list[int]


@lru_cache(maxsize=64)
def borders(raw: bytes) -> Borders:
    """Return the borders in the bytes of an undamaged segment."""
    found, place, continued = Borders([0], [0]), HEADER_BYTES, False
    while place + HEAD.size <= len(raw):
        kind, _, key_bytes, value_bytes = HEAD.unpack_from(raw, place)
        found.records.append(place)
        if not continued:
            found.batches.append(place)
        continued = bool(kind & CONTINUED)
        place += HEAD.size + key_bytes + value_bytes + CHECKSUM_BYTES
    found.records.append(len(raw))
    found.batches.append(len(raw))
    return found


def records_in(raw: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Yield the records of an undamaged segment: number, key, and value if it has one."""
    for start, end in pairwise(borders(raw).records[1:]):
        kind, sequence, key_bytes, _ = HEAD.unpack_from(raw, start)
        key_end = start + HEAD.size + key_bytes
        value = raw[key_end : end - CHECKSUM_BYTES] if kind & PUT else None
        yield sequence, raw[start + HEAD.size : key_end], value


def in_common(one: bytes, other: bytes) -> int:
    """Return how many bytes at their start two files have in common."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda n: one[:n] != other[:n])


def last_before(places: list[int], place: int) -> int:
    """Return the last of some rising places that is not behind a place."""
    return places[bisect_right(places, place) - 1]


# The states in which a store can be left.


class Account:
    """A store on a simulated disk, and an account of what was written to it."""

    def __init__(self, seed: int, segment_bytes: int) -> None:
        self.disk = SimulatedDisk(sector_bytes=32, seed=seed)
        self.segment_bytes = segment_bytes
        self.now: Contents = {}
        self.written: set[tuple[bytes, bytes]] = set()
        self.contents: dict[str, dict[int, Contents]] = {}  # by segment, and its length
        self.open()

    def open(self) -> None:
        """Open the store."""
        self.db = kvstore.open(
            DIRECTORY, segment_bytes=self.segment_bytes, filesystem=self.disk
        )
        self.note(self.now)

    def note(self, before: Contents) -> None:
        """Note what the active segment holds at its length, and at its beginning."""
        image = self.disk.image()
        path = active_in(image)
        known = self.contents.setdefault(path, {HEADER_BYTES: before})
        known[len(image[path])] = self.now

    def change(self, changes: Changes) -> None:
        """Put or delete one key; several as a batch."""
        before = self.now
        kept = {k: v for k, v in before.items() if k not in changes}
        puts = {k: v for k, v in changes.items() if v is not None}
        self.now = kept | puts
        self.written |= puts.items()
        if len(changes) == 1:
            self.apply(self.db, changes)
        else:
            with self.db.batch() as batch:
                self.apply(batch, changes)
        self.note(before)

    @staticmethod
    def apply(target: kvstore.Store | kvstore.Batch, changes: Changes) -> None:
        """Make the changes, one after the other."""
        for key, value in changes.items():
            if value is None:
                del target[key]
            else:
                target[key] = value

    def compact(self, least_dead: float = 0.0) -> None:
        """Compact the store."""
        self.db.compact(least_dead)
        self.note(self.now)

    def killed_before_last(self, name: str, work: Callable[[], object]) -> Image:
        """Return what is left if the process dies before the last call of this name."""
        images: list[Image] = []

        def look(operation: Operation) -> None:
            if operation.name == name:
                images.append(self.disk.image())

        self.disk.fault = look
        work()
        self.disk.fault = no_fault
        return images[-1]


@dataclass(frozen=True)
class State:
    """A store as it was left, and what had been written to it."""

    image: Image
    log: bytes  # the active segment as it was written, whatever the disk kept of it
    contents: dict[int, Contents]  # at each length of the log at which a change ends
    written: set[tuple[bytes, bytes]]

    @cached_property
    def segments(self) -> list[str]:
        """Return the paths of the segments in the manifest, the active one last."""
        segments = described(self.image[in_store(MANIFEST)])
        return [in_store(segment_name(number)) for number, _, _ in segments]

    @property
    def active(self) -> str:
        """Return the path of the segment that takes records."""
        return self.segments[-1]

    @cached_property
    def safe(self) -> int:
        """Return how much of the log manifest and mark vouch for."""
        return vouched_for(self.image)

    @cached_property
    def ends(self) -> list[int]:
        """Return where changes end in the log, rising."""
        return sorted(self.contents)


def left(account: Account, image: Image, log: bytes | None = None) -> State:
    """Return the state of a store that was left like this."""
    active = active_in(image)
    with_lock = {
        **image,
        in_store(LOCK): b"4711\n",
    }  # a real one leaves a number behind
    return State(
        with_lock,
        image[active] if log is None else log,
        account.contents[active],
        account.written,
    )


class Size(NamedTuple):
    """How long the values of a store are, and after how many bytes a segment is full."""

    scale: int
    segment_bytes: int


SMALL = Size(1, 192)  # records of 32 and 64 bytes fill the first segment's sectors
LARGE = Size(25, 1500)  # 4 KiB in all


def text(serial: int, length: int) -> bytes:
    """Return a value that no other change writes."""
    return (b"%d-" % serial).ljust(
        length, b"abcdefghijk"[serial % 11 : serial % 11 + 1]
    )


def created(seed: int, size: Size = SMALL) -> Account:
    """Make a store."""
    return Account(seed, size.segment_bytes)


def filled(seed: int, size: Size = SMALL) -> Account:
    """Fill a first segment."""
    account = created(seed, size)
    account.change({b"ada": text(1, 10 * size.scale)})
    account.change({b"bob": text(2, 42 * size.scale)})
    account.change({b"cyd": text(3, 42 * size.scale)})
    return account


def go_on(account: Account, size: Size = SMALL) -> None:
    """Make the first change behind a full segment."""
    account.change({b"dan": text(4, 10 * size.scale)})


def synced(seed: int, size: Size = SMALL) -> Account:
    """Go on to a compaction that has to keep a tombstone, and to a sync."""
    account = filled(seed, size)
    go_on(account, size)
    account.change({b"bob": None})  # the older record is in a segment that stays
    account.change({b"dan": text(5, 40 * size.scale)})
    account.change({b"dan": text(6, 22 * size.scale)})
    account.change({b"eve": text(7, 10 * size.scale)})
    account.compact(0.6)
    account.db.sync()
    return account


def unsynced(seed: int, size: Size = SMALL) -> Account:
    """Go on, with a batch among the changes, and do not sync."""
    account = synced(seed, size)
    account.change({b"hal": text(8, 10 * size.scale)})
    account.change({b"fay": text(9, 5 * size.scale), b"ada": b"", b"cyd": None})
    account.change({b"": bytes(5 * size.scale)})
    account.change({b"fay": None})
    return account


def closed(seed: int, size: Size = SMALL) -> Account:
    """Go on to the end, and close."""
    account = unsynced(seed, size)
    account.db.close()
    return account


def as_it_is(account: Account) -> State:
    """Return the state of a store that was closed, or whose process is killed now."""
    return left(account, account.disk.image())


def left_synced(seed: int) -> State:
    """Leave a store with everything synced, and not closed."""
    account = unsynced(seed)
    account.db.sync()
    return as_it_is(account)


def left_torn(seed: int) -> State:
    """Lose power: the batch has a hole, and behind it are whole records."""
    account = unsynced(seed)
    log = account.disk.image()[active_in(account.disk.image())]
    torn = log[:128] + bytes(32) + log[160:]
    for _, image in account.disk.power_cut().images(10_000):
        if image[active_in(image)] == torn:
            return left(account, image, log)
    raise AssertionError("a power cut is meant to leave such a hole, among others")


def left_mended(seed: int) -> State:
    """Open a store with a torn tail, and close it: the tail is kept in a file beside."""
    torn = left_torn(seed)
    disk = SimulatedDisk(torn.image, seed=seed)
    with kvstore.open(DIRECTORY, filesystem=disk):
        pass
    return replace(torn, image=disk.image())


def left_rotating(seed: int) -> State:
    """Die before the manifest names the new segment."""
    account = filled(seed)
    work = partial(go_on, account)
    return left(account, account.killed_before_last("rename", work))


def left_rotated(seed: int) -> State:
    """Die before the new segment takes its first record."""
    account = filled(seed)
    work = partial(go_on, account)
    return left(account, account.killed_before_last("write", work))


def left_merged(seed: int) -> State:
    """Die in a compaction, before the manifest names the new segments."""
    account = unsynced(seed)
    return left(account, account.killed_before_last("rename", account.compact))


def left_replaced(seed: int) -> State:
    """Die in a compaction, after the manifest has changed: the old segments are there."""
    account = unsynced(seed)
    return left(account, account.killed_before_last("sync_directory", account.compact))


STATES: dict[str, Callable[[int], State]] = {
    "created": lambda seed: as_it_is(created(seed)),
    "rotating": left_rotating,
    "rotated": left_rotated,
    "synced": left_synced,
    "unsynced": lambda seed: as_it_is(unsynced(seed)),
    "torn": left_torn,
    "mended": left_mended,
    "merged": left_merged,
    "replaced": left_replaced,
    "closed": lambda seed: as_it_is(closed(seed)),
    "large": lambda seed: as_it_is(closed(seed, LARGE)),
}
BY_CHANCE = "chance-"


@lru_cache(maxsize=32)
def state_named(name: str, seed: int = 0) -> State:
    """Make a store, and leave it in the state of this name."""
    if name.startswith(BY_CHANCE):
        return left_by_chance(int(name.removeprefix(BY_CHANCE)))
    return STATES[name](seed)


KEYS = [b"", *(b"key-%d" % number for number in range(9)), b"k" * 300]
LONG = (1 << 20) + 70_000  # a value longer than what a scan holds in memory


def left_by_chance(seed: int) -> State:
    """Make a store by chance, with larger values, and leave it in some way."""
    chance = random.Random(seed)
    account = Account(seed, chance.choice((500, 3_000, 20_000)))
    if chance.random() < 0.1:
        account.change({b"long": chance.randbytes(LONG)})
    for _ in range(chance.randrange(10, 60)):
        do_something(account, chance)
    way = chance.choice(("closed", "killed", "power lost"))
    if way == "closed":
        account.db.close()
    image = account.disk.image()
    log = image[active_in(image)]
    if way == "power lost":
        ((_, image),) = account.disk.power_cut().images(1, chance.getrandbits(30))
    return left(account, image, log)


def do_something(account: Account, chance: random.Random) -> None:
    """Do one of the things that a program does with a store."""
    roll = chance.random()
    if roll < 0.08:
        account.compact(chance.random())
    elif roll < 0.16:
        account.db.sync()
    elif roll < 0.2:
        account.db.close()
        account.open()
    else:
        keys = chance.sample(KEYS, chance.choice((1, 1, 1, 4)))
        account.change({key: value_by_chance(account, chance, key) for key in keys})


def value_by_chance(
    account: Account, chance: random.Random, key: bytes
) -> bytes | None:
    """Return a value for a key, or None to delete a key that there is."""
    if key in account.now and chance.random() < 0.3:
        return None
    return chance.randbytes(chance.choice((0, 20, 400, 3_000)))


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
            "sectors zeroed",
        ),
        f"swap{size}": Kind(
            partial(pairs_of_sectors, size),
            partial(exchange, size),
            f"sector {{1}} of {{0}} and sector {{3}} of {{2}}, {size} bytes each, "
            f"have changed places",
            "sectors swapped",
            10,
        ),
    }


KINDS = {
    "bit": Kind(bits_of, flip, "bit {2} of byte {1} of {0} is flipped", "bits", 50),
    "cut": Kind(lengths_of, cut, "{0} is cut to {1} bytes", "truncations", 10),
    "gone": Kind(file_names, take_away, "{0} is gone", "files gone"),
    **kinds_of_sectors(512),
    **kinds_of_sectors(64),
}


def foreign(name: str) -> Kind:
    """Return the exchange of files between a store and another with the same history."""
    other = state_named(name, seed=1).image
    do = partial(swap_file, other)
    return Kind(file_names, do, "{0} is that of another store", "files exchanged")


MIXTURES = 40  # of each store made by chance
SINGLE = ("bit", "cut", "gone", "zero512", "swap512")


def several_by_chance(name: str, image: Image) -> Iterator[str]:
    """Yield mixtures of up to four damages, such as ``cut MARK 3 + gone LOCK``."""
    chance = random.Random(name)
    for _ in range(MIXTURES):
        damaged, parts = image, list[str]()
        for _ in range(chance.choice((1, 1, 2, 3, 4))):
            parts.append(by_chance(chance, damaged))
            damaged = several(damaged, *parts[-1].split())
        if not looks_unfinished(damaged):
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


def looks_unfinished(image: Image) -> bool:
    """Say whether nothing is left that tells of a store that was ever made."""
    first = segment_name(1)
    return (
        set(file_names(image)) <= {LOCK, MANIFEST_ASIDE, first}
        and len(image.get(in_store(first), b"")) <= HEADER_BYTES
    )


def kind_named(kind: str, name: str) -> Kind:
    """Return the kind of damage of this name, for a state of that name."""
    if kind == "foreign":
        return foreign(name)
    if kind == "several":
        return Kind(partial(several_by_chance, name), several, "", "mixtures")
    return KINDS[kind]


def in_english(case: str) -> str:
    """Say in words what a store was, and what was done to it."""
    name, kind, *place = case.split()
    if not place:
        return f"a store left {name}, undamaged"
    words = " ".join(place if kind == "several" else [kind, *place])
    parts = (part.split() for part in words.split(" + "))
    damages = (kind_named(each, name).words.format(*at) for each, *at in parts)
    return f"a store left {name}; {', then '.join(damages)}"


# What has to come of it.


class Expected(NamedTuple):
    """What the store has to say about its files."""

    errors: dict[str, set[int]]  # which places an error may name; none: no error
    safe: int  # how much of the log is vouched for
    end: int  # where the log ends
    moved: bool  # whether a whole record stands where another one was


def expected(state: State, damaged: Image) -> Expected:
    """Return what has to come of damage."""
    errors: dict[str, set[int]] = {}
    manifest = damaged.get(in_store(MANIFEST))
    if manifest != state.image[in_store(MANIFEST)]:
        errors |= places_for_manifest(manifest)
    for path in state.segments[:-1]:
        if damaged.get(path) != state.image[path]:
            errors[path] = places_in_segment(state.image[path], damaged.get(path))
    mark_stands = damaged.get(in_store(MARK)) == state.image[in_store(MARK)]
    safe = state.safe if mark_stands else noted(state.image)
    log = damaged.get(state.active)
    whole = 0 if log is None else in_common(state.log, log)
    moved = log is not None and stands_elsewhere(state.log, log, whole)
    if whole < safe and not moved:
        written = state.log[: len(state.image[state.active])]
        errors[state.active] = places_in_segment(written, log)
    return Expected(errors, safe, last_before(state.ends, whole), moved)


def places_for_manifest(raw: bytes | None) -> dict[str, set[int]]:
    """Return where an error may say that the trouble is, if the manifest is not ours."""
    path = in_store(MANIFEST)
    if raw is None:
        return {path: {0}}
    if is_whole(raw):
        return {in_store(segment_name(number)): {20} for number, _, _ in described(raw)}
    return {path: {len(raw) if len(raw) < SHORTEST_MANIFEST else 0}}


def places_in_segment(written: bytes, raw: bytes | None) -> set[int]:
    """Return the offsets that an error may name in a segment that should be whole."""
    if raw is None:
        return {0}
    first, last = changed_bytes(written, raw)
    if first < HEADER_BYTES:
        return {place_in_header(written, raw)}
    where = borders(written)
    start = last_before(where.batches, first)
    return {place for place in where.records if start <= place <= last}


def place_in_header(written: bytes, raw: bytes) -> int:
    """Return the offset of what is wrong with a header."""
    if len(raw) < HEADER_BYTES:
        return len(raw)
    if not is_whole(raw[:HEADER_BYTES]):
        return 0
    return 12 if raw[12:20] != written[12:20] else 20


def changed_bytes(written: bytes, raw: bytes) -> tuple[int, int]:
    """Return the first and the last byte that is not as written."""
    first = in_common(written, raw)
    if len(written) != len(raw):
        return first, len(raw)
    return first, len(raw) - 1 - in_common(written[::-1], raw[::-1])


def stands_elsewhere(written: bytes, raw: bytes, first: int) -> bool:
    """Say whether a whole record of this log begins in the place of another one."""
    starts = borders(written).records
    place = last_before(starts, first)
    records = {written[a:b]: a for a, b in pairwise(starts[1:])}
    return any(
        raw.startswith(record, place) and start != place
        for record, start in records.items()
    )


class Found(NamedTuple):
    """What a store says that could be opened."""

    contents: Contents
    items: Contents
    length: int
    torn: Cut | None
    opening: int  # how many calls to the disk it took to open it


@dataclass
class Trial:
    """One damage to one store, and whether the store holds its promises."""

    state: State
    damaged: Image
    case: str  # the words that replay it
    flag: Flag = "r"

    @cached_property
    def expected(self) -> Expected:
        """Return what has to come of it."""
        return expected(self.state, self.damaged)

    def broken(self, promise: str, what: str) -> Broken:
        """Return the failure, with what was seen."""
        state = f"{in_english(self.case)}; opened with flag {self.flag!r}: {what}"
        return Broken(promise, state, f"{NAME} {self.case}")

    def check(self, *, thorough: bool) -> Tally:
        """Open the store with each flag, and check what comes of it."""
        tally: Tally = Counter()
        for flag in FLAGS:
            tally.update(self.check_with(flag, thorough=thorough and flag == "c"))
        return tally

    def check_with(self, flag: Flag, *, thorough: bool) -> Tally:
        """Open the store, read all of it, and check what comes of it."""
        self.flag = flag
        disk = SimulatedDisk(self.damaged)
        outcome = self.look(disk, flag)
        if isinstance(outcome, Found):
            self.check_found(outcome, disk)
            if thorough:
                self.check_final(outcome, disk)
            return Counter(["right answers" if outcome.torn is None else "torn tails"])
        self.check_error(outcome, disk)
        if thorough:
            self.rescue(disk)
        return Counter(["errors", "rescues"] if thorough else ["errors"])

    def look(self, disk: SimulatedDisk, flag: Flag) -> Found | kvstore.KVStoreError:
        """Return what is found in the store, or the error that it has a name for."""
        try:
            with kvstore.open(DIRECTORY, flag, filesystem=disk) as db:
                opening = len(disk.operations)
                contents = {key: db[key] for key in db}
                items = dict(db.items())
                return Found(contents, items, len(db), db.torn_tail, opening)
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
        path = in_store(MANIFEST)
        foreign = not self.damaged.get(path, MANIFEST_MAGIC).startswith(MANIFEST_MAGIC)
        if type(error) is kvstore.ForeignDirectoryError:
            return foreign and path in str(error)
        if type(error) is not kvstore.CorruptionError or error.path not in str(error):
            return False
        if self.expected.moved and error.path == self.state.active:
            return True
        due = self.expected.errors.get(error.path, set())
        return error.offset in due and not (foreign and error.path == path)

    def check_found(self, found: Found, disk: SimulatedDisk) -> None:
        """Check that what was found is right, and what became of the files."""
        self.check_contents(found)
        self.check_tail(found.torn, disk.image())
        self.check_reads(disk.operations[: found.opening])
        if self.flag == "r":
            self.check_untouched(disk)

    def check_contents(self, found: Found) -> None:
        """Check that no error was due, and that the answers are right."""
        contents, right = found.contents, self.state.contents[self.expected.end]
        answers = f"found {in_words(contents)}, and right is {in_words(right)}"
        if not self.state.written.issuperset(contents.items()):
            raise self.broken(CHECKED, answers)
        if self.expected.errors:
            due = ", ".join(sorted(self.expected.errors))
            raise self.broken(UNNOTICED, f"no error for {due}; {answers}")
        if contents != right and not self.expected.moved:
            raise self.broken(PREFIX, answers)
        if found.items != contents or found.length != len(contents):
            raise self.broken(NEWEST, "gets, an iteration and the length differ")

    def check_tail(self, torn: Cut | None, image: Image) -> None:
        """Check that bytes behind the end of the log are reported, and kept by a writer."""
        path, log = self.state.active, self.damaged[self.state.active]
        end = torn.offset if torn and self.expected.moved else self.expected.end
        if torn is None:
            if end < len(log):
                raise self.broken(REPORTED, f"no word of {len(log) - end} bytes")
            return
        kept, rest = (log, None) if self.flag == "r" else (log[:end], log[end:])
        if (
            (torn.path, torn.offset, torn.length) != (path, end, len(log) - end)
            or image[path] != kept
            or image.get(torn.kept_as or "") != rest
        ):
            what = f"reported: {torn}; there are {len(log) - end} bytes at {end}"
            raise self.broken(REPORTED, what)

    def check_untouched(self, disk: SimulatedDisk) -> None:
        """Check that no file was changed, but for a writer's lock."""
        lock = {} if self.flag == "r" else {in_store(LOCK): b""}
        before, after = self.damaged | lock, disk.image() | lock
        if before != after:
            paths = sorted(dict(before.items() ^ after.items()))
            raise self.broken(UNTOUCHED, f"changed: {', '.join(paths)}")

    def check_final(self, found: Found, disk: SimulatedDisk) -> None:
        """Check that whoever opens the store next finds the same."""
        again = self.look(disk, "r")
        if (
            not isinstance(again, Found)
            or again.contents != found.contents
            or again.torn is not None
        ):
            raise self.broken(FINAL, f"the next one to open it finds {again!r}")

    def check_reads(self, operations: list[Operation]) -> None:
        """Check how many bytes were read until the store was open, or refused."""
        for path, count in self.bytes_read(operations).items():
            most = self.most_to_read(path)
            if count > most:
                what = f"{count} bytes of {path} were read, and {most} are enough"
                raise self.broken(BELIEVED, what)

    def bytes_read(self, operations: list[Operation]) -> Tally:
        """Count bytes, file by file, and check that each read asks for what there is."""
        read: Tally = Counter()
        for name, path, offset, length in operations:
            if name == "read" and path in self.damaged:
                size, end = len(self.damaged[path]), offset + length
                if end > size and end > fixed_bytes(path):
                    what = f"{length} bytes at {offset} of {path}, which has {size}"
                    raise self.broken(BELIEVED, f"asked for: {what}")
                read[path] += max(0, min(end, size) - offset)
        return read

    def most_to_read(self, path: str) -> int:
        """Return how many bytes of a file may be read until the store is open."""
        size = len(self.damaged[path])
        if path == in_store(MANIFEST):
            return 3 * size
        if path not in self.state.segments:
            return size if path == in_store(MARK) else 0
        overlaps = size // WINDOW_BYTES * LONGEST_START
        is_kept = path == self.state.active and self.flag == "c"
        above_mark = max(0, size - self.expected.safe) if is_kept else 0
        return size + overlaps + above_mark

    def rescue(self, disk: SimulatedDisk) -> None:
        """Salvage what is left, and check that it was written, and that all is reported."""
        before, calls = disk.image(), len(disk.operations)
        try:
            report = kvstore.salvage(DIRECTORY, TARGET, filesystem=disk)
            with kvstore.open(TARGET, "r", filesystem=disk) as db:
                rescued = dict(db)
        except kvstore.StoreNotFoundError as error:
            if any(path.endswith(".segment") for path in before):
                raise self.broken(RESCUED, repr(error)) from error
            return
        except Exception as error:
            raise self.broken(RESCUED, repr(error)) from error
        if not self.state.written.issuperset(rescued.items()):
            raise self.broken(RESCUED, f"rescued {in_words(rescued)}")
        if report.manifest_read and not report.left_out:
            raise self.broken(RESCUED, f"the report has nothing to say: {report}")
        if not before.items() <= disk.image().items():
            raise self.broken(UNTOUCHED, "salvage has changed the damaged store")
        read = self.bytes_read(disk.operations[calls:]).total()
        most = (2 + 3 * len(report.left_out)) * sum(map(len, before.values()))
        if read > most:
            raise self.broken(BELIEVED, f"salvage has read {read} bytes, not {most}")


def fixed_bytes(path: str) -> int:
    """Return how many bytes may be asked for without a look at the file's length."""
    if path == in_store(MARK):
        return MARK_BYTES
    return HEADER_BYTES if path.endswith(".segment") else 0


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

    def map(self, file: File, length: int) -> LiveView:  # type: ignore[override]
        """Show the file."""
        return LiveView(self, file, length)

    def flip(self, name: str, byte: int, bit: int) -> None:
        """Flip one bit of a file."""
        file = self.open(in_store(name), writable=True)
        (value,) = self.pread(file.descriptor, 1, byte)
        self.pwrite(file.descriptor, bytes([value ^ 1 << bit]), byte)


class LiveTrial:
    """A store that is open, while one bit after the other is flipped and flipped back."""

    def __init__(self, name: str) -> None:
        state = state_named(name)
        self.name = name
        self.disk = LiveDisk(state.image)
        self.db = kvstore.open(DIRECTORY, filesystem=self.disk)
        self.right = state.contents[expected(state, state.image).end]
        self.image = self.disk.image()
        self.place = ""

    def broken(self, promise: str, what: str) -> Broken:
        """Return the failure, with what was seen."""
        state = (
            f"{in_english(f'{self.name} bit {self.place}')}, while it is open: {what}"
        )
        return Broken(promise, state, f"{NAME} {self.name} live {self.place}".strip())

    def check(self, place: str) -> None:
        """Flip a bit, read everything, verify, and flip it back."""
        self.place = place
        name, byte, bit = place.split()
        self.disk.flip(name, int(byte), int(bit))
        self.check_gets(in_store(name), int(byte))
        self.check_verify(name, int(byte))
        self.disk.flip(name, int(byte), int(bit))

    def check_gets(self, path: str, byte: int) -> None:
        """Check that each key is right, or that the error names the record."""
        if set(self.db) != self.right.keys():
            raise self.broken(NEWEST, f"the keys are {sorted(self.db)}")
        for key, value in self.right.items():
            try:
                got = self.db[key]
            except kvstore.CorruptionError as error:
                start = last_before(
                    borders(self.image.get(error.path, b"")).records, byte
                )
                if (error.path, error.offset) != (path, start):
                    raise self.broken(MISPLACED, repr(error)) from error
            else:
                if got != value:
                    raise self.broken(CHECKED, f"{key!r} holds {got!r}, not {value!r}")

    def check_verify(self, name: str, byte: int) -> None:
        """Check that verify names the damaged place, if it counts."""
        damage = self.db.verify().damage
        if name == LOCK or ".cut-" in name:
            right = not damage
        else:
            right = len(damage) == 1 and (
                damage[0].path == in_store(name)
                and 0 <= byte - damage[0].offset < damage[0].length
            )
        if not right:
            raise self.broken(LISTED, f"it says {damage}")

    def check_whole(self) -> None:
        """Check that nothing is wrong when nothing is flipped."""
        self.place = ""
        if dict(self.db) != self.right or not self.db.verify().ok:
            raise self.broken(ALARM, f"nothing is flipped, and {self.db.verify()}")


# The programme.

SMALL_STATES = [name for name in STATES if name != "large"]
CASES = [
    *(f"{name} {kind}" for name in SMALL_STATES for kind in (*KINDS, "foreign")),
    *(f"large {kind}" for kind in ("bit", "cut", "gone", "zero512", "swap512")),
    *(f"{name} live" for name in ("closed", "mended")),
    *(f"{BY_CHANCE}{seed} several" for seed in range(1, 9)),
]


def another(seed: int) -> str:
    """Return a case with a store made by chance, and mixtures of damage."""
    return f"{BY_CHANCE}{seed} several"


def run(case: str) -> Tally:
    """Do one damage, or all of one kind, and check what comes of it."""
    name, kind, *place = case.split()
    if kind == "live":
        return run_live(name, " ".join(place))
    return run_kind(name, kind, " ".join(place))


def run_kind(name: str, kind: str, place: str) -> Tally:
    """Try one place or, after the undamaged store, every place."""
    state, how = state_named(name), kind_named(kind, name)
    tally: Tally = Counter()
    if not place:
        Trial(state, state.image, f"{name} {kind}").check(thorough=True)
    for number, each in enumerate([place] if place else how.places(state.image)):
        trial = Trial(
            state, how.do(state.image, *each.split()), f"{name} {kind} {each}"
        )
        tally.update(trial.check(thorough=number % how.thorough == 0))
        tally[how.counted] += 1
    return tally


def run_live(name: str, place: str) -> Tally:
    """Flip one bit under an open store, or each bit."""
    trial = LiveTrial(name)
    places = [place] if place else list(bits_of(trial.image))
    trial.check_whole()
    for each in places:
        trial.check(each)
    trial.check_whole()
    return Counter({"bits under an open store": len(places)})
