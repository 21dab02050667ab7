"""The formats of the log store, for the fuzzing.

What a parser answers is held against `log_format`, which is the format in a few lines and
nothing more, and against the store's own encoders: what was accepted has to encode to the
same bytes. Half of the changed inputs get a right checksum again, so that a parser goes on
to what it checks next.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvstore.damage import SEARCH_EFFORT, Damage, next_whole_record, scan_past_damage
from kvstore.errors import (
    BadRecordError,
    CorruptionError,
    ForeignDirectoryError,
    KVStoreError,
    NewerFormatError,
)
from kvstore.manifest import Manifest, decode_manifest, rows_of
from kvstore.powercut import Image
from kvstore.record import (
    CONTINUED,
    DELETE,
    OVERHEAD_BYTES,
    PUT,
    RECORD_HEAD,
    Head,
    Record,
    decode,
    encode,
    parse_head,
)
from kvstore.segment import (
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SEGMENT_VERSION,
    WINDOW_BYTES,
    Entry,
    Segment,
    SegmentMeta,
)
from kvstore.simdisk import SimulatedDisk
from kvstore.watermark import Watermark, decode_watermark, encode_watermark
from tests.proof.engines import log_format as form
from tests.proof.history import Contents
from tests.proof.hostile import (
    ALL_LEFT,
    AS_IT_SAYS,
    LIMITS,
    NO_MORE,
    Fields,
    Outcome,
    Random,
    Trial,
    changed,
    limits_of,
)
from tests.proof.subject import Codec, Tail

HEAD_BYTES, PIECE_BYTES = form.MARK_BYTES, WINDOW_BYTES
NAMES: Sequence[str] = [
    f"store/{number:08}.segment" for number in (0, 9, 123456789, 2**64 - 1, 2**64)
]


def resealed(
    chance: Random, raw: bytes, fields: Fields, seed: int, trial: Trial
) -> bytes:
    """Return the bytes after some changes, half of the times with a right checksum."""
    result = changed(chance, raw, fields, trial, chance.choice((1, 1, 1, 2, 4)))
    if chance.random() < 0.5:
        return result
    trial.steps.append("a right checksum")
    return form.sealed(result[:-4], seed)


def at_limits_of(part: bytes, fields: Fields, seed: int) -> Iterator[tuple[bytes, str]]:
    """Yield a part of a file with each number at each limit, and a right checksum."""
    for place, width in fields:
        if place + width <= len(part) - 4:
            for number in limits_of(width):
                raw = number.to_bytes(width, "little")
                body = part[:place] + raw + part[place + width : -4]
                yield form.sealed(body, seed), f"the number at {place} set to {number}"


@dataclass(frozen=True)
class Whole:
    """A format with one checksum over all of it."""

    inputs: int
    fields: Fields
    write: Callable[[Random], bytes]  # as the store does
    check: Callable[[bytes, Trial], Outcome]
    seed: int = 0
    change: Callable[[Random, bytes, Fields, int, Trial], bytes] = resealed

    def make(self, chance: Random, trial: Trial, /) -> bytes:
        raw = self.write(chance)
        return raw if chance.random() < 0.1 else self.changed(chance, raw, trial)

    def changed(self, chance: Random, raw: bytes, trial: Trial, /) -> bytes:
        return self.change(chance, raw, self.fields, self.seed, trial)

    def at_limits(self, raw: bytes, /) -> Iterator[tuple[bytes, str]]:
        return at_limits_of(raw, self.fields, self.seed)


# One record

RECORD_FIELDS: Fields = ((0, 1), (1, 8), (9, 2), (11, 4))
RECORD_SEED = 5  # of every record that is not in a file


def some_bytes(chance: Random, seed: int) -> bytes:
    """Return bytes for a value: short, empty, a record in themselves, its head alone."""
    inner = encode(PUT, chance.choice((1, 7, 2**56 - 1)), b"inner", b"value", seed)
    noise = chance.randbytes(chance.choice((9, 300)))
    return chance.choice((b"", bytes(20), inner, inner[:15] * 3, noise))


def some_record(chance: Random, sequence: int, seed: int) -> bytes:
    kind = chance.choice((PUT, PUT, DELETE)) | chance.choice((0, 0, CONTINUED))
    key = chance.choice((b"", b"ada", b"bob", chance.randbytes(40)))
    return encode(kind, sequence, key, some_bytes(chance, seed), seed)


def record_alone(chance: Random) -> bytes:
    return some_record(chance, chance.choice((0, 1, 77, 2**56 - 1)), RECORD_SEED)


def changed_record(
    chance: Random, raw: bytes, fields: Fields, seed: int, trial: Trial
) -> bytes:
    """Return a record after some changes; or its lengths fit, and are others."""
    shared = len(raw) - OVERHEAD_BYTES
    if shared < 0 or chance.random() < 0.9:
        return resealed(chance, raw, fields, seed, trial)
    trial.steps.append("the border of key and value moved")
    key_bytes = chance.randrange(shared + 1)
    lengths = struct.pack("<HI", key_bytes, shared - key_bytes)
    return form.sealed(raw[:9] + lengths + raw[15:-4], seed)


def check_record(raw: bytes, trial: Trial) -> Outcome:
    for place in (0, len(raw) // 2, len(raw)):
        check_head(raw, place, trial)
    record = trial.answer_in_memory(
        raw, lambda: decode(raw, RECORD_SEED), BadRecordError
    )
    whole = bool(raw) and form.record_length(raw, 0, RECORD_SEED) == len(raw)
    trial.same(isinstance(record, Record), whole, "whether the record is whole")
    if not isinstance(record, Record):
        return type(record)
    trial.same(encode(*record, RECORD_SEED), raw, "what was read, written again")
    return "whole"


def check_head(raw: bytes, place: int, trial: Trial) -> None:
    """Raise if a head passes that claims more bytes than are left from a place on."""
    left = len(raw) - place
    head = trial.answer(lambda: parse_head(raw, place, left), BadRecordError)
    if isinstance(head, Head) and head.length > left:
        what = f"a head at {place} passed that claims {head.length} bytes of {left}"
        raise trial.broken(NO_MORE, what)


# The manifest and the watermark

MANIFEST_ROWS = [(32 + 20 * row + at, n) for row in range(4) for at, n in form.ROW]
MANIFEST_FIELDS: Fields = ((8, 4), (12, 8), (20, 8), (28, 4), *MANIFEST_ROWS)
WATERMARK_FIELDS: Fields = ((8, 4), (12, 8), (20, 4), (24, 8), (32, 4))


def some_manifest(chance: Random) -> bytes:
    count = chance.choice((0, 1, 2, 9))
    segments = [
        SegmentMeta(1 + n, chance.getrandbits(32), chance.randrange(32, 2**31))
        for n in range(count)
    ]
    active = SegmentMeta(count + 1, chance.getrandbits(32), chance.choice((32, 4096)))
    sequence = chance.randrange(2**50)
    return Manifest(count + 2, sequence, rows_of(segments), active).encode()


def check_manifest(raw: bytes, trial: Trial) -> Outcome:
    named = CorruptionError, ForeignDirectoryError, NewerFormatError
    answer = trial.answer_in_memory(raw, lambda: decode_manifest(raw, "here"), *named)
    if isinstance(answer, Manifest):
        trial.same(answer.encode(), raw, "what was read, written again")
        return "whole"
    check_newer(answer, raw, trial)
    return type(answer)


def check_newer(answer: object, raw: bytes, trial: Trial) -> None:
    """Raise if a newer format is met that is not, by a number that is sealed."""
    newer = form.is_sealed(raw) and form.number_at(raw, 8, 4) > 1
    if isinstance(answer, NewerFormatError) and not newer:
        raise trial.broken(AS_IT_SAYS, "damage was taken for a newer format")


def some_watermark(chance: Random) -> bytes:
    numbers = chance.randrange(99), chance.getrandbits(32), chance.randrange(2**31)
    return encode_watermark(Watermark(SegmentMeta(*numbers), chance.random() < 0.5))


def check_watermark(raw: bytes, trial: Trial) -> Outcome:
    answer = trial.answer_in_memory(raw, lambda: decode_watermark(raw))
    if not isinstance(answer, Watermark):
        return None
    trial.same(encode_watermark(answer), raw, "what was read, written again")
    return "whole"


# A segment

HEADER_FIELDS: Fields = ((8, 4), (12, 8), (20, 8))
PATH = "store/00000001.segment"


def some_header(chance: Random) -> bytes:
    front = SEGMENT_MAGIC, SEGMENT_VERSION, 1, chance.randbytes(8)
    return form.sealed(SEGMENT_HEADER.pack(*front))


def seed_of(raw: bytes) -> int:
    """Return the seed in a header, whole or not."""
    return form.number_at(raw, 28, 4)


def parts_of(raw: bytes) -> list[bytes]:
    """Return the header of a segment, its records, and what stands after them, if any."""
    run = form.run_of_records(raw, seed_of(raw))
    end = sum(run[-1]) if run else form.HEADER_BYTES
    parts = [raw[: form.HEADER_BYTES], *(raw[p : p + length] for p, length in run)]
    return [*parts, raw[end:]] if raw[end:] else parts


SHUFFLES = "change places", "twice", "none", "changed", "changed", "after no record"


def change_parts(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Swap two records; repeat, drop or change the first; or put in what is none."""
    one, other = (chance.randrange(1, len(parts)) for _ in range(2))
    how = chance.choice(SHUFFLES)
    trial.steps.append(f"records {one} and {other}: {how}")
    if how == "change places":
        parts[one], parts[other] = parts[other], parts[one]
    elif how == "twice":
        parts.insert(other, parts[one])
    elif how == "none":
        del parts[one]
    elif how == "changed":
        parts[one] = changed_record(
            chance, parts[one], RECORD_FIELDS, seed_of(parts[0]), trial
        )
    else:
        parts.insert(one, no_record(chance, parts[other]))


