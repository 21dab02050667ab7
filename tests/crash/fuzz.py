"""Bytes of any kind, given to everything that parses bytes.

A file may hold anything: half of what was written, another file's bytes, what somebody
put there on purpose. A parser reads it as exactly what it says, or refuses it with an error
that has a name. It raises nothing else, and asks for no bytes that are not there.

An input begins as a real record, file or store. It is then changed: flipped bits, ranges
cut, repeated or moved, numbers set to their limits. Half of the changed inputs get a right
checksum again, so that a parser goes on to what it checks next. What it answers is held
against `record_length`, the table of the format in a few lines and nothing more, and
against the store's own encoders: what was accepted has to encode to the same bytes.

Nothing here is timed. What bounds the time is how many bytes are read, and the simulated
disk counts them.

The corpus beside this module holds single inputs, run by every test. Most were made by hand,
one for each thing that a parser has to notice. Those whose names begin with "found" come from
a coverage-guided run of some minutes over the parsers.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar
from zlib import crc32

from proof import Broken, Contents, Tally
from support import small_store

import kvstore
from kvstore.errors import (
    BadRecordError,
    CorruptionError,
    ForeignDirectoryError,
    KVStoreError,
    LimitError,
    NewerFormatError,
    StoreNotFoundError,
)
from kvstore.manifest import Manifest, decode_manifest
from kvstore.mark import Mark, decode_mark, encode_mark
from kvstore.record import (
    CONTINUED,
    DELETE,
    HEAD,
    OVERHEAD_BYTES,
    PUT,
    Head,
    Record,
    decode,
    encode,
    parse_head,
)
from kvstore.recovery import SEARCH_EFFORT, Damage, next_whole_record, survey
from kvstore.segment import (
    HEADER,
    MAGIC,
    VERSION,
    WINDOW_BYTES,
    Description,
    Entry,
    Segment,
)
from kvstore.simdisk import Image, Operation, SimulatedDisk

NAME = "fuzz"
CASES = [
    "record 1",
    "manifest 1",
    "mark 1",
    "segment 1",
    "search 1",
    "directory 1",
    "limits closed",
    "limits open",
]
CORPUS = Path(__file__).parent / "corpus"

AS_IT_SAYS = (
    "T8, no guesses: any bytes are read as exactly what they say, or refused with an "
    "error that has a name"
)
NO_MORE = (
    "T8, no guesses: no length that a file claims makes the store read or hold more"
)
ALL_LEFT = "T8, no guesses: of a damaged file everything is read or reported"
NEWEST = "T3, the newest, checked: a store holds the newest record of every key"
ALL_OF_A_BATCH = (
    "T5, all or nothing: a batch without its end is left out by salvage too"
)
STAYS = "T7, safe when you say: what a store took and closed with is there again"

T = TypeVar("T")
Random = random.Random
Outcome = type[KVStoreError] | Literal["whole"] | None  # None: a mark that says nothing


@dataclass
class Trial:
    """One input: how it was made, in words, and the case that makes it again."""

    case: str
    steps: list[str] = field(default_factory=list)

    def broken(self, promise: str, what: str) -> Broken:
        """Return the error for a promise that this input broke."""
        state = (
            f"{what}. The input: {', then '.join(self.steps) or 'as it was written'}"
        )
        return Broken(promise, state, f"{NAME} {self.case}")

    @contextmanager
    def only(self, *named: type[KVStoreError]) -> Iterator[None]:
        """Let these errors pass; any other is a broken promise."""
        passed: tuple[type[Exception], ...] = (Broken, *named)
        try:
            yield
        except passed:
            raise
        except Exception as error:
            what = f"{type(error).__name__} was raised ({error})"
            raise self.broken(AS_IT_SAYS, what) from error

    def answer(
        self, work: Callable[[], T], *named: type[KVStoreError]
    ) -> T | KVStoreError:
        """Return what a parser returned or raised, if it may raise that."""
        try:
            with self.only(*named):
                return work()
        except named as error:
            return error


# What the format says

KINDS = {b"\x01", b"\x02", b"\x81", b"\x82"}


def number_at(raw: bytes, place: int, width: int) -> int:
    """Return the number in some bytes."""
    return int.from_bytes(raw[place : place + width], "little")


def sealed(body: bytes, seed: int = 0) -> bytes:
    """Return some bytes with their checksum behind them."""
    return body + crc32(body, seed).to_bytes(4, "little")


def is_sealed(raw: bytes, seed: int = 0) -> bool:
    """Say whether the last four bytes are the checksum of those before."""
    return len(raw) >= 4 and raw == sealed(raw[:-4], seed)


def record_length(raw: bytes, place: int, seed: int) -> int:
    """Return the length of the whole record at a place, or 0 if there is none."""
    if raw[place : place + 1] not in KINDS:
        return 0
    key_bytes, value_bytes = number_at(raw, place + 9, 2), number_at(raw, place + 11, 4)
    length = 19 + key_bytes + value_bytes
    fits = (
        place + length <= len(raw)
        and number_at(raw, place + 1, 8) < 2**56
        and value_bytes <= 2**30
    )
    return length if fits and is_sealed(raw[place : place + length], seed) else 0


def run_of_records(raw: bytes, seed: int) -> list[tuple[int, int]]:
    """Return offset and length of the records that a scan of a segment may yield."""
    run, place, newest = [], 32, -1
    while length := record_length(raw, place, seed):
        if number_at(raw, place + 1, 8) <= newest:
            break
        run.append((place, length))
        place, newest = place + length, number_at(raw, place + 1, 8)
    return run


def first_record(raw: bytes, start: int, seed: int) -> int:
    """Return where the next whole record is, or the end, after a look at every place."""
    places = range(start, len(raw))
    return next((p for p in places if record_length(raw, p, seed)), len(raw))


# Changes

LIMITS = [
    0,
    1,
    2,
    *(2**bits + n for bits in (7, 8, 16, 30, 32, 56, 63, 64) for n in (-1, 0, 1)),
]
Fields = tuple[tuple[int, int], ...]  # offset and width of the numbers in a format


def flip_a_bit(chance: Random, raw: bytearray, _: Fields) -> str:
    """Flip one bit."""
    place = chance.randrange(len(raw))
    raw[place] ^= 1 << chance.randrange(8)
    return f"a bit of byte {place} flipped"


def a_range(chance: Random, raw: bytes | bytearray) -> slice:
    """Return a range of some bytes, mostly a short one."""
    start = chance.randrange(len(raw))
    return slice(start, start + chance.choice((1, 4, 19, len(raw))))


def cut_off(chance: Random, raw: bytearray, _: Fields) -> str:
    """Drop everything from some place on."""
    length = chance.randrange(len(raw))
    del raw[length:]
    return f"cut to {length} bytes"


def drop(chance: Random, raw: bytearray, _: Fields) -> str:
    """Drop a range."""
    gone = a_range(chance, raw)
    del raw[gone]
    return f"bytes {gone.start} to {gone.stop} dropped"


def splice(chance: Random, raw: bytearray, _: Fields) -> str:
    """Insert a copy of a range, or zeros, or anything."""
    copied = raw[a_range(chance, raw)]
    more = chance.choice((copied, bytes(len(copied)), chance.randbytes(len(copied))))
    place = chance.randrange(len(raw) + 1)
    raw[place:place] = more
    return f"{len(more)} bytes inserted at {place}"


def overwrite(chance: Random, raw: bytearray, _: Fields) -> str:
    """Write a copy of a range over another."""
    copied, place = raw[a_range(chance, raw)], chance.randrange(len(raw))
    raw[place : place + len(copied)] = copied
    return f"{len(copied)} bytes written over those at {place}"


def set_a_number(chance: Random, raw: bytearray, fields: Fields) -> str:
    """Set one of the numbers to a limit, or near the length."""
    place, width = chance.choice(fields)
    near = len(raw) - chance.choice((-1, 0, 1, 19, 32))
    number = chance.choice((*LIMITS, near)) % 2 ** (8 * width)
    raw[place : place + width] = number.to_bytes(width, "little")
    return f"the number at {place} set to {number}"


CHANGES = (flip_a_bit, cut_off, drop, splice, overwrite, set_a_number, set_a_number)


def changed(
    chance: Random, raw: bytes, fields: Fields, seed: int, trial: Trial
) -> bytes:
    """Return the bytes after some changes, half of the times with a right checksum."""
    result = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if result:
            trial.steps.append(chance.choice(CHANGES)(chance, result, fields))
    if chance.random() < 0.5:
        return bytes(result)
    trial.steps.append("a right checksum")
    return sealed(bytes(result[:-4]), seed)


# One record

RECORD_FIELDS: Fields = ((0, 1), (1, 8), (9, 2), (11, 4))
RECORD_SEED = 5  # of every record that is not in a file


def some_bytes(chance: Random, seed: int) -> bytes:
    """Return bytes for a value: short, empty, a record in themselves, its head alone."""
    inner = encode(PUT, chance.choice((1, 7, 2**56 - 1)), b"inner", b"value", seed)
    return chance.choice(
        (
            b"",
            bytes(20),
            inner,
            inner[:15] * 3,
            chance.randbytes(chance.choice((9, 300))),
        )
    )


def some_record(chance: Random, sequence: int, seed: int) -> bytes:
    """Return a record as the store writes them."""
    kind = chance.choice((PUT, PUT, DELETE)) | chance.choice((0, 0, CONTINUED))
    key = chance.choice((b"", b"ada", b"bob", chance.randbytes(40)))
    return encode(kind, sequence, key, some_bytes(chance, seed), seed)


def share_lengths_anew(chance: Random, raw: bytes, seed: int) -> bytes:
    """Return a record whose lengths fit, with the border of key and value elsewhere."""
    kind, sequence, key_bytes, value_bytes = HEAD.unpack_from(raw)
    shared = key_bytes + value_bytes
    key_bytes = chance.randrange(shared + 1)
    head = HEAD.pack(kind, sequence, key_bytes, shared - key_bytes)
    return sealed(head + raw[HEAD.size : -4], seed)


def make_record(chance: Random, trial: Trial) -> bytes:
    """Return a record, mostly changed."""
    sequence = chance.choice((0, 1, 77, 2**56 - 1))
    raw = some_record(chance, sequence, RECORD_SEED)
    way = chance.random()
    if way < 0.1:
        return raw
    if way < 0.2:
        trial.steps.append("the border of key and value moved")
        return share_lengths_anew(chance, raw, RECORD_SEED)
    return changed(chance, raw, RECORD_FIELDS, RECORD_SEED, trial)


def check_record(raw: bytes, trial: Trial) -> Outcome:
    """Give some bytes to what parses records."""
    for place in (0, len(raw) // 2, len(raw)):
        check_head(raw, place, trial)
    record = within_memory(raw, trial, lambda: decode(raw, RECORD_SEED), BadRecordError)
    whole = bool(raw) and record_length(raw, 0, RECORD_SEED) == len(raw)
    if isinstance(record, Record) != whole:
        what = f"the record is {'whole' if whole else 'not whole'}: {record}"
        raise trial.broken(AS_IT_SAYS, what)
    if not isinstance(record, Record):
        return type(record)
    check_same(encode(*record, RECORD_SEED), raw, trial)
    return "whole"


def check_head(raw: bytes, place: int, trial: Trial) -> None:
    """Raise if a head passes that claims more bytes than are left from a place on."""
    left = len(raw) - place
    head = within_memory(
        raw, trial, lambda: parse_head(raw, place, left), BadRecordError
    )
    if isinstance(head, Head) and head.length > left:
        what = f"a head at {place} passed that claims {head.length} bytes of {left}"
        raise trial.broken(NO_MORE, what)


def within_memory(
    raw: bytes, trial: Trial, work: Callable[[], T], *named: type[KVStoreError]
) -> T | KVStoreError:
    """Return what a parser answers, and make sure that it took no more than its share."""
    tracemalloc.start()
    try:
        answer = trial.answer(work, *named)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if most > 16_384 + 32 * len(raw):
        what = f"{most:,} bytes of memory were taken for {len(raw):,} bytes"
        raise trial.broken(NO_MORE, what)
    return answer


def check_same(again: bytes, raw: bytes, trial: Trial) -> None:
    """Raise unless what was read encodes to the very bytes that it was read from."""
    if again != raw:
        what = f"what was read of {raw.hex()} is written as {again.hex()}"
        raise trial.broken(AS_IT_SAYS, what)


# The manifest and the mark

MANIFEST_FIELDS: Fields = (
    *((8, 4), (12, 8), (20, 8), (28, 4)),
    *(
        (32 + 20 * n + place, w)
        for n in range(4)
        for place, w in ((0, 8), (8, 4), (12, 8))
    ),
)
MARK_FIELDS: Fields = ((8, 4), (12, 8), (20, 4), (24, 8), (32, 4))


def make_manifest(chance: Random, trial: Trial) -> bytes:
    """Return a manifest, mostly changed."""
    count = chance.choice((0, 1, 2, 9))
    segments = [
        Description(1 + n, chance.getrandbits(32), chance.randrange(32, 2**31))
        for n in range(count)
    ]
    active = Description(count + 1, chance.getrandbits(32), chance.choice((32, 4096)))
    sequence = chance.randrange(2**50)
    raw = Manifest(count + 2, sequence, tuple(segments), active).encode()
    if chance.random() < 0.1:
        return raw
    return changed(chance, raw, MANIFEST_FIELDS, 0, trial)


def check_manifest(raw: bytes, trial: Trial) -> Outcome:
    """Give some bytes to what parses manifests."""
    named = CorruptionError, ForeignDirectoryError, NewerFormatError
    answer = within_memory(raw, trial, lambda: decode_manifest(raw, "here"), *named)
    if isinstance(answer, Manifest):
        check_same(answer.encode(), raw, trial)
        return "whole"
    if isinstance(answer, NewerFormatError):
        check_newer(raw, 8, trial)
    return type(answer)


def check_newer(raw: bytes, place: int, trial: Trial) -> None:
    """Raise unless some bytes are truly of a newer format, by a number that is sealed."""
    if not is_sealed(raw) or number_at(raw, place, 4) < 2:
        raise trial.broken(AS_IT_SAYS, "damage was taken for a newer format")


def make_mark(chance: Random, trial: Trial) -> bytes:
    """Return a mark, mostly changed."""
    synced = Description(
        chance.randrange(99), chance.getrandbits(32), chance.randrange(2**31)
    )
    raw = encode_mark(Mark(synced, chance.random() < 0.5))
    if chance.random() < 0.1:
        return raw
    return changed(chance, raw, MARK_FIELDS, 0, trial)


def check_mark(raw: bytes, trial: Trial) -> Outcome:
    """Give some bytes to what parses marks."""
    answer = within_memory(raw, trial, lambda: decode_mark(raw))
    if not isinstance(answer, Mark):
        return None
    check_same(encode_mark(answer), raw, trial)
    return "whole"


# A segment

HEADER_FIELDS: Fields = ((8, 4), (12, 8), (20, 8))
PATH = "store/00000001.segment"


def header(chance: Random, number: int = 1) -> bytes:
    """Return the header of a segment."""
    return sealed(HEADER.pack(MAGIC, VERSION, number, chance.randbytes(8)))


def seed_of(parts: list[bytes]) -> int:
    """Return the seed of a segment in parts."""
    return number_at(parts[0], 28, 4)


def parts_of(raw: bytes) -> list[bytes]:
    """Return the header of a segment, its records, and what stands behind them, if any."""
    run = run_of_records(raw, number_at(raw, 28, 4))
    end = sum(run[-1]) if run else 32
    parts = [raw[:32], *(raw[place : place + length] for place, length in run)]
    return [*parts, raw[end:]] if raw[end:] else parts


def swap_parts(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Let two records change places."""
    one, other = (chance.randrange(1, len(parts)) for _ in range(2))
    parts[one], parts[other] = parts[other], parts[one]
    trial.steps.append(f"records {one} and {other} swapped")


