"""What every store here promises, whatever it keeps its records in.

A store is a ``MutableMapping`` of the standard library from bytes to bytes, with a few
things more: changes that are made together, a way to wait for the disk, ways to count,
check and get space back, and an end. An engine says how; this module says what, and
brings what is the same for all of them.

It leaves out what ``dbm`` and larger systems offer beside that: keys in order, cursors,
and transactions that read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import (
    ItemsView,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self, TypeVar

from kvstore.errors import ClosedError, LimitError, WriteRefusedError
from kvstore.record import OVERHEAD_BYTES, check

if TYPE_CHECKING:
    from kvstore.recovery import TornTail
    from kvstore.reports import CompactionReport, Stats, VerificationReport

Flag = Literal["r", "w", "c", "n"]
Sync = Literal["os", "always"] | float
Changes = dict[bytes, bytes | None]  # None: the key is deleted
T = TypeVar("T")


class Store(MutableMapping[bytes, bytes]):
    """An open store. `kvstore.open` makes one; use it in a ``with`` block, or call `close`.

    Keys and values are bytes; a ``str`` is a `TypeError`. A missing key is a `KeyError`.
    An iteration sees the store as it was when it began, whatever is written meanwhile.
    A store that was closed raises `ClosedError`; one that was opened with ``flag="r"``
    raises `ReadOnlyError` where it would have to write.
    """

    torn_tail: TornTail | None = None  # what a crash left, and opening has cut off

    @abstractmethod
    def change(self, changes: Changes) -> None:
        """Make changes, all of them or none; None deletes a key, if it is there."""

    @abstractmethod
    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys that there are now, and their values."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise the reason, if there is one to refuse writes."""

    @abstractmethod
    def sync(self) -> None:
        """Return when everything written so far is on the disk."""

    @abstractmethod
    def compact(self, least_dead: float = 0.0) -> CompactionReport:
        """Give back the space of what is dead.

        `least_dead` is the share of dead bytes, 0.0 to 1.0, from which on a file is worth
        the work.
        """

    @abstractmethod
    def stats(self) -> Stats:
        """Count keys and bytes."""

    @abstractmethod
    def verify(self) -> VerificationReport:
        """Read everything, and report what is damaged. Changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Make everything durable, and let go of the store. Closing again does no harm."""

    def batch(self) -> Batch:
        """Return a batch: what happens in its ``with`` block is done wholly or not at all."""
        return Batch(self)

    def keys(self) -> KeysView[bytes]:
        """Return a view; each iteration over it sees the store as it was when it began."""
        return StoreKeys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """Return a view; each iteration over it sees the store as it was when it began."""
        return StoreItems(self)

    def values(self) -> ValuesView[bytes]:
        """Return a view; each iteration over it sees the store as it was when it began."""
        return StoreValues(self)

    def clear(self) -> None:
        """Delete every key that there is now."""
        for key in self:
            with suppress(KeyError):  # another thread deleted it
                del self[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except WriteRefusedError:
            if error is None:  # or else the error on its way says it already
                raise

    def __reduce__(self) -> NoReturn:
        # Two of them would write to the same files.
        raise TypeError("a store can't be copied or pickled; open its path instead")


class StoreKeys(KeysView[bytes]):
    """The keys of a store."""

    _mapping: Store

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._mapping)


class StoreItems(ItemsView[bytes, bytes]):
    """The items of a store."""

    _mapping: Store

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.pairs()


class StoreValues(ValuesView[bytes]):
    """The values of a store."""

    _mapping: Store

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping.pairs())

    def __contains__(self, value: object) -> bool:
        return any(value == each for each in self)


class Batch:
    """Changes that are made together, when the ``with`` block ends without an error.

    After a crash, however it comes, either all of them are there or none.
    """

    def __init__(self, store: Store) -> None:
        store.check_writable()
        self._store = store
        self._changes: Changes | None = None

    def __enter__(self) -> Self:
        if self._changes is not None:
            raise RuntimeError(
                "this batch is open already; a batch inside another is a second db.batch()"
            )
        self._changes = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        changes, self._changes = self._open_changes(), None
        if kind is None:
            self._store.change(changes)

    def _open_changes(self) -> Changes:
        if self._changes is None:
            raise ClosedError(
                "a batch takes changes inside its with block, and only there"
            )
        return self._changes

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Put a value under a key when the block ends."""
        check(key, value)
        self._open_changes()[key] = value

    def __delitem__(self, key: bytes) -> None:
        """Delete a key when the block ends. Raises `KeyError` if there is none now."""
        changes = self._open_changes()
        if (changes[key] is None) if key in changes else (key not in self._store):
            raise KeyError(key)
        changes[key] = None

    def __len__(self) -> int:
        """Return how many keys the batch changes."""
        return len(self._open_changes())


MAX_BATCH_BYTES = (1 << 31) - 4096  # what one write call takes on Linux


def check_changes(changes: Changes) -> None:
    """Raise what `check` raises, and `LimitError` for more than one write can hold."""
    size = 0
    for key, value in changes.items():
        check(key, b"" if value is None else value)
        size += OVERHEAD_BYTES + len(key) + len(value or b"")
    if size > MAX_BATCH_BYTES:
        raise LimitError(
            f"the batch has {size:,} bytes, at most {MAX_BATCH_BYTES:,} are possible; "
            f"use several batches"
        )
