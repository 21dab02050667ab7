"""Every error that the store raises, what it means, and what to do about it.

An error of the operating system (a full disk, a missing permission) stays the
``OSError`` that it is. A key that is not there is a ``KeyError``, a ``str`` where
bytes belong is a ``TypeError``, an option that makes no sense a ``ValueError``.
Everything else that can go wrong has a name here, and `KVStoreError` is the base of
them all.
"""

from __future__ import annotations


class KVStoreError(Exception):
    """The base of every error that is the store's own."""


class LimitError(KVStoreError, ValueError):
    """A key, a value or a batch is larger than a record can hold.

    Nothing was written. Store something smaller, or split it.
    """


class BadRecordError(KVStoreError):
    """Some bytes are not a whole record. The message says what is wrong with them.

    Only code that decodes bytes of its own sees this one. A store knows the file and
    the offset as well, and raises `CorruptionError`.
    """


class CorruptionError(KVStoreError):
    """A file of the store does not hold what was written to it.

    `path` names the file, `offset` the byte at which the trouble begins, `reason`
    what is wrong there. Nothing was changed. Take the files from a backup, or let
    `kvstore.salvage` copy what can still be read into a new store.
    """

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(path, offset, reason)
        self.path = path
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path}, offset {self.offset}: {self.reason}. Restore the file from a "
            f"backup, or copy what is left with kvstore.salvage(source, target)"
        )


class NewerFormatError(KVStoreError):
    """The files were written by a newer version of the store. Use that version."""


class StoreNotFoundError(KVStoreError):
    """There is no store at this path, and the flag forbids making one."""


class StoreRemovedError(KVStoreError):
    """The directory of an open store was removed, and what was in it is gone.

    What is in memory can still be read. Write it to another store.
    """


class ForeignDirectoryError(KVStoreError):
    """What is at this path is not a store. Nothing was changed; choose another path."""


class LockedError(KVStoreError):
    """Another handle has the store open for writing.

    Close that one first, or open the store read-only with ``flag="r"``.
    """


class ClosedError(KVStoreError):
    """The store was closed. Open it again."""


class ReadOnlyError(KVStoreError):
    """The store was opened with ``flag="r"``. Open it with ``"w"`` to write."""


class WriteRefusedError(KVStoreError):
    """The store does not take writes any more, and the message says why.

    After a failed fsync nobody knows which of the last writes are on the disk.
    Reading goes on. Fix the cause and open the store again: opening it checks and
    writes anew what was not known to be safe.
    """


class ReentrantError(KVStoreError, RuntimeError):
    """The store was called from inside one of its own calls, by the same thread.

    A signal handler or a finalizer can do that. Waiting would be waiting for oneself.
    Have the handler set a flag, and call the store when the first call has returned.
    """


class UnsupportedPlatformError(KVStoreError):
    """A store on the disk needs something that Python lacks here; the message says what."""