def no_record(chance: Random, record: bytes) -> bytes:
    """Return what is no record here: a head that lies, another file's record, nothing."""
    lie = record[:11] + (chance.choice(LIMITS) % 2**32).to_bytes(4, "little")
    stale = some_record(chance, 9, chance.getrandbits(32))
    return chance.choice((lie, stale, bytes(50), chance.randbytes(30)))


def change_header(chance: Random, parts: list[bytes], trial: Trial) -> None:
    """Change the header, and bind the records to it if it has another seed now."""
    trial.steps.append("of the header")
    parts[0] = resealed(chance, parts[0], HEADER_FIELDS, 0, trial)
    if len(parts[0]) == form.HEADER_BYTES:
        parts[1:] = [form.sealed(each[:-4], seed_of(parts[0])) for each in parts[1:]]


class Segments:
    """Segments: a header and records, each with a checksum of its own."""

    inputs = 4000

    def make(self, chance: Random, trial: Trial, /) -> bytes:
        raw, sequence = some_header(chance), 0
        seed = seed_of(raw)
        for _ in range(chance.choice((0, 1, 2, 12))):
            sequence += chance.choice((1, 1, 1000))
            raw += some_record(chance, sequence, seed)
        return raw if chance.random() < 0.1 else self.changed(chance, raw, trial)

    def changed(self, chance: Random, raw: bytes, trial: Trial, /) -> bytes:
        parts = parts_of(raw)
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            if len(parts) > 1:
                change_parts(chance, parts, trial)
        if chance.random() < 0.1:
            change_header(chance, parts, trial)
        times = 1 if chance.random() < 0.3 else 0
        return changed(chance, b"".join(parts), HEADER_FIELDS, trial, times)

    def at_limits(self, raw: bytes, /) -> Iterator[tuple[bytes, str]]:
        header, *records = parts = parts_of(raw)
        for part, step in at_limits_of(header, HEADER_FIELDS[1:2], 0):
            yield b"".join((part, *records)), f"in the header {step}"
        for which, record in enumerate(records, 1):
            for part, step in at_limits_of(record, RECORD_FIELDS[:2], seed_of(raw)):
                whole = b"".join((*parts[:which], part, *parts[which + 1 :]))
                yield whole, f"in record {which} {step}"

    def check(self, raw: bytes, trial: Trial, /) -> Outcome:
        disk = trial.small_disk({PATH: raw})
        answer = trial.answer(lambda: opened(disk), CorruptionError, NewerFormatError)
        check_opening(raw, answer, trial)
        if not isinstance(answer, Segment):
            return type(answer)
        outcome = check_scan(raw, answer, trial)
        taken = sum(each.length for each in disk.operations if each.name == "read")
        if taken > len(raw):
            what = f"a scan of {len(raw)} bytes, which fit a window, read {taken}"
            raise trial.broken(NO_MORE, what)
        check_pieces(raw, answer, trial)
        check_search(raw, answer, (form.HEADER_BYTES + len(raw)) // 2, trial)
        check_reads(disk, raw, trial)
        return outcome


def opened(disk: SimulatedDisk) -> Segment:
    return Segment.open(disk, disk.open_directory("store"), 1)


def check_reads(disk: SimulatedDisk, raw: bytes, trial: Trial) -> None:
    """Raise if a segment was read beyond its end, or more than a window of it."""
    trial.check_reads(disk, {PATH: raw}, HEAD_BYTES, WINDOW_BYTES)


def check_opening(raw: bytes, answer: Segment | KVStoreError, trial: Trial) -> None:
    """Raise unless a segment was opened for the right header, and for no other."""
    header = raw[: form.HEADER_BYTES]
    right = header[:8] == b"KVSEGM\r\n" and len(header) == form.HEADER_BYTES
    whole = right and form.number_at(raw, 8, 4) == form.number_at(raw, 12, 8) == 1
    if isinstance(answer, Segment) != (whole and form.is_sealed(header)):
        raise trial.broken(AS_IT_SAYS, f"the header is {header!r}, the answer {answer}")
    check_newer(answer, header, trial)


def check_scan(raw: bytes, segment: Segment, trial: Trial) -> Outcome:
    """Raise unless a scan yields what the format says, up to where it says so."""
    entries: list[Entry] = []
    trouble = trial.answer(lambda: entries.extend(segment.scan()), CorruptionError)
    found = [(entry.offset, entry.length) for entry in entries]
    expected = form.run_of_records(raw, segment.seed)
    trial.same(found, expected, "where a scan finds records")
    for entry in entries:
        check_entry(raw, segment, entry, trial)
    end = sum(expected[-1]) if expected else form.HEADER_BYTES
    said = (PATH, len(raw))
    if isinstance(trouble, CorruptionError):
        said = trouble.path, trouble.offset
    trial.same(said, (PATH, end), "where a scan ends")
    return "whole" if trouble is None else CorruptionError


def check_entry(raw: bytes, segment: Segment, entry: Entry, trial: Trial) -> None:
    """Raise unless the record that was found encodes to the bytes that it stands for."""
    with trial.no_error():
        value = segment.value(entry.offset, entry.length, entry.key)
    again = encode(entry.kind, entry.sequence, entry.key, value, segment.seed)
    written = raw[entry.offset : entry.offset + entry.length]
    trial.same(again, written, "what was read, written again")


def check_pieces(raw: bytes, segment: Segment, trial: Trial) -> None:
    """Raise unless reading on accounts for every byte, and leaves out no whole record."""
    with trial.no_error():
        found = list(scan_past_damage(segment))
    place = form.HEADER_BYTES
    for piece in found:
        length, whole = piece.length, form.record_length(raw, place, segment.seed)
        if piece.offset != place or (isinstance(piece, Entry) and length != whole):
            what = f"at {place} {piece} was found, and {whole} bytes are a record"
            raise trial.broken(ALL_LEFT, what)
        place += length
        if isinstance(piece, Damage):
            record = form.first_record(raw, piece.offset, segment.seed)
            if record < place:
                what = f"there is a record at {record}, in damage: {piece}"
                raise trial.broken(ALL_LEFT, what)
    trial.same(place, len(raw), "how far reading on comes", ALL_LEFT)


def check_search(raw: bytes, segment: Segment, start: int, trial: Trial) -> None:
    """Raise unless a search finds the next record, as it must in a file of this size."""
    with trial.no_error():
        found, _ = next_whole_record(segment, start, SEARCH_EFFORT << 20)
    right = form.first_record(raw, start, segment.seed)
    trial.same(found, right, f"where a search from {start} on ends", ALL_LEFT)


# A search in a large file that was made to keep it busy


def large(raw: bytes, times: int, trial: Trial) -> tuple[SimulatedDisk, Segment]:
    """Return a segment of which so many times its size (or 1 MiB, if more) may be read."""
    disk = trial.disk({PATH: raw}, times * max(len(raw), 1 << 20))
    return disk, opened(disk)


def trap(count: int, size: int) -> bytes:
    """Return heads of records, each of which claims all the bytes there are of `size`."""
    step = RECORD_HEAD.size
    lengths = (size - step * number - OVERHEAD_BYTES for number in range(count))
    return b"".join(RECORD_HEAD.pack(PUT, 0, 0, length) for length in lengths)


def search_in_a_trap(chance: Random, trial: Trial) -> None:
    """Let a search run out of effort, and count what it read."""
    first = some_header(chance)
    count = chance.randrange(6_000, 12_000)
    record = encode(PUT, 1, b"key", b"value", seed_of(first))
    raw = first + trap(count, RECORD_HEAD.size * count + len(record)) + record
    trial.steps.append(f"{count} heads that claim all that follows, and a record")
    disk, segment = large(raw, SEARCH_EFFORT + 1, trial)
    with trial.no_error():
        found, _ = next_whole_record(
            segment, form.HEADER_BYTES, SEARCH_EFFORT * len(raw)
        )
    check_reads(disk, raw, trial)
    if found not in (len(raw), len(raw) - len(record)):
        raise trial.broken(AS_IT_SAYS, f"a search found a record at {found}")


def scan_past_traps(chance: Random, trial: Trial) -> None:
    """Read a file to its end in which each record stands after a small trap of its own."""
    first = some_header(chance)
    records = [encode(PUT, n, b"key", b"", seed_of(first)) for n in range(1, 1200)]
    heads = chance.randrange(6, 12)
    step = heads * RECORD_HEAD.size + len(records[0])
    size = step * len(records)
    traps = (trap(heads, size - step * n) for n in range(len(records)))
    raw = first + b"".join(t + r for t, r in zip(traps, records, strict=True))
    trial.steps.append(f"{len(records)} records, a trap of {heads} heads before each")
    windows = 2 * len(records) * len(raw) >> 20  # a scan and a search for each record
    disk, segment = large(raw, SEARCH_EFFORT + windows, trial)
    with trial.no_error():
        for _ in scan_past_damage(segment):
            pass
    check_reads(disk, raw, trial)


def search_across_windows(chance: Random, trial: Trial) -> None:
    """Let a search come to a head of which so much is in one window, the rest in the next."""
    for left in (1, RECORD_HEAD.size - 1, RECORD_HEAD.size, chance.randrange(40)):
        filler = chance.choice((b"\0", b"\x01", b"\xff")) * (WINDOW_BYTES - left)
        step = f"{len(filler)} bytes {filler[:1].hex()}, and three records"
        check_across_windows(filler, some_header(chance), Trial(trial.line, [step]))


def scan_across_windows(chance: Random, trial: Trial) -> None:
    """Let a scan come to a record at the end of what it holds in memory."""
    first = some_header(chance)
    left = chance.randrange(RECORD_HEAD.size, 140)  # enough for the head, not the key
    value = bytes(WINDOW_BYTES - left - OVERHEAD_BYTES)
    filler = encode(PUT, 0, b"", value, seed_of(first))
    trial.steps.append(f"a record of {len(filler)} bytes, and three after it")
    check_across_windows(filler, first, trial)


def check_across_windows(filler: bytes, first: bytes, trial: Trial) -> None:
    """Raise unless three records are found after what fills a window."""
    values = {b"key" * 50: b"", b"large": bytes(3 * WINDOW_BYTES), b"": b""}
    records = [
        encode(PUT, number, *item, seed_of(first))
        for number, item in enumerate(values.items(), 1)
    ]
    raw = first + filler + b"".join(records)
    disk, segment = large(raw, 4, trial)
    with trial.no_error():
        _, *pieces = scan_past_damage(segment)
    found = [(type(each), each.length) for each in pieces]
    expected = [(Entry, len(record)) for record in records]
    trial.same(found, expected, "what is found behind the window", ALL_LEFT)
    check_reads(disk, raw, trial)


# A store

CODECS: Mapping[str, Codec] = {
    "record": Whole(
        15_000,
        RECORD_FIELDS,
        record_alone,
        check_record,
        RECORD_SEED,
        changed_record,
    ),
    "manifest": Whole(10_000, MANIFEST_FIELDS, some_manifest, check_manifest),
    "watermark": Whole(5000, WATERMARK_FIELDS, some_watermark, check_watermark),
    "segment": Segments(),
}
SEARCHES: Mapping[str, Callable[[Random, Trial], None]] = {
    search.__name__.replace("_", " "): search
    for search in (
        *(search_in_a_trap, scan_past_traps),
        *(search_across_windows, scan_across_windows),
    )
}


def codec_of(path: str) -> Codec | None:
    if path.endswith(".segment"):
        return CODECS["segment"]
    named = {
        form.MANIFEST: "manifest",
        f"{form.MANIFEST}.new": "manifest",
        form.MARK: "watermark",
    }
    return CODECS[named[path]] if path in named else None


def in_another_order(chance: Random, image: Image) -> None:
    """Name the sealed segments in another order, which decides nothing."""
    raw = image.get(form.MANIFEST, b"")
    named = [raw[place : place + 20] for place in range(32, len(raw) - 24, 20)]
    chance.shuffle(named)
    image[form.MANIFEST] = form.sealed(raw[:32] + b"".join(named) + raw[-24:-4])


def contents_of(image: Image, tail: Tail | None) -> Contents:
    """Return what is left when the record with the highest number wins, of every key."""
    best: dict[bytes, tuple[int, bool, int, bytes]] = {}
    *whole, active = form.rows_of(image)
    log = image[active.path][: tail.offset if tail else None]
    for row, raw in (*((row, image[row.path]) for row in whole), (active, log)):
        for each in form.records_in(raw, row.seed):
            rank = each.sequence, each.puts, row.number, each.value
            best[each.key] = max(best.get(each.key, rank), rank)
    return {key: value for key, (_, put, _, value) in best.items() if put}


def pairs_in(image: Image) -> set[tuple[bytes, bytes]]:
    """Return key and value of every whole record that is bound to its segment."""
    seeds: dict[str, int] = {}
    with suppress(KVStoreError):  # where this is no manifest
        decode_manifest(image.get(form.MANIFEST, b""), form.MANIFEST)
        seeds = {row.path: row.seed for row in form.rows_of(image)}
    return {
        (each.key, each.value)
        for path, raw in image.items()
        if path.endswith(".segment")
        for each in whole_records(raw, seeds.get(path) or seed_of(raw))
    }


def whole_records(raw: bytes, seed: int) -> Iterable[form.Told]:
    """Yield what stands in whole records, wherever they begin."""
    for place in range(form.HEADER_BYTES, len(raw)):
        if length := form.record_length(raw, place, seed):
            yield form.told(raw[place : place + length])


def is_a_batch_begun(image: Image, tail: Tail) -> bool:
    """Say whether all that follows a torn place are records of a batch without end."""
    active = form.rows_of(image)[-1]
    raw = image[active.path]
    run = [
        each for each in form.run_of_records(raw, active.seed) if each[0] >= tail.offset
    ]
    end = sum(run[-1]) if run else tail.offset
    ends_there = form.first_record(raw, end, active.seed) == len(raw)
    return ends_there and all(raw[place] >= CONTINUED for place, _ in run)
