"""Opening a store: what is at the path, what the options say, and on which machine."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from kvstore.directory import (
    LOCK,
    create_store,
    find_or_raise,
    load_alone,
    load_beside_a_writer,
    not_found,
)
from kvstore.engine import Flag, Store, Sync
from kvstore.errors import ForeignDirectoryError, UnsupportedPlatformError
from kvstore.filesystem import Directory, FileSystem
from kvstore.store import LogStore

MEBIBYTE = 1 << 20
MAX_SEGMENT_BYTES = 1 << 30

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def open(
    path: AnyPath,
    flag: Flag = "c",
    *,
    sync: Sync = "os",
    segment_bytes: int = 64 * MEBIBYTE,
    filesystem: FileSystem | None = None,
) -> Store:
    """Open the store in the directory `path`, and make it if need be.

    flag
        ``"r"`` reads only, ``"w"`` reads and writes a store that exists, ``"c"`` makes it
        if it does not, ``"n"`` begins with an empty one, whatever store was there.
    sync
        When a write is on the disk. ``"os"``: when the operating system sees fit; the
        write outlives this process, but perhaps not a power cut. ``"always"``: before
        the call returns. A number: at most about that many seconds later.
    segment_bytes
        A segment that has reached this length in bytes takes no more records.
    filesystem
        What stands for the operating system: None for this machine's, another one in
        tests.

    Raises `StoreNotFoundError`, `ForeignDirectoryError`, `LockedError`,
    `NewerFormatError`, `CorruptionError`, `UnsupportedPlatformError`; `ValueError` for
    options that make no sense.
    """
    check_options(flag, sync, segment_bytes)
    machine = filesystem or this_machine()
    name = os.fsdecode(path)
    directory = directory_of_store(machine, name, flag)
    if flag == "r":
        loaded = load_beside_a_writer(machine, directory)
        return LogStore(machine, directory, *loaded, segment_bytes)
    lock = directory.lock(LOCK)
    try:
        found = find_or_raise(machine, directory, flag)  # it may just have been made
        if flag == "n" or not found:
            create_store(machine, directory)
        loaded = load_alone(machine, directory)
        return LogStore(machine, directory, *loaded, segment_bytes, lock, sync)
    except BaseException:
        lock.release()  # now, and not when the last traceback is forgotten
        raise


def directory_of_store(filesystem: FileSystem, path: str, flag: Flag) -> Directory:
    """Open the directory at a path, or make it where the flag allows that.

    One without a store is made again: perhaps whoever made it before lost power, or was
    killed, before its name was durable.
    """
    try:
        with suppress(FileNotFoundError):
            directory = filesystem.open_directory(path)
            if find_or_raise(filesystem, directory, flag):
                return directory
        if flag in ("r", "w"):
            raise not_found(path, flag)
        return filesystem.make_directory(path)
    except NotADirectoryError:
        raise ForeignDirectoryError(
            f"{path} is a file; a store is a directory"
        ) from None


def this_machine() -> FileSystem:
    """Return the files of this machine, if this Python can reach all that a store needs."""
    try:
        from kvstore.posix import DISK
    except (ImportError, AttributeError) as error:
        raise UnsupportedPlatformError(
            f"a store on this machine's disk needs Linux or macOS, and this Python lacks "
            f"something that they have: {error}"
        ) from error
    return DISK


def check_options(flag: str, sync: Sync, segment_bytes: int) -> None:
    """Raise `ValueError`, with what would make sense, for options that do not."""
    if flag not in ("r", "w", "c", "n"):
        raise ValueError(
            f'flag is {flag!r}; "r" reads only, "w" writes an existing store, "c" makes it '
            f'if need be, "n" begins with an empty one'
        )
    seconds = (
        sync if isinstance(sync, int | float) and not isinstance(sync, bool) else 0
    )
    if sync not in ("os", "always") and not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError(
            f'sync is {sync!r}; use "os", "always" or a number of seconds above 0'
        )
    if type(segment_bytes) is not int or not 1 <= segment_bytes <= MAX_SEGMENT_BYTES:
        raise ValueError(
            f"segment_bytes is {segment_bytes!r}; use a whole number of bytes from 1 to "
            f"{MAX_SEGMENT_BYTES:,}"
        )
