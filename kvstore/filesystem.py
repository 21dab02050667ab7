"""The only module that calls the operating system.

Everything the store does to files goes through a `FileSystem`: some twenty small methods,
each one system call and the care that it needs. Another object with the same methods
can stand in its place, and that is how the tests make a disk fill up, fail, or
lose power.

It leaves out Windows (locks and directory fsyncs work differently there), network file
systems (their locks and their caches promise less), direct I/O and asynchronous I/O.
The last two would let a store keep more requests in flight; the price here is that one
thread waits for one fsync at a time.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from kvstore.errors import LockedError


class File:
    """An open file, which closes when the last one who holds it lets go.

    A reader that is in the middle of a file can't have it closed under its hands, and
    a descriptor number can't be used again by the system for another file meanwhile.
    """

    __slots__ = ("_close", "descriptor")

    def __init__(self, descriptor: int, close: Callable[[int], None]) -> None:
        self.descriptor = descriptor
        self._close = close

    def __del__(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        self._close(descriptor)


class FileSystem:
    """The files of this machine."""

    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)

    def open(self, path: str, *, writable: bool = False) -> File:
        """Open a file that exists. Never follows a link at the end of the path."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        return File(os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC), os.close)

    def create(self, path: str) -> File:
        """Make a file that does not exist yet, for this user alone.

        Raises `FileExistsError` rather than touch a file that somebody else made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return File(os.open(path, flags, 0o600), os.close)

    def size(self, file: File) -> int:
        """Return the length of the file in bytes."""
        return os.fstat(file.descriptor).st_size

    def read(self, file: File, length: int, offset: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer only at the end of the file."""
        data = self.pread(file.descriptor, length, offset)
        while len(data) < length:
            more = self.pread(file.descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, file: File, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`, in as many calls as the system wants."""
        view = memoryview(data)
        while view:
            written = self.pwrite(file.descriptor, view, offset)
            view = view[written:]
            offset += written

    def truncate(self, file: File, length: int) -> None:
        """Cut the file to `length` bytes."""
        os.ftruncate(file.descriptor, length)

    def map(self, file: File, length: int) -> mmap.mmap | bytes:
        """Show the first `length` bytes of the file as memory, or as many as there are.

        A slice of it is a read without a system call. The price: where the disk itself
        fails under a mapping, the system ends the process instead of raising an error.
        """
        with suppress(ValueError):  # raised if another process has cut the file
            return mmap.mmap(file.descriptor, length, prot=mmap.PROT_READ)
        return mmap.mmap(file.descriptor, 0, prot=mmap.PROT_READ)

    def sync(self, file: File) -> None:
        """Return when the file is on the disk: its bytes, and how many they are."""
        if hasattr(fcntl, "F_FULLFSYNC"):
            # macOS, where fsync alone stops at the drive's own cache
            fcntl.fcntl(file.descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(file.descriptor)

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory are on the disk.

        A file's fsync does not cover the entry that leads to it.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.sync(File(os.open(path, flags), os.close))

    def rename(self, source: str, target: str) -> None:
        """Give a file a new name, in one step, over whatever had that name before."""
        os.rename(source, target)

    def remove(self, path: str) -> None:
        """Take the name away. The bytes go when the last holder of the file lets go."""
        os.unlink(path)

    def exists(self, path: str) -> bool:
        """Say whether there is anything at this path, a broken link included."""
        return os.path.lexists(path)

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(os.listdir(directory))

    def make_directory(self, path: str) -> None:
        """Make a directory for this user alone, if it is missing; make its name durable."""
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        self.sync_directory(os.path.dirname(path.rstrip("/")) or ".")

    def random_bytes(self, count: int) -> bytes:
        """Return bytes that no other file was given."""
        return os.urandom(count)

    def after_fork(self, in_child: Callable[[], None]) -> None:
        """Have a function called in every child that this process forks from now on."""
        os.register_at_fork(after_in_child=in_child)

    def lock(self, path: str) -> Lock:
        """Take the one lock that a writer needs, or raise `LockedError` at once."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return Lock(path, File(os.open(path, flags, 0o600), os.close))


class Lock:
    """A lock on a file that is made once and never removed.

    The lock is flock's, which the kernel drops when the process ends, however it ends.
    The number in the file only tells a person who to look for: process numbers are used
    again, so nothing is decided by it.
    """

    # Where flock is built on POSIX locks (NFS), the same process could lock twice, and
    # closing either handle would drop both locks. So each process also counts its own.
    _held: ClassVar[dict[tuple[int, int], int]] = {}

    def __init__(self, path: str, file: File) -> None:
        self._file: File | None = None
        status = os.fstat(file.descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._process = os.getpid()
        if self._held.get(self._identity) == self._process:
            raise LockedError(
                f"{path}: this process has the store open for writing already"
            )
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file.descriptor, 20, 0).decode("ascii", "replace").strip()
            raise LockedError(
                f"{path}: process {holder or 'unknown'} has the store open for writing; "
                f'close it there, or open it here with flag="r"'
            ) from None
        self._held[self._identity] = self._process
        self._file = file
        with suppress(OSError):  # on a full disk the lock holds without a number
            os.ftruncate(file.descriptor, 0)
            os.pwrite(file.descriptor, b"%d\n" % self._process, 0)

    def release(self) -> None:
        """Let others write. Safe to call twice.

        A forked child shares the lock. Where the child lets go, the parent keeps it;
        where the parent does, the lock ends, even if a child still has the file open.
        """
        file, self._file = self._file, None
        if file is not None and self._process == os.getpid():
            del self._held[self._identity]
            if file.descriptor >= 0:  # closed already, if both went at the same moment
                fcntl.flock(file.descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        self.release()


DISK = FileSystem()
