"""What the format of the log store says, apart from the package's own code."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from kvstore.powercut import Image

HEADER_BYTES = 32
CONTINUED = 128
KINDS = {b"\x01", b"\x02", b"\x81", b"\x82"}  # put, delete; the batch goes on
MANIFEST, MARK, LOCK = "store/MANIFEST", "store/MARK", "store/LOCK"
MANIFEST_MAGIC = b"KVMANI\r\n"
SHORTEST_MANIFEST, MARK_BYTES = 56, 40
ROW = (0, 8), (8, 4), (12, 8)  # offset and width of what a manifest says of a segment


class Row(NamedTuple):
    """What the manifest says of a segment."""

    number: int
    seed: int
    length: int

    @property
    def path(self) -> str:
        return f"store/{self.number:08}.segment"


class Told(NamedTuple):
    """A record of a segment, and where it is."""

    sequence: int
    puts: bool
    key: bytes
    value: bytes


def number_at(raw: bytes, place: int, width: int) -> int:
    return int.from_bytes(raw[place : place + width], "little")


def sealed(body: bytes, seed: int = 0) -> bytes:
    """Return some bytes with their checksum behind them."""
    return body + crc32(body, seed).to_bytes(4, "little")


def is_sealed(raw: bytes, seed: int = 0) -> bool:
    """Say whether the last four bytes are the checksum of those before."""
    return len(raw) >= 4 and raw == sealed(raw[:-4], seed)


def rows(manifest: bytes) -> list[Row]:
    """Return what a manifest says of its segments, the active one last."""
    places = range(32, len(manifest) - 4, 20)
    return [Row(*(number_at(manifest, p + at, n) for at, n in ROW)) for p in places]


def rows_of(image: Image) -> list[Row]:
    return rows(image[MANIFEST])


def vouched_for(image: Image) -> int:
    """Return how much of the active segment is on the disk for sure."""
    active, raw = rows_of(image)[-1], image.get(MARK, b"")
    speaks = is_sealed(raw) and number_at(raw, 12, 8) == active.number
    counts = speaks and number_at(raw, 20, 4) == active.seed
    return max(active.length, number_at(raw, 24, 8) if counts else 0)


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
    run, place, newest = [], HEADER_BYTES, -1
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


def told(raw: bytes) -> Told:
    end = 15 + number_at(raw, 9, 2)
    return Told(number_at(raw, 1, 8), raw[0] & 127 == 1, raw[15:end], raw[end:-4])


class Borders(NamedTuple):
    """Where the header, the records and the batches of a segment begin, and its end."""

    records: list[int]
    batches: list[int]


@lru_cache(maxsize=64)
def borders(raw: bytes) -> Borders:
    """Return the borders in the bytes of an undamaged segment."""
    run = run_of_records(raw, number_at(raw, 28, 4))
    starts = [place for place, _ in run]
    end = sum(run[-1]) if run else HEADER_BYTES
    if end < len(raw):  # a record that was cut
        starts.append(end)
    begun = (a for b, a in pairwise(starts) if raw[b] < CONTINUED)
    return Borders([0, *starts, len(raw)], sorted({0, *starts[:1], *begun, len(raw)}))


def records_in(raw: bytes, seed: int | None = None) -> Iterator[Told]:
    """Yield the records of a segment, as far as it is whole."""
    for place, length in run_of_records(raw, seed or number_at(raw, 28, 4)):
        yield told(raw[place : place + length])


def in_common(one: bytes, other: bytes) -> int:
    """Return how many bytes at their start two files have in common."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda n: one[:n] != other[:n])


def last_before(places: Sequence[int], place: int) -> int:
    """Return the last of some rising places that is not after a place."""
    return places[bisect_right(places, place) - 1]


def places_for_manifest(raw: bytes | None) -> dict[str, set[int]]:
    """Return where an error may say that the trouble is, if the manifest is not ours."""
    if raw is None:
        return {MANIFEST: {0}}
    if is_sealed(raw):
        return {row.path: {20} for row in rows(raw)}
    return {MANIFEST: {len(raw) if len(raw) < SHORTEST_MANIFEST else 0}}


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
    if len(raw) < HEADER_BYTES:
        return len(raw)
    if not is_sealed(raw[:HEADER_BYTES]):
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
