"""The files of this machine: the only module that calls the operating system.

A directory is a descriptor, and every name is looked up from there (``openat`` and its
family, POSIX 2008). Linux and macOS have all that this module imports. Where a
descriptor only remembers a path (a Python in a browser), the store works as well, but
without the promises about a directory that is moved or removed while it is open.

What it leaves out, the module `filesystem` says.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, TypeVar

from kvstore.errors import LockedError
from kvstore.filesystem import (
    NO_FILE,
    Budget,
    Bytes,
    Directory,
    File,
    FileSystem,
    Forked,
    Lock,
)

T = TypeVar("T")


class PosixFileSystem(FileSystem):
    """The files of a machine with Linux or macOS."""

    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)

    def __init__(self) -> None:
        self.budget = Budget(most_open())

    def exists(self, path: str) -> bool:
        """Say whether there is anything at this path, a broken link included."""
        return os.path.lexists(path)

    def open_directory(self, path: str) -> Directory:
        """Open a directory that exists."""
        return PosixDirectory(self, path, open_file(path, DIRECTORY))

    def make_directory(self, path: str) -> Directory:
        """Make a directory for this user alone if there is none, durably; open it."""
        above, name = os.path.split(path.rstrip("/"))
        parent = open_file(above or ".", DIRECTORY)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent.descriptor)
        self.sync(parent)
        return PosixDirectory(self, path, open_file(name, DIRECTORY, parent))

    def size(self, file: File) -> int:
        """Return the length of the file in bytes."""
        return os.fstat(file.descriptor).st_size

    def truncate(self, file: File, length: int) -> None:
        """Cut the file to `length` bytes."""
        os.ftruncate(file.descriptor, length)

    def map(self, file: File, length: int) -> Bytes:
        """Show the first `length` bytes of the file as memory, or as many as there are.

        The price of reading without a system call: where the disk itself fails under a
        mapping, the system ends the process instead of raising an error.
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

    def random_bytes(self, count: int) -> bytes:
        """Return bytes that no other file was given."""
        return os.urandom(count)

    def tell_children(self, owner: Forked) -> None:
        """Have `owner.disown` called in every child that this process forks from now on."""
        owners[id(owner)] = owner


MOST_OPEN = 4096


def most_open() -> int:
    """Return how many sealed segments should be open at a time.

    Each costs one descriptor. A quarter of what the process may have leaves enough for
    everything else.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return MOST_OPEN
    return max(8, min(allowed // 4, MOST_OPEN))


DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def with_a_descriptor(call: Callable[[], T]) -> T:
    """Make a call. If there is no descriptor for it, let go of files, and try again."""
    try:
        return call()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    DISK.budget.let_go_of_all()
    return call()


def open_file(path: str, flags: int, directory: File | None = None) -> File:
    """Open a path, as seen from a directory. No program that is run inherits the file."""
    above = None if directory is None else directory.descriptor
    flags |= os.O_CLOEXEC
    return with_a_descriptor(
        lambda: File(os.open(path, flags, 0o600, dir_fd=above), os.close)
    )


class PosixDirectory(Directory):
    """A directory by its descriptor."""

    def __init__(self, filesystem: PosixFileSystem, path: str, file: File) -> None:
        self.path = path
        self._filesystem = filesystem
        self._file = file

    def open(self, name: str, *, writable: bool = False) -> File:
        """Open a file that exists. Never follows a link."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        return self._open(name, mode | os.O_NOFOLLOW)

    def create(self, name: str) -> File:
        """Make a file that does not exist yet, for this user alone."""
        self._to_change()
        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)

    def _to_change(self) -> int:
        """Return the descriptor, or raise if the directory is not ours to change."""
        if self.why_missing is not None:
            raise type(self.why_missing)(*self.why_missing.args)
        return self._file.descriptor

    def _open(self, name: str, flags: int) -> File:
        try:
            return open_file(name, flags, self._file)
        except OSError as error:
            error.filename = f"{self.path}/{name}"
            raise

    def rename(self, source: str, target: str) -> None:
        """Give a file a new name, in one step, over whatever had that name before."""
        here = self._to_change()
        os.rename(source, target, src_dir_fd=here, dst_dir_fd=here)

    def remove(self, name: str) -> None:
        """Take the name away. The bytes go when the last holder of the file lets go."""
        os.unlink(name, dir_fd=self._to_change())

    def exists(self, name: str) -> bool:
        """Say whether there is anything of this name, a broken link included."""
        with suppress(FileNotFoundError):
            os.lstat(name, dir_fd=self._file.descriptor)
            return True
        return False

    def names(self) -> list[str]:
        """Return the names in the directory, sorted."""
        return with_a_descriptor(lambda: sorted(os.listdir(self._file.descriptor)))

    def sync(self) -> None:
        """Return when the names in the directory are on the disk."""
        self._filesystem.sync(self._file)

    def is_removed(self) -> bool:
        """Say whether the directory has no name any more, so that nobody can find it."""
        return os.fstat(self._file.descriptor).st_nlink == 0

    def close(self) -> None:
        """Let go of the directory. Nothing can be reached through it any more."""
        self._file = NO_FILE

    def lock(self, name: str) -> Lock:
        """Take the one lock that a writer needs, or raise `LockedError` at once."""
        file = self._open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        here = open_file(".", DIRECTORY, self._file)
        return PosixLock(f"{self.path}/{name}", here, file)


