"""Where the newest record of every key lies: one dictionary, in memory.

This is Bitcask's "keydir" (Sheehy and Smith, 2010): a read costs one look-up here and one
read of a file, however large the store is. The price is that every key is in memory,
with some 100 bytes around it, and that the index has to be built anew at every start.

A location is one integer that packs the number of a segment, an offset and a length. A
tuple of three integers would say the same and take about three times the room.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

OFFSET_SHIFT = 32
SEGMENT_SHIFT = 64
MASK = (1 << 32) - 1


def pack(segment: int, offset: int, length: int) -> int:
    """Return a location: segment number, offset (32 bits) and length (32 bits)."""
    return segment << SEGMENT_SHIFT | offset << OFFSET_SHIFT | length


class Location(NamedTuple):
    """A location, unpacked."""

    segment: int
    offset: int
    length: int


def unpack(location: int) -> Location:
    """Return what `pack` was given."""
    return Location(
        location >> SEGMENT_SHIFT, location >> OFFSET_SHIFT & MASK, location & MASK
    )


class Index(dict[bytes, int]):
    """Key to location. A plain dictionary, so that a look-up costs what a dict costs."""

    __slots__ = ()

    def live_bytes(self) -> Counter[int]:
        """Count the bytes of the newest records, segment by segment.

        Nobody keeps count while records are put: that would slow down every put for a
        number that is wanted now and then.
        """
        live: Counter[int] = Counter()
        for location in self.copy().values():
            live[location >> SEGMENT_SHIFT] += location & MASK
        return live

    def move(self, key: bytes, old: int, new: int) -> None:
        """Point a key to its record's new place, unless it has a newer record by now."""
        if self.get(key) == old:
            self[key] = new
