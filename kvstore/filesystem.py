"""The seam between the store and the operating system.

Everything the store does to files goes through a `FileSystem`: some twenty small methods,
each one system call and the care that it needs. `posix` has those of a real machine,
`simdisk` those of a machine in memory, and that is how the tests make a disk fill up, fail,
or lose power.

A store asks for its directory once, and from then on for names inside that directory.
Whatever happens to the working directory or to the directory's own name, no call can end
up in another store.

The interface leaves out Windows (locks and directory fsyncs work differently there), network
file systems (their locks and their caches promise less), direct I/O and asynchronous I/O.
The last two would let a store keep more requests in flight; the price here is that one
thread waits for one fsync at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from weakref import ReferenceType, ref

from kvstore.errors import KVStoreError


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
        self._close(self.descriptor)


def nothing_to_close(_: int) -> None:
    """Close what was never open."""


# Stands where a file was: a descriptor that no system gives, so every call with it fails.
# (-1 would not do. For `os.listdir` it means the working directory.)
NO_FILE = File(1 << 30, nothing_to_close)


class Bytes(Protocol):
    """What a map of a file has to offer: slices, and a length."""

    def __getitem__(self, place: slice, /) -> bytes:
        """Return the bytes of a slice, fewer where the map ends."""

    def __len__(self) -> int:
        """Return how many bytes of the file the map shows."""


class Lock(ABC):
    """The right to write to a store, which one handle has at a time."""

    @abstractmethod
    def release(self) -> None:
        """Let others write. Safe to call again, after an interrupt too."""


class Directory(ABC):
    """An open directory. It stays the same one, whatever becomes of its name.

    `path` is what it was called when it was opened, and serves in messages only.
    """

    path: str
    why_missing: KVStoreError | None = None  # when others may change what is in it

    @abstractmethod
    def open(self, name: str, *, writable: bool = False) -> File:
        """Open a file that exists. Never follows a link."""

    @abstractmethod
    def create(self, name: str) -> File:
        """Make a file that does not exist yet, for this user alone.

        Raises `FileExistsError` rather than touch a file that somebody else made.
        """

    @abstractmethod
    def rename(self, source: str, target: str) -> None:
        """Give a file a new name, in one step, over whatever had that name before."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take the name away. The bytes go when the last holder of the file lets go."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Say whether there is anything of this name, a broken link included."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names in the directory, sorted."""

    @abstractmethod
    def sync(self) -> None:
        """Return when the names in the directory are on the disk.

        A file's fsync does not cover the entry that leads to it.
        """

    @abstractmethod
    def is_removed(self) -> bool:
        """Say whether the directory has no name any more, so that nobody can find it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the directory. Nothing can be reached through it any more."""

    @abstractmethod
    def lock(self, name: str) -> Lock:
        """Take the one lock that a writer needs, or raise `LockedError` at once.

        The directory itself is locked, and the file `name` in it, which is made if need
        be.
        """


class Holder(Protocol):
    """What keeps something open that it could open again."""

    def let_go(self) -> None:
        """Close it."""


class Budget:
    """Those that hold what could be opened again: not too many, since descriptors are few.

    There is one for all stores of a process. Whoever opened first lets go first. To know
    which was read last would cost every read something, and the worst that can happen is
    that a file is opened again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._holders: deque[ReferenceType[Holder]] = deque()

    def note(self, holder: Holder) -> None:
        """Note one more, and have others let go if it is one too many."""
        self._holders.append(ref(holder))
        while len(self._holders) > self.most:
            self._let_go_of_one()

    def let_go_of_all(self) -> None:
        """Have everybody let go, but for those who are reading at this moment."""
        while self._holders:
            self._let_go_of_one()

    def _let_go_of_one(self) -> None:
        with suppress(IndexError):  # other threads take from it as well
            holder = self._holders.popleft()()
            if holder is not None:
                holder.let_go()


class FileSystem(ABC):
    """The files of a machine.

    `pread` and `pwrite` take a descriptor. They may be the system's own functions, so that
    a put pays for no call in between.
    """

    budget: Budget
    pread: Callable[[int, int, int], bytes]
    pwrite: Callable[[int, bytes | memoryview, int], int]

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Say whether there is anything at this path, a broken link included."""

    @abstractmethod
    def open_directory(self, path: str) -> Directory:
        """Open a directory that exists."""

    @abstractmethod
    def make_directory(self, path: str) -> Directory:
        """Make a directory for this user alone if there is none, durably; open it."""

    @abstractmethod
    def size(self, file: File) -> int:
        """Return the length of the file in bytes."""

    @abstractmethod
    def truncate(self, file: File, length: int) -> None:
        """Cut the file to `length` bytes."""

    @abstractmethod
    def map(self, file: File, length: int) -> Bytes:
        """Show the first `length` bytes of the file as memory, or as many as there are.

        A slice of it is a read without a system call.
        """

    @abstractmethod
    def sync(self, file: File) -> None:
        """Return when the file is on the disk: its bytes, and how many they are."""

    @abstractmethod
    def random_bytes(self, count: int) -> bytes:
        """Return bytes that no other file was given."""

    @abstractmethod
    def tell_children(self, owner: Forked) -> None:
        """Have `owner.disown` called in every child that this process forks from now on.

        The owner is held weakly.
        """

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


class Forked(Protocol):
    """What a forked child has a copy of, and must not go on using as its own."""

    def disown(self) -> None:
        """Let go, in the child alone, of what is the parent's."""