class PosixLock(Lock):
    """A lock on a directory, and on a file in it that is made once and never removed.

    Both are flock's, which the kernel drops when the process ends, however it ends. That
    on the directory is the one that counts, that on the file keeps out programs that know
    of no other. The number in the file tells a person who to look for, and no more.
    """

    # Where flock is built on POSIX locks (NFS), the same process could lock twice, and
    # closing either handle would drop both locks. So each process also counts its own.
    # A lock that nobody holds any more is no lock: hence weak.
    held: ClassVar[weakref.WeakValueDictionary[tuple[int, int], PosixLock]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, path: str, directory: File, file: File) -> None:
        self._path = path
        self._files: tuple[File, ...] = (directory, file)
        status = os.fstat(directory.descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._disowned = False
        if self._identity in self.held:
            raise LockedError(
                f"{path}: this process has the store open for writing already"
            )
        try:
            for each in self._files:
                self._lock(each)
        except BaseException:
            self.release()  # now, and not when the last traceback is forgotten
            raise
        self.held[self._identity] = self
        owners[id(self)] = self
        with suppress(OSError):  # on a full disk the lock holds without a number
            os.ftruncate(file.descriptor, 0)
            os.pwrite(file.descriptor, b"%d\n" % os.getpid(), 0)

    def _lock(self, file: File) -> None:
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number = os.pread(self._files[1].descriptor, 20, 0)
            holder = number.decode("ascii", "replace").strip()
            raise LockedError(
                f"{self._path}: process {holder or 'unknown'} has the store open for "
                f'writing; close it there, or open it here with flag="r"'
            ) from None

    def release(self) -> None:
        """Let others write. Safe to call again, after an interrupt too.

        In a forked child this does nothing: the locks are the parent's.
        """
        if not self._disowned:
            for each in self._files:
                fcntl.flock(each.descriptor, fcntl.LOCK_UN)
            if self.held.get(self._identity) is self:
                del self.held[self._identity]
            self._files = ()

    def disown(self) -> None:
        """In a forked child: leave the locks to the parent, which shares them with us.

        A lock lasts until its last descriptor is closed. So the child closes its own, or it
        would keep the store locked when the parent is dead.
        """
        self._disowned = True
        self._files = ()
        self.held.pop(self._identity, None)

    def __del__(self) -> None:
        if self._files:
            with suppress(OSError):  # closed before us, and the locks are gone
                self.release()


DISK = PosixFileSystem()

owners: weakref.WeakValueDictionary[int, Forked] = weakref.WeakValueDictionary()


def disown_all() -> None:
    """In a forked child: what was the parent's stays the parent's."""
    for owner in list(owners.values()):
        owner.disown()


os.register_at_fork(after_in_child=disown_all)
