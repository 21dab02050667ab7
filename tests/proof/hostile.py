"""Bytes that were changed to mislead whoever parses them, and what may come of that."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from kvstore.errors import KVStoreError
from kvstore.powercut import Image
from kvstore.simdisk import SimulatedDisk
from tests.proof.faults import Budget
from tests.proof.promises import Breach, Broken, Promise

AS_IT_SAYS = Breach(Promise.NO_GUESSES, "bytes are misread, or refused without a name")
NO_MORE = Breach(Promise.NO_GUESSES, "a length that a file claims is believed")
ALL_LEFT = Breach(Promise.NO_GUESSES, "of a damaged file all is read or reported")

T = TypeVar("T")
Random = random.Random
Outcome = type[KVStoreError] | Literal["whole"] | None  # None: taken for nothing
Fields = Sequence[tuple[int, int]]  # offset and width of the numbers in a format


@dataclass
class Trial:
    """One input: the line that makes it again, and how it was made, in words."""

    line: str
    steps: list[str] = field(default_factory=list)

    def broken(self, breach: Breach, what: str) -> Broken:
        made = ", then ".join(self.steps) or "as it was written"
        return Broken(breach, f"{what}. The input: {made}", self.line)

    @contextmanager
    def no_error(self) -> Iterator[None]:
        """Let no error pass."""
        try:
            yield
        except Broken:
            raise
        except Exception as error:
            raise self.broken(AS_IT_SAYS, f"{error!r} was raised") from error

    def answer(
        self, work: Callable[[], T], *named: type[KVStoreError]
    ) -> T | KVStoreError:
        """Return what a parser returned or raised, if it may raise that."""
        with self.no_error():
            try:
                return work()
            except named as error:
                return error

    def answer_in_memory(
        self, raw: bytes, work: Callable[[], T], *named: type[KVStoreError]
    ) -> T | KVStoreError:
        """Return the same, and make sure that it took no more memory than its share."""
        tracemalloc.start()
        try:
            answer = self.answer(work, *named)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if most > 16_384 + 32 * len(raw):
            what = f"{most:,} bytes of memory were taken for {len(raw):,} bytes"
            raise self.broken(NO_MORE, what)
        return answer

    def same(
        self, found: object, right: object, what: str, breach: Breach = AS_IT_SAYS
    ) -> None:
        """Raise unless something is what the formats say."""
        if found != right:
            raise self.broken(breach, f"{what}: {found!r}, and right is {right!r}")

    def disk(self, image: Image, most: int) -> SimulatedDisk:
        """Return a disk of which so many bytes may be read."""
        disk = SimulatedDisk(image)
        disk.fault = Budget(most, lambda what: self.broken(NO_MORE, what))
        return disk

    def small_disk(self, image: Image) -> SimulatedDisk:
        """Return a disk with a budget that no loop without an end keeps to."""
        return self.disk(image, 65_536 + 256 * sum(map(len, image.values())))

    def check_reads(
        self, disk: SimulatedDisk, image: Image, head: int, window: int
    ) -> None:
        """Raise if a read went past the end of its file, or asked for too much at once.

        A head is asked for before it is known how long the file is.
        """
        for name, path, offset, length in disk.operations:
            if name == "read" and (
                offset + length > max(len(image[path]), head) or length > window
            ):
                size = len(image[path])
                what = f"{length} bytes at {offset} of {path}, which has {size}"
                raise self.broken(NO_MORE, f"asked for: {what}")


# Changes

LIMITS = [
    *(0, 1, 2),
    *(2**bits + n for bits in (7, 8, 30, 32, 56, 63, 64) for n in (-1, 0, 1)),
]


def limits_of(width: int) -> list[int]:
    """Return the limits, as a number of so many bytes can say them."""
    return sorted({limit % 2 ** (8 * width) for limit in LIMITS})


def flip_a_bit(chance: Random, raw: bytearray, _: Fields) -> str:
    place = chance.randrange(len(raw))
    raw[place] ^= 1 << chance.randrange(8)
    return f"a bit of byte {place} flipped"


def a_range(chance: Random, raw: bytes | bytearray) -> slice:
    """Return a range of some bytes, mostly a short one."""
    start = chance.randrange(len(raw))
    return slice(start, start + chance.choice((1, 4, 19, len(raw))))


def cut_off(chance: Random, raw: bytearray, _: Fields) -> str:
    length = chance.randrange(len(raw))
    del raw[length:]
    return f"cut to {length} bytes"


def drop(chance: Random, raw: bytearray, _: Fields) -> str:
    gone = a_range(chance, raw)
    del raw[gone]
    return f"bytes {gone.start} to {gone.stop} dropped"


def splice(chance: Random, raw: bytearray, _: Fields) -> str:
    copied = raw[a_range(chance, raw)]
    more = chance.choice((copied, bytes(len(copied)), chance.randbytes(len(copied))))
    place = chance.randrange(len(raw) + 1)
    raw[place:place] = more
    return f"{len(more)} bytes inserted at {place}"


def overwrite(chance: Random, raw: bytearray, _: Fields) -> str:
    copied, place = raw[a_range(chance, raw)], chance.randrange(len(raw))
    raw[place : place + len(copied)] = copied
    return f"{len(copied)} bytes written over those at {place}"


def set_a_number(chance: Random, raw: bytearray, fields: Fields) -> str:
    place, width = chance.choice(fields)
    near = len(raw) - chance.choice((-1, 0, 1, 19, 32))
    number = chance.choice((*LIMITS, near)) % 2 ** (8 * width)
    raw[place : place + width] = number.to_bytes(width, "little")
    return f"the number at {place} set to {number}"


CHANGES = (flip_a_bit, cut_off, drop, splice, overwrite, set_a_number, set_a_number)


def changed(
    chance: Random, raw: bytes, fields: Fields, trial: Trial, times: int = 1
) -> bytes:
    """Return some bytes after so many changes, as long as any are left."""
    result = bytearray(raw)
    for _ in range(times):
        if result:
            trial.steps.append(chance.choice(CHANGES)(chance, result, fields))
    return bytes(result)
