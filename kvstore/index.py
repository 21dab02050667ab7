"""Where the newest record of every key lies: one dictionary, in memory.

This is Bitcask's "keydir" (Sheehy and Smith, 2010): a read costs one look-up here and one
read of a file, however large the store is. The price is that every key is in memory,
with some 100 bytes around it, and that the index has to be built anew at every start.

A location is one integer that packs the number of a segment, an offset and a length. A
tuple of three integers would say the same and take three to four times the space.

An iteration has to see the index as it was when it began. Copying a million entries would
stop every writer for a tenth of a second. So what there is freezes instead, and changes go
to a new dictionary on top of it, as in the memtables of a log-structured merge tree
(O'Neil and others, 1996). When no iteration needs what is frozen, the changes are folded
into it, some at a time. Until then a look-up takes a step for each layer.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from weakref import WeakValueDictionary

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


GONE = 0  # no location: in a layer, the key was deleted after what is below it froze
STEP = 1000  # changes that are folded at a time, with the lock for writing held
MOST_FROZEN = 8  # layers; more are merged, so that a look-up does not take ever longer

Layer = dict[bytes, int]


class Layers(NamedTuple):
    """Dictionaries on top of each other, the newest first: the first that has a key wins."""

    layers: tuple[Layer, ...]

    def get(self, key: bytes) -> int | None:
        """Return the location of a key, or `GONE` or None if there is none."""
        for layer in self.layers:
            location = layer.get(key)
            if location is not None:
                return location
        return None

    def locations(self) -> Iterator[tuple[bytes, int]]:
        """Yield every key with its location, in the order in which the keys came."""
        if len(self.layers) == 1:
            yield from self.layers[0].items()
            return
        older: list[Layer] = []
        for layer in reversed(self.layers):
            for key in layer:
                location = self.get(key)
                if location and not any(key in each for each in older):
                    yield key, location
            older.append(layer)


class Moment:
    """What an index held at one moment. As long as somebody has it, nothing of it changes."""

    __slots__ = ("__weakref__", "layers", "number")

    def __init__(self, number: int, layers: Layers) -> None:
        self.number = number
        self.layers = layers

    def live_bytes(self) -> Counter[int]:
        """Count the bytes of the newest records, segment by segment.

        Nobody keeps count while records are put: that would slow down every put for a
        number that is wanted now and then.
        """
        live: Counter[int] = Counter()
        for _, location in self.layers.locations():
            live[location >> SEGMENT_SHIFT] += location & MASK
        return live


# A layer, and what of it has still to be folded.
Folding = tuple[Layer, Iterator[tuple[bytes, int]]]
# Frozen layers, and the keys of them that nobody has asked for.
Walk = tuple[tuple[Layer, ...], Iterator[tuple[bytes, int]]]
NOWHERE: Walk = ((), iter(()))
NOTHING_TO_FOLD: Folding = ({}, iter(()))


class Index:
    """Key to location: `get` finds one, and what else changes it needs the writers' lock.

    With no iteration under way `get` is that of the one dictionary, so a look-up costs
    what it costs there, and a writer may put into `top` directly. Otherwise, and for a
    batch, there is `apply`.
    """

    def __init__(self, locations: Layer | None = None) -> None:
        self.top: Layer = {} if locations is None else locations
        self.frozen: tuple[Layer, ...] = ()  # what is below the top, the newest first
        self.get: Callable[[bytes], int | None] = self.top.get
        self._count = 0  # of keys, while there is more than the top
        self._moments: WeakValueDictionary[int, Moment] = WeakValueDictionary()
        self._numbers = itertools.count()
        self._some: list[bytes] = []  # keys that `some_key` may return
        self._walk = NOWHERE
        self._folding = NOTHING_TO_FOLD

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._count if self.frozen else len(self.top)

    def apply(self, changes: Layer) -> None:
        """Make changes, all of them in one step for everybody who reads.

        `GONE` is for a key that is there and shall not be. Safe to do again, if an
        interrupt leaves open whether it was done.
        """
        if not self.frozen and all(changes.values()):
            self.top.update(changes)  # one call: no signal and no thread comes between
            return
        count = len(self)
        for key, location in changes.items():
            count += bool(location) - bool(self.get(key))
        if self.frozen:
            self._count = count
            self.top.update(changes)
        else:
            self._put_on_top(changes.copy(), (self.top,), count)
            self._fold_top()

    def _put_on_top(self, top: Layer, frozen: tuple[Layer, ...], count: int) -> None:
        """Change the layers, in one assignment."""
        get = Layers((top, *frozen)).get if frozen else top.get
        self.top, self.frozen, self._count, self.get = top, frozen, count, get

    def move(self, moves: Iterable[tuple[bytes, int, int]]) -> None:
        """Point keys to their records' new places, but for those with newer records by now."""
        for key, old, new in moves:
            if self.get(key) == old:
                self.top[key] = new

    def emptied(self) -> Index:
        """Return an index without keys, which knows of the same moments."""
        empty = Index()
        empty._moments = self._moments
        return empty

    def some_key(self) -> bytes | None:
        """Return some key; None if there is none.

        Looking for one would walk over the places of all that were deleted before, so a
        thousand are looked up at a time.
        """
        while True:
            if not self._some:
                self._some, self._walk = self._more_keys()
            if not self._some or self.get(self._some[-1]):
                return self._some[-1] if self._some else None
            self._some.pop()

    def _more_keys(self) -> tuple[list[bytes], Walk]:
        """Return the next thousand keys of what is frozen; after them, those of the top."""
        (known, left), self._walk = self._walk, NOWHERE
        if known is not self.frozen:
            left = Layers(self.frozen).locations()
        found = [key for key, _ in itertools.islice(left, STEP)]
        if not found:
            there = (key for key in reversed(self.top) if self.top[key])
            found = list(itertools.islice(there, STEP))[::-1]
        return found, (self.frozen, left)

    def moment(self, frozen: tuple[Layer, ...], fewer: tuple[Layer, ...]) -> Moment:
        """Freeze what there is now, and return it.

        `merge_layers` has said that the `fewer` layers say the same as the `frozen` ones.
        """
        if self.frozen is frozen and fewer is not frozen:
            self._put_on_top(self.top, fewer, len(self))
        if self.top or not self.frozen:
            self._put_on_top({}, (self.top, *self.frozen), len(self))
        return self._noted(Layers(self.frozen))

    def pin(self) -> Moment:
        """Return a moment that holds nothing, but keeps what others at this moment hold."""
        return self._noted(Layers(()))

    def _noted(self, layers: Layers) -> Moment:
        moment = Moment(next(self._numbers), layers)
        self._moments[moment.number] = moment
        return moment

    @property
    def is_needed(self) -> bool:
        """Say whether somebody still goes through what was there at some moment."""
        return bool(self._moments)

    def oldest_moment(self) -> float:
        """Return the number of the oldest moment that somebody needs, or infinity."""
        return min(self._moments, default=math.inf)

    def next_moment(self) -> int:
        """Return a number that every moment to come exceeds."""
        return next(self._numbers)

    def fold(self) -> bool:
        """Fold some changes into what is frozen; say whether there may be more to fold.

        Nothing can be folded while a moment is needed. A key that was folded is still
        in the layer above, so it does not matter where a fold is interrupted.
        """
        if not self.frozen or self._moments:
            return False
        if len(self.frozen) == 1 and len(self.top) <= STEP:
            self._fold_top()
            return False
        if len(self.frozen) == 1:
            self._put_on_top({}, (self.top, *self.frozen), len(self))
        *newer, layer, base = self.frozen
        (known, left), self._folding = self._folding, NOTHING_TO_FOLD
        if known is not layer:
            left = iter(layer.items())
        some = list(itertools.islice(left, STEP))
        self._walk = NOWHERE  # who walks over `base` has to begin anew
        fold_into(base, some)
        if some:  # all of them are folded now; after an interrupt it begins anew
            self._folding = layer, left
        else:
            self._put_on_top(self.top, (*newer, base), len(self))
        return True

    def _fold_top(self) -> None:
        """Fold the top into the one layer below, which is the one dictionary again."""
        if not self._moments:
            self._walk = NOWHERE
            (base,) = self.frozen
            fold_into(base, self.top.items())
            self._put_on_top(base, (), len(base))

    def merge_layers(self) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """Return the frozen layers, and fewer that say the same. Needs no lock.

        Folding changes only the base, which is not copied, so others can write meanwhile.
        """
        frozen = self.frozen
        if len(frozen) <= MOST_FROZEN:
            return frozen, frozen
        *changes, base = frozen
        merged: Layer = {}
        for layer in reversed(changes):
            left = iter(layer.items())
            while some := list(itertools.islice(left, STEP)):
                merged.update(some)
        return frozen, (merged, base)


def fold_into(base: Layer, changes: Iterable[tuple[bytes, int]]) -> None:
    """Make changes in a dictionary; `GONE` takes the key out."""
    for key, location in changes:
        if location:
            base[key] = location
        else:
            base.pop(key, None)


SEQUENCE_SHIFT = 2 * SEGMENT_SHIFT
PLACE_MASK = (1 << SEQUENCE_SHIFT) - 1


class IndexBuilder:
    """The newest record of every key among those seen so far, in whatever order.

    Sequence number and location are packed into one integer, the sequence number on top.
    So the larger integer is the newer record. A deleted key has no location.
    """

    def __init__(self) -> None:
        self._records: dict[bytes, int] = {}

    def add(self, sequence: int, key: bytes, location: int) -> None:
        """Take note of a record, if it is newer than what is known of its key.

        `GONE` is the location of a delete.
        """
        known = self._records.get(key, 0)
        self._records[key] = max(known, sequence << SEQUENCE_SHIFT | location)

    def locations(self) -> Layer:
        """Return the keys that are not deleted, and where they are."""
        return {
            key: record & PLACE_MASK
            for key, record in self._records.items()
            if record & PLACE_MASK
        }