def drop_part(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Drop a record."""
    which = chance.randrange(1, len(parts))
    del parts[which]
    trial.steps.append(f"record {which} dropped")


def repeat_part(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Write a record once more, in another place."""
    which, place = (chance.randrange(1, len(parts)) for _ in range(2))
    parts.insert(place, parts[which])
    trial.steps.append(f"record {which} repeated as {place}")


def insert_part(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Insert what is no record here: a head that lies, another file's record, nothing."""
    length = chance.choice(LIMITS) % 2**32
    lie = chance.choice(parts[1:])[:11] + length.to_bytes(4, "little")
    stale = some_record(chance, 9, chance.getrandbits(32))
    place = chance.randrange(1, len(parts) + 1)
    parts.insert(place, chance.choice((lie, stale, bytes(50), chance.randbytes(30))))
    trial.steps.append(
        f"{len(parts[place])} bytes that are no record put in as {place}"
    )


def change_part(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Change the bytes of one record."""
    which = chance.randrange(1, len(parts))
    trial.steps.append(f"of record {which}")
    parts[which] = changed(chance, parts[which], RECORD_FIELDS, seed_of(parts), trial)


def change_header(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Change the header, and bind the records to it if it has another seed now."""
    trial.steps.append("of the header")
    parts[0] = changed(chance, parts[0], HEADER_FIELDS, 0, trial)
    if len(parts[0]) == 32:
        parts[1:] = [sealed(each[:-4], seed_of(parts)) for each in parts[1:]]


PART_CHANGES = (
    swap_parts,
    drop_part,
    repeat_part,
    insert_part,
    change_part,
    change_part,
)


def changed_segment(chance: Random, raw: bytes, trial: Trial) -> bytes:
    """Return a segment after changes to its parts, or to its bytes."""
    parts = parts_of(raw)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        if len(parts) > 1:
            chance.choice(PART_CHANGES)(chance, parts, trial)
    if chance.random() < 0.1:
        change_header(chance, parts, trial)
    result = bytearray(b"".join(parts))
    if result and chance.random() < 0.3:
        trial.steps.append(chance.choice(CHANGES)(chance, result, HEADER_FIELDS))
    return bytes(result)


def make_segment(chance: Random, trial: Trial) -> bytes:
    """Return a segment of some records, mostly changed."""
    first = header(chance)
    seed, sequence, records = number_at(first, 28, 4), 0, []
    for _ in range(chance.choice((0, 1, 2, 12))):
        sequence += chance.choice((1, 1, 1000))
        records.append(some_record(chance, sequence, seed))
    raw = first + b"".join(records)
    return raw if chance.random() < 0.1 else changed_segment(chance, raw, trial)


@dataclass
class Budget:
    """How many bytes may be read in all: what a disk asks before each call."""

    left: int
    trial: Trial

    def __call__(self, operation: Operation) -> None:
        """Take a read off the budget, and raise if that is too much."""
        if operation.name == "read":
            self.left -= operation.length
        if self.left < 0:
            what = f"{operation}: {-self.left:,} bytes more than this should take"
            raise self.trial.broken(NO_MORE, what)


def small_disk(image: Image, trial: Trial) -> SimulatedDisk:
    """Return a disk of small files, with a budget that no loop without an end keeps to."""
    disk = SimulatedDisk(image)
    disk.fault = Budget(65_536 + 256 * sum(map(len, image.values())), trial)
    return disk


def check_segment(raw: bytes, trial: Trial) -> Outcome:
    """Give a file to all that reads segments."""
    disk = small_disk({PATH: raw}, trial)
    named = CorruptionError, NewerFormatError
    answer = trial.answer(lambda: Segment.open(disk, "store", 1), *named)
    check_opening(raw, answer, trial)
    if not isinstance(answer, Segment):
        return type(answer)
    outcome = check_scan(raw, answer, trial)
    check_read_once(disk, raw, trial)
    check_survey(raw, answer, trial)
    check_search(raw, answer, (32 + len(raw)) // 2, trial)
    check_extents(disk, {PATH: raw}, trial)
    return outcome


def check_opening(raw: bytes, answer: Segment | KVStoreError, trial: Trial) -> None:
    """Raise unless a segment was opened for the right header, and for no other."""
    right = raw[:8] == b"KVSEGM\r\n" and is_sealed(raw[:32]) and len(raw) >= 32
    whole = right and number_at(raw, 8, 4) == 1 and number_at(raw, 12, 8) == 1
    if isinstance(answer, Segment) != whole:
        what = (
            f"a header is {'right' if whole else 'wrong'}, and the answer was {answer}"
        )
        raise trial.broken(AS_IT_SAYS, what)
    if isinstance(answer, NewerFormatError):
        check_newer(raw[:32], 8, trial)


def check_scan(raw: bytes, segment: Segment, trial: Trial) -> Outcome:
    """Raise unless a scan yields what the format says, up to where it says so."""
    entries: list[Entry] = []
    trouble = trial.answer(lambda: entries.extend(segment.scan()), CorruptionError)
    found = [(entry.offset, entry.length) for entry in entries]
    expected = run_of_records(raw, segment.seed)
    if found != expected:
        what = f"a scan found records at {found}, and they are at {expected}"
        raise trial.broken(AS_IT_SAYS, what)
    for entry in entries:
        check_entry(raw, segment, entry, trial)
    end = sum(expected[-1]) if expected else 32
    if isinstance(trouble, CorruptionError):
        if (trouble.path, trouble.offset) != (PATH, end) or end == len(raw):
            what = f"the trouble is at {end}, and the error says {trouble}"
            raise trial.broken(AS_IT_SAYS, what)
        return CorruptionError
    if end != len(raw):
        what = f"a scan ended without an error at {end} of {len(raw)} bytes"
        raise trial.broken(AS_IT_SAYS, what)
    return "whole"


def check_read_once(disk: SimulatedDisk, raw: bytes, trial: Trial) -> None:
    """Raise if to open and to scan a file took more than its bytes, each of them once."""
    taken = sum(length for _, _, length in reads(disk))
    if taken > len(raw):
        what = f"a scan of {len(raw)} bytes, which fit a window, read {taken}"
        raise trial.broken(NO_MORE, what)


def check_entry(raw: bytes, segment: Segment, entry: Entry, trial: Trial) -> None:
    """Raise unless the record that was found encodes to the bytes that it stands for."""
    with trial.only():
        value = segment.value(entry.offset, entry.length, entry.key)
    again = encode(entry.kind, entry.sequence, entry.key, value, segment.seed)
    check_same(again, raw[entry.offset : entry.offset + entry.length], trial)


def check_survey(raw: bytes, segment: Segment, trial: Trial) -> None:
    """Raise unless a survey accounts for every byte, and leaves out no whole record."""
    with trial.only():
        found = list(survey(segment))
    place = 32
    for piece in found:
        length = piece.length
        whole = record_length(raw, place, segment.seed)
        if piece.offset != place or (isinstance(piece, Entry) and length != whole):
            what = f"at {place} a survey found {piece}, and {whole} bytes are a record"
            raise trial.broken(ALL_LEFT, what)
        if isinstance(piece, Damage):
            check_damage(raw, segment, piece, trial)
        place += length
    if place != len(raw):
        what = f"a survey came to {place} of {len(raw)} bytes in {len(found)} pieces"
        raise trial.broken(ALL_LEFT, what)


def check_damage(raw: bytes, segment: Segment, damage: Damage, trial: Trial) -> None:
    """Raise if there is a whole record in what is said to be damage."""
    end = damage.offset + damage.length
    record = first_record(raw, damage.offset, segment.seed)
    if record < end:
        what = f"there is a record at {record}, in damage from {damage.offset} to {end}"
        raise trial.broken(ALL_LEFT, what)


def check_search(raw: bytes, segment: Segment, start: int, trial: Trial) -> None:
    """Raise unless a search finds the next record, as it must in a file of this size."""
    with trial.only():
        found, _ = next_whole_record(segment, start, SEARCH_EFFORT << 20)
    expected = first_record(raw, start, segment.seed)
    if found != expected:
        what = (
            f"from {start} on the next record is at {expected}, a search found {found}"
        )
        raise trial.broken(ALL_LEFT, what)


def reads(disk: SimulatedDisk) -> Iterator[tuple[str, int, int]]:
    """Yield path, offset and length of every read that a disk was asked for."""
    for each in disk.operations:
        if each.name == "read":
            yield each.path, each.offset, each.length


FIXED_BYTES = 40  # heads of fixed size are asked for before the file's length is known


def check_extents(disk: SimulatedDisk, image: Image, trial: Trial) -> None:
    """Raise if a read went past the end of its file, or asked for more than a window."""
    for path, offset, length in reads(disk):
        end = max(len(image[path]), FIXED_BYTES)
        if offset + length > end or length > WINDOW_BYTES:
            what = f"{length} bytes at {offset} of {path} were asked for, which ends at {end}"
            raise trial.broken(NO_MORE, what)


# A search in a large file that was made to keep it busy


def large_segment(
    raw: bytes, times: int, trial: Trial
) -> tuple[SimulatedDisk, Segment]:
    """Return a segment of which so many times its size (or 1 MiB, if more) may be read."""
    disk = SimulatedDisk({PATH: raw})
    disk.fault = Budget(times * max(len(raw), 1 << 20), trial)
    return disk, Segment.open(disk, "store", 1)


def trap(count: int, size: int) -> bytes:
    """Return heads of records, each of which claims all the bytes there are of `size`."""
    return b"".join(
        HEAD.pack(PUT, 0, 0, size - HEAD.size * number - OVERHEAD_BYTES)
        for number in range(count)
    )


def search_in_a_trap(chance: Random, trial: Trial) -> None:
    """Let a search run out of effort, and count what it read."""
    first = header(chance)
    count = chance.randrange(6_000, 12_000)
    record = encode(PUT, 1, b"key", b"value", number_at(first, 28, 4))
    raw = first + trap(count, HEAD.size * count + len(record)) + record
    trial.steps.append(f"{count} heads that claim all that follows, and a record")
    disk, segment = large_segment(raw, SEARCH_EFFORT + 1, trial)
    with trial.only():
        found, _ = next_whole_record(segment, 32, SEARCH_EFFORT * len(raw))
    check_extents(disk, {PATH: raw}, trial)
    if found not in (len(raw), len(raw) - len(record)):
        raise trial.broken(AS_IT_SAYS, f"a search found a record at {found}")


def survey_of_traps(chance: Random, trial: Trial) -> None:
    """Survey a file in which each record stands behind a small trap of its own."""
    first = header(chance)
    seed = number_at(first, 28, 4)
    records = [encode(PUT, n, b"key", b"", seed) for n in range(1, 1200)]
    heads = chance.randrange(6, 12)
    step = heads * HEAD.size + len(records[0])
    size = step * len(records)
    traps = (trap(heads, size - step * n) for n in range(len(records)))
    raw = first + b"".join(t + r for t, r in zip(traps, records, strict=True))
    trial.steps.append(f"{len(records)} records, a trap of {heads} heads before each")
    windows = 2 * len(records) * len(raw) >> 20  # a scan and a search for each record
    disk, segment = large_segment(raw, SEARCH_EFFORT + windows, trial)
    with trial.only():
        for _ in survey(segment):
            pass
    check_extents(disk, {PATH: raw}, trial)


def search_across_windows(chance: Random, trial: Trial) -> None:
    """Let a search come to a head of which so much is in one window, the rest in the next."""
    for left in (1, HEAD.size - 1, HEAD.size, chance.randrange(40)):
        filler = chance.choice((b"\0", b"\x01", b"\xff"))
        length = WINDOW_BYTES - left
        step = f"{length} bytes {filler.hex()}, and three records behind them"
        each = Trial(trial.case, [step])
        check_across_windows(filler * length, header(chance), each)


def scan_across_windows(chance: Random, trial: Trial) -> None:
    """Let a scan come to a record at the end of what it holds in memory."""
    first = header(chance)
    left = chance.randrange(HEAD.size, 140)  # enough for the head, and not for the key
    value = bytes(WINDOW_BYTES - left - OVERHEAD_BYTES)
    filler = encode(PUT, 0, b"", value, number_at(first, 28, 4))
    trial.steps.append(f"a record of {len(filler)} bytes, and three behind it")
    check_across_windows(filler, first, trial)


def check_across_windows(filler: bytes, first: bytes, trial: Trial) -> None:
    """Raise unless a survey finds three records behind what fills a window."""
    seed = number_at(first, 28, 4)
    values = {
        b"key" * 50: b"",
        b"large": bytes(3 * WINDOW_BYTES),
        b"": b"",
    }
    records = [encode(PUT, n, *item, seed) for n, item in enumerate(values.items(), 1)]
    raw = first + filler + b"".join(records)
    disk, segment = large_segment(raw, 4, trial)
    with trial.only():
        _, *pieces = survey(segment)
    found = [(piece.length, piece.key) for piece in pieces if isinstance(piece, Entry)]
    expected = list(zip(map(len, records), values, strict=True))
    if found != expected or len(pieces) != len(records):
        what = f"a survey found {pieces}, and the file holds {expected}"
        raise trial.broken(ALL_LEFT, what)
    check_extents(disk, {PATH: raw}, trial)


# A directory

Told = tuple[int, bytes]  # the number of a segment, and one of its records
Found = tuple[Contents, int | None]  # what a store holds, and where its tail was torn


def closed_store() -> Image:
    """Return a closed store with all there can be in one."""
    disk = SimulatedDisk()
    small_store(Path("store"), disk)
    return disk.image()


def store_in_use() -> Image:
    """Return a store that was left open, a batch in its log that is not synced."""
    disk = SimulatedDisk()
    with kvstore.open("store", segment_bytes=200, filesystem=disk) as db:
        for number in range(12):
            db[b"%d" % (number % 5)] = b"%d" % number * 9
        db.sync()
        with db.batch() as batch:
            batch[b"1"], batch[b"new"] = b"of a batch", b""
            del batch[b"2"]
        return disk.image()


STORES = {"closed": closed_store, "open": store_in_use}


def change_a_file(chance: Random, image: Image, trial: Trial) -> None:
    """Change one file of a store, as what it is."""
    path = chance.choice([path for path in image if image[path]])
    trial.steps.append(f"of {path}")
    if path.endswith(".segment"):
        image[path] = changed_segment(chance, image[path], trial)
    else:
        fields = MARK_FIELDS if path.endswith("MARK") else MANIFEST_FIELDS
        image[path] = changed(chance, image[path], fields, 0, trial)


def swap_files(chance: Random, image: Image, trial: Trial) -> None:
    """Let two files change names."""
    one, other = chance.choices([path for path in image if image[path]], k=2)
    image[one], image[other] = image[other], image[one]
    trial.steps.append(f"{one} and {other} swapped")


def lose_a_file(chance: Random, image: Image, trial: Trial) -> None:
    """Take a file away."""
    path = chance.choice([path for path in image if image[path]])
    del image[path]
    trial.steps.append(f"{path} gone")


def add_a_file(chance: Random, image: Image, trial: Trial) -> None:
    """Add a file that the store does not know, under a name that it might know."""
    number = chance.choice(("0", "9", "123456789", f"{2**64 - 1}", f"{2**64}"))
    path = f"store/{number:0>8}.segment"
    image[path] = image[chance.choice(sorted(image))]
    trial.steps.append(f"{path} of {len(image[path])} bytes added")


def shuffle_the_manifest(chance: Random, image: Image, trial: Trial) -> None:
    """Name the sealed segments in another order, which decides nothing."""
    raw = image.get("store/MANIFEST", b"")
    named = [raw[place : place + 20] for place in range(32, len(raw) - 24, 20)]
    chance.shuffle(named)
    image["store/MANIFEST"] = sealed(raw[:32] + b"".join(named) + raw[-24:-4])
    trial.steps.append("the sealed segments in another order")


FILE_CHANGES = (
    *[change_a_file] * 7,
    *(swap_files, lose_a_file, add_a_file, shuffle_the_manifest),
)


def make_directory(chance: Random, image: Image, trial: Trial) -> Image:
    """Return a store after changes to its files."""
    result = image.copy()
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        chance.choice(FILE_CHANGES)(chance, result, trial)
    return result


def numbers_in(path: str, parts: list[bytes]) -> Iterator[tuple[int, int, int]]:
    """Yield part, place and width of the numbers in a file, but for lengths of records."""
    for which, part in enumerate(parts):
        if path.endswith(".segment"):
            fields = RECORD_FIELDS[:2] if which else HEADER_FIELDS[1:2]
        else:
            fields = MARK_FIELDS if path.endswith("MARK") else MANIFEST_FIELDS
        for place, width in fields:
            if place + width <= len(part) - 4:
                yield which, place, width


def with_number(part: bytes, place: int, width: int, number: int, seed: int) -> bytes:
    """Return a part of a file with another number in it, and a right checksum."""
    body = part[:place] + number.to_bytes(width, "little") + part[place + width : -4]
    return sealed(body, seed)


def at_limits(image: Image) -> Iterator[tuple[Image, str]]:
    """Yield a store with each of its numbers at each limit, and say which and where."""
    for path in sorted(image):
        if path.endswith(("/", "LOCK")):
            continue
        is_segment = path.endswith(".segment")
        parts = parts_of(image[path]) if is_segment else [image[path]]
        for which, place, width in numbers_in(path, parts):
            seed = seed_of(parts) if which else 0
            for number in sorted({limit % 2 ** (8 * width) for limit in LIMITS}):
                part = with_number(parts[which], place, width, number, seed)
                raw = b"".join((*parts[:which], part, *parts[which + 1 :]))
                what = f"part {which}" if which else "the head"
                step = f"in {what} of {path} the number at {place} set to {number}"
                yield image | {path: raw}, step


def check_directory(image: Image, trial: Trial) -> Outcome:
    """Open a directory in every way, use it, and hold the answers against each other."""
    read = read_only(image, trial)
    written = read_and_use(image, trial)
    if isinstance(written, KVStoreError):
        if isinstance(read, KVStoreError) and type(read) is not type(written):
            what = f"a reader was told: {read!r}; and a writer: {written!r}"
            raise trial.broken(AS_IT_SAYS, what)
    elif written != (({}, None) if isinstance(read, StoreNotFoundError) else read):
        what = f"a reader was told {read!r}, and a writer {written!r}"
        raise trial.broken(AS_IT_SAYS, what)
    saved = salvaged(image, trial)
    if isinstance(read, KVStoreError):
        return type(read)
    check_contents(image, *read, trial)
    check_saved(image, *read, saved, trial)
    return "whole"


NAMED = (
    CorruptionError,
    ForeignDirectoryError,
    LimitError,
    NewerFormatError,
    StoreNotFoundError,
)


def torn_at(db: kvstore.Store) -> int | None:
    """Return the offset of the torn tail that a store has found, if there was one."""
    return None if db.torn_tail is None else db.torn_tail.offset


def contents(disk: SimulatedDisk, directory: str = "store") -> Found:
    """Return what a reader finds in a store."""
    with kvstore.open(directory, "r", filesystem=disk) as db:
        return dict(db), torn_at(db)


def read_only(image: Image, trial: Trial) -> Found | KVStoreError:
    """Return what a reader finds, and make sure that it reads little and changes nothing."""
    disk = SimulatedDisk(image)
    size = sum(map(len, image.values()))
    disk.fault = Budget(4 * size + FIXED_BYTES * len(image), trial)
    answer = trial.answer(lambda: contents(disk), *NAMED)
    if disk.image() != image:
        raise trial.broken(AS_IT_SAYS, "a reader changed the store")
    check_extents(disk, image, trial)
    return answer


def read_and_use(image: Image, trial: Trial) -> Found | KVStoreError:
    """Return what a writer finds; make sure that the store works from then on."""
    disk = small_disk(image, trial)
    db = trial.answer(
        lambda: kvstore.open("store", segment_bytes=80, filesystem=disk), *NAMED
    )
    if isinstance(db, KVStoreError):
        return db
    with trial.only():
        held, report = dict(db), db.verify()
    if not report.ok:
        raise trial.broken(
            ALL_LEFT, f"a store was opened and mended, and now: {report}"
        )
    check_cut(image, disk, db.torn_tail, trial)
    taken: Contents = {}
    trial.answer(lambda: use(db, taken), LimitError)
    after = trial.answer(lambda: contents(disk), *NAMED)
    if after != (held | taken, None):
        what = f"a store held {held}, took {taken}, was closed, and then: {after!r}"
        raise trial.broken(STAYS, what)
    return held, torn_at(db)


def check_cut(
    image: Image, disk: SimulatedDisk, cut: kvstore.Cut | None, trial: Trial
) -> None:
    """Raise unless the bytes that were cut off a segment are kept."""
    if cut is not None:
        tail = image[cut.path][cut.offset : cut.offset + cut.length]
        kept = disk.image().get(cut.kept_as or "")
        if kept != tail:
            raise trial.broken(ALL_LEFT, f"{tail!r} was cut off, and {kept!r} kept")


def use(db: kvstore.Store, taken: Contents) -> None:
    """Write to a store that was just opened, and close it; note what it took."""
    with db:
        for number in range(5):  # enough to fill a segment, and another
            key = b"%d" % number
            db[key] = taken[key] = b"again"
        db.compact(0.9)


def check_contents(
    image: Image, held: Contents, torn: int | None, trial: Trial
) -> None:
    """Raise unless a store holds what its files say, told by the formats alone."""
    expected = newest_of(told_by_manifest(image, torn))
    if held != expected:
        what = f"a store held {held}, and its files say {expected}"
        raise trial.broken(NEWEST, what)


def named_segments(image: Image) -> list[tuple[int, int, bytes]]:
    """Return number, seed and bytes of the segments in a manifest, the active one last."""
    manifest = image["store/MANIFEST"]
    places = range(32, len(manifest) - 4, 20)
    named = [(number_at(manifest, p, 8), number_at(manifest, p + 8, 4)) for p in places]
    return [(n, seed, image[f"store/{n:08}.segment"]) for n, seed in named]


def told_by_manifest(image: Image, torn: int | None) -> Iterator[Told]:
    """Yield the records of the segments that a manifest names, up to the torn tail."""
    *whole, (active, active_seed, log) = named_segments(image)
    for number, seed, raw in (*whole, (active, active_seed, log[:torn])):
        for offset, length in run_of_records(raw, seed):
            yield number, raw[offset : offset + length]


def newest_of(told: Iterable[Told]) -> Contents:
    """Return what is left when the record with the highest number wins, of every key."""
    best: dict[bytes, tuple[int, bool, int, bytes]] = {}
    for segment, raw in told:
        key, value = key_and_value(raw)
        rank = number_at(raw, 1, 8), raw[0] & 127 == PUT, segment, value
        best[key] = max(best.get(key, rank), rank)
    return {key: value for key, (_, put, _, value) in best.items() if put}


def key_and_value(raw: bytes) -> tuple[bytes, bytes]:
    """Return key and value of a whole record."""
    end = 15 + number_at(raw, 9, 2)
    return raw[15:end], raw[end:-4]


def salvaged(image: Image, trial: Trial) -> tuple[kvstore.Salvage, Contents] | None:
    """Return the report of salvage and what it copied, none of it made up; or None."""
    disk = small_disk(image, trial)
    report = trial.answer(
        lambda: kvstore.salvage("store", "saved", filesystem=disk),
        NewerFormatError,
        StoreNotFoundError,
    )
    after = disk.image()
    if any(after[path] != raw for path, raw in image.items()):
        raise trial.broken(AS_IT_SAYS, "salvage changed the damaged store")
    if isinstance(report, KVStoreError):
        return None
    with trial.only():
        saved, _ = contents(disk, "saved")
    if made_up := saved.items() - items_in(image, trial):
        raise trial.broken(AS_IT_SAYS, f"salvage copied what is nowhere: {made_up}")
    return report, saved


def items_in(image: Image, trial: Trial) -> set[tuple[bytes, bytes]]:
    """Return key and value of every whole record that is bound to its segment."""
    manifest = trial.answer(
        lambda: decode_manifest(image.get("store/MANIFEST", b""), "here"), KVStoreError
    )
    seeds: dict[str, int] = {}
    if isinstance(manifest, Manifest):
        named = (*manifest.sealed, manifest.active)
        seeds = {f"store/{each.number:08}.segment": each.seed for each in named}
    items = set()
    for path, raw in image.items():
        if path.endswith(".segment"):
            seed = seeds.get(path) or number_at(raw, 28, 4)
            lengths = ((p, record_length(raw, p, seed)) for p in range(32, len(raw)))
            items |= {key_and_value(raw[p : p + n]) for p, n in lengths if n}
    return items


def check_saved(
    image: Image,
    held: Contents,
    torn: int | None,
    saved: tuple[kvstore.Salvage, Contents] | None,
    trial: Trial,
) -> None:
    """Raise unless salvage copies what a store holds that opens, and reports a torn tail."""
    if saved is None:
        raise trial.broken(ALL_LEFT, "a reader could open the store, and salvage not")
    report, copied = saved
    if bool(report.left_out) != (torn is not None):
        what = (
            f"the tail is {'whole' if torn is None else 'torn'}, and salvage: {report}"
        )
        raise trial.broken(ALL_LEFT, what)
    if copied != held and (torn is None or is_a_batch_begun(image, torn)):
        what = f"a reader found {held}, salvage {copied}, and said: {report}"
        raise trial.broken(ALL_OF_A_BATCH, what)


def is_a_batch_begun(image: Image, torn: int) -> bool:
    """Say whether all that stands behind a torn place are records of a batch without end."""
    _, seed, raw = named_segments(image)[-1]
    run = [each for each in run_of_records(raw, seed) if each[0] >= torn]
    end = sum(run[-1]) if run else torn
    return all(raw[place] >= CONTINUED for place, _ in run) and (
        first_record(raw, end, seed) == len(raw)
    )


# The programme

Maker = Callable[[Random, Trial], bytes]
Check = Callable[[bytes, Trial], Outcome]

MAKERS: dict[str, tuple[Maker, int]] = {  # and how many inputs a case tries
    "record": (make_record, 20_000),
    "manifest": (make_manifest, 10_000),
    "mark": (make_mark, 5000),
    "segment": (make_segment, 4000),
}
CHECKS: dict[str, Check] = {
    "record": check_record,
    "manifest": check_manifest,
    "mark": check_mark,
    "segment": check_segment,
}
LARGE = (search_in_a_trap, survey_of_traps, search_across_windows, scan_across_windows)
SEARCHES, DIRECTORIES = 3, 1500  # of each kind, in a case


def another(seed: int) -> str:
    """Return a case that nobody has run yet."""
    kinds = [*MAKERS, "directory", "search"]
    return f"{kinds[seed % len(kinds)]} {seed}"


def run(case: str) -> Tally:
    """Try the inputs of one case, or one file of the corpus, and count the answers."""
    kind, which = case.split()
    chance = random.Random(case)
    if kind == "corpus":
        return Tally([count(which.partition("/")[0], check_file(which))])
    if kind == "limits":
        return try_limits(which, case)
    if kind == "search":
        return try_searches(chance, case)
    if kind == "directory":
        return try_stores(chance, case)
    return try_bytes(kind, chance, case)


def in_words(outcome: Outcome) -> str:
    """Return an answer as a person would say it."""
    if outcome is None:
        return "no answer"
    return outcome if isinstance(outcome, str) else outcome.__name__


def count(kind: str, outcome: Outcome) -> str:
    """Return the words under which an answer is counted."""
    return f"{kind} inputs: {in_words(outcome)}"


def check_file(name: str) -> Outcome:
    """Give one file of the corpus to its parser."""
    trial = Trial(f"corpus {name}", [f"the file {name}"])
    return CHECKS[name.partition("/")[0]]((CORPUS / name).read_bytes(), trial)


def try_bytes(kind: str, chance: Random, case: str) -> Tally:
    """Try inputs for one parser."""
    _, inputs = MAKERS[kind]
    return Tally(count(kind, try_input(kind, chance, case)) for _ in range(inputs))


def try_input(kind: str, chance: Random, case: str) -> Outcome:
    """Try one input for one parser."""
    make, _ = MAKERS[kind]
    trial = Trial(case)
    outcome = CHECKS[kind](make(chance, trial), trial)
    check_unchanged(outcome, trial)
    return outcome


def check_unchanged(outcome: Outcome, trial: Trial) -> None:
    """Raise if what was written and not changed is not read as it was written."""
    if not trial.steps and outcome != "whole":
        what = f"the answer to what the store itself wrote is: {in_words(outcome)}"
        raise trial.broken(AS_IT_SAYS, what)


def try_searches(chance: Random, case: str) -> Tally:
    """Try searches in large files."""
    tally = Tally()
    for search in LARGE * SEARCHES:
        search(chance, Trial(case))
        tally[search.__name__.replace("_", " ")] += 1
    return tally


def try_stores(chance: Random, case: str) -> Tally:
    """Try whole directories."""
    tally = Tally()
    images = [make_store() for make_store in STORES.values()]
    for number in range(DIRECTORIES):
        trial = Trial(case)
        image = make_directory(chance, images[number % len(images)], trial)
        outcome = check_directory(image, trial)
        check_unchanged(outcome, trial)
        tally[count("directory", outcome)] += 1
    return tally


def try_limits(which: str, case: str) -> Tally:
    """Try one store with each of its numbers at each limit."""
    return Tally(
        count("limits", check_directory(image, Trial(case, [step])))
        for image, step in at_limits(STORES[which]())
    )
