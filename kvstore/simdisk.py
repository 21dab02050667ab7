"""A disk in memory that can lose power, and shows every state that it may be left in.

`SimulatedDisk` is a `filesystem.FileSystem`, and stands where `posix` would. A process sees
files as they were last written, as on any machine. Beside that the disk keeps account of
what a power cut may leave; what that is, the module `powercut` says.

A test reaches in from three sides. It can make any call fail, and look after each. It can
be another process, which moves and removes what a store has open. And it can lose power.

All of it is kept in memory, with an account of every unsynced sector, so it is made for
stores of kilobytes. Symbolic links, ``..`` in paths, permissions and forks are left out.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

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
from kvstore.powercut import Folder, Image, Inode, Names, Node, Place, PowerCut, tree


class Operation(NamedTuple):
    """One call: what, on which file, as it is called then, and from where how many bytes."""

    name: str
    path: str
    offset: int = 0
    length: int = 0

    def __str__(self) -> str:
        extent = f", {self.length} bytes at {self.offset}" if self.length else ""
        return f"{self.name} {self.path}{extent}"


def no_fault(operation: Operation) -> int | None:
    """Let the call succeed."""


def no_watch(operation: Operation) -> None:
    """Look away."""


def system_error(number: int, path: str) -> OSError:
    """Return the error that the operating system would raise."""
    return OSError(number, os.strerror(number), path)


N = TypeVar("N", bound=Node)


def parts(path: str) -> list[str]:
    """Return the names in a path."""
    return [part for part in path.split("/") if part not in ("", ".")]


class Tree(Names):
    """The names of a machine, and the errors of the system where a name is wrong."""

    def __init__(self, sector_bytes: int, image: Image, older: Image) -> None:
        super().__init__(sector_bytes, image, older)
        self.working = self.root  # where a path begins that has no "/" in front

    def spell(self, path: str) -> str:
        """Return a path from the root on, whether there is anything or not."""
        start = "" if path.startswith("/") else self.working.path
        return "/".join(parts(f"{start}/{path}"))

    def walk(self, path: str) -> Place:
        """Follow a path up to its last name, which may lead to nothing."""
        if not path:
            raise system_error(errno.ENOENT, path)
        *above, name = parts(path) or [""]
        folder = self.root if path.startswith("/") else self.working
        for each in above:
            folder = self.find(Place(folder, each), Folder)
        return Place(folder, name)

    def find(self, place: Place, kind: type[N]) -> N:
        """Return what is at a place, or raise the error that says what is wrong."""
        node = self.seen.get(place) if place.name else place.folder
        if node is None:
            raise system_error(errno.ENOENT, place.path)
        if not isinstance(node, kind):
            wrong = errno.EISDIR if isinstance(node, Folder) else errno.ENOTDIR
            raise system_error(wrong, place.path)
        return node

    def put(self, node: Node, place: Place) -> None:
        """Give a name that is free to something new, or one more to a file."""
        if not place.name or place in self.seen:
            raise system_error(errno.EEXIST, place.path)
        if not self.has_name(place.folder):
            raise system_error(errno.ENOENT, place.path)
        self.change(node, None, place)

    def make_file(self, place: Place) -> Inode:
        """Make a file at a place where there is nothing."""
        inode = Inode(place.path, self.sector_bytes)
        self.put(inode, place)
        return inode

    def rename(self, source: Place, target: Place) -> None:
        """Give a new name, over a file or an empty directory that had it before."""
        node, there = self.find(source, Node), self.seen.get(target)
        if there is node:
            return
        if isinstance(node, Folder) and f"{target.path}/".startswith(f"{node.path}/"):
            raise system_error(errno.EINVAL, target.path)  # into itself
        if not (source.name and target.name and self.has_name(target.folder)):
            raise system_error(errno.ENOENT, target.path)
        if there and self.inside(self.find(target, type(node))):
            raise system_error(errno.ENOTEMPTY, target.path)
        self.change(node, source, target)


class Machine:
    """What goes on around a disk: calls, who looks into them, other processes, the power.

    `image` is what the disk holds at the start. `older` gives bytes that stood in the same
    files before; they turn up where a file grows and nothing is written.
    """

    def __init__(
        self,
        image: Image | None = None,
        *,
        sector_bytes: int = 512,
        seed: int = 0,
        older: Image | None = None,
    ) -> None:
        self.operations: list[Operation] = []
        self.fault: Callable[[Operation], int | None] = no_fault
        self.watch: Callable[[Operation], None] = no_watch
        self.drops_pages = False  # whether a failed fsync takes new bytes out of sight
        self.most_descriptors = 1 << 20
        self.budget = Budget(4)  # so few that small stores let go of segments too
        self.sector_bytes = sector_bytes
        self.tree = Tree(sector_bytes, image or {}, older or {})
        self.locks: Locks = WeakValueDictionary()  # each goes with its last holder
        self._random = random.Random(seed)
        self._open: dict[int, tuple[Node, bool]] = {}  # what, and whether to be written
        self._descriptors = itertools.count(3)
        self._one_call = threading.RLock()

    @contextmanager
    def call(
        self, name: str, path: str, offset: int = 0, length: int = 0
    ) -> Iterator[int | None]:
        """Note a call, let it fail or be done, and tell who watches."""
        operation = Operation(name, path, offset, length)
        with self._one_call:
            self.operations.append(operation)
            most_bytes = self.fault(operation)
            if name in OPENING and len(self._open) >= self.most_descriptors:
                raise system_error(errno.EMFILE, path)
            yield most_bytes
            self.watch(operation)

    def handle(self, node: Node, *, writable: bool = False) -> File:
        """Open a file or a directory that was found."""
        descriptor = next(self._descriptors)
        self._open[descriptor] = node, writable
        return File(descriptor, self._open.__delitem__)

    def opened(self, descriptor: int, kind: type[N], *, to_change: bool = False) -> N:
        """Return what is open under a number, or raise `OSError` if it is not."""
        node, writable = self._open.get(descriptor, (None, False))
        if not isinstance(node, kind) or (to_change and not writable):
            raise system_error(errno.EBADF, node.path if node else "")
        return node

    def open_descriptors(self) -> int:
        """Return how many files and directories are open."""
        return len(self._open)

    # Four things that others do: they are no `operations`, and `fault` may call them.

    def change_directory(self, path: str = "") -> None:
        """Let paths begin at another directory; at the root, if there is no path."""
        with self._one_call:
            self.tree.working = self.tree.find(self.tree.walk(path or "/"), Folder)

    def move(self, source: str, target: str) -> None:
        """Rename a file, or a directory with what is in it, anywhere on the disk."""
        with self._one_call:
            self.tree.rename(self.tree.walk(source), self.tree.walk(target))

    def link(self, source: str, target: str) -> None:
        """Give a file one more name."""
        with self._one_call:
            inode = self.tree.find(self.tree.walk(source), Inode)
            self.tree.put(inode, self.tree.walk(target))

    def remove_tree(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        with self._one_call:
            place = self.tree.walk(path)
            self.tree.remove(self.tree.find(place, Node), place)

    def end_process(self) -> None:
        """Let every process end, as kill -9 would: its locks go, what it wrote stays."""
        self.locks.clear()

    def image(self) -> Image:
        """Return what processes see, and would still see after kill -9."""
        with self._one_call:
            found = list(tree(self.tree.seen, self.tree.root))
        return {p: bytes(n.seen) if isinstance(n, Inode) else b"" for p, n in found}

    def power_cut(self) -> PowerCut:
        """Return what the disk may hold if the power goes now, before the next call."""
        return PowerCut(self.tree)


# The calls that need a descriptor. A map has one of its own, as in Python's mmap.
OPENING = {"open", "create", "open_directory", "make_directory", "lock", "map"}


class SimulatedDisk(Machine, FileSystem):
    """The files of a machine that may lose power, from what is on its disk at the start.

    `operations` lists every call. `fault` is asked before each, and may raise an `OSError`,
    or return how many bytes of a write get through. `watch` is told after each. No more
    than `most_descriptors` are open at a time.
    """

    def size(self, file: File) -> int:
        """Return the length of the file in bytes."""
        inode = self.opened(file.descriptor, Inode)
        with self.call("size", inode.path):
            return len(inode.seen)

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        """Return bytes of a file, as processes see them."""
        inode = self.opened(descriptor, Inode)
        with self.call("read", inode.path, offset, length):
            return bytes(inode.seen[offset : offset + length])

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int, /) -> int:
        """Write as much as `fault` lets through, and return how much that was."""
        inode = self.opened(descriptor, Inode, to_change=True)
        with self.call("write", inode.path, offset, len(data)) as most:
            inode.write(data[:most], offset)
            return len(data[:most])

    def truncate(self, file: File, length: int) -> None:
        """Cut the file to `length` bytes."""
        inode = self.opened(file.descriptor, Inode, to_change=True)
        with self.call("truncate", inode.path, length):
            inode.truncate(length)

    def map(self, file: File, length: int) -> Bytes:
        """Return a copy of the first `length` bytes: what is mapped never changes."""
        inode = self.opened(file.descriptor, Inode)
        with self.call("map", inode.path):
            return bytes(inode.seen[:length])

    def sync(self, file: File) -> None:
        """Settle what the disk holds of a file."""
        inode = self.opened(file.descriptor, Inode)
        try:
            with self.call("sync", inode.path):
                inode.settle()
        except OSError:
            inode.fail(self.drops_pages)
            raise

    def exists(self, path: str) -> bool:
        """Say whether there is anything at this path."""
        missing = suppress(FileNotFoundError, NotADirectoryError)
        with self.call("exists", self.tree.spell(path)), missing:
            self.tree.find(self.tree.walk(path), Node)
            return True
        return False

    def open_directory(self, path: str) -> Directory:
        """Open a directory that exists."""
        with self.call("open_directory", self.tree.spell(path)):
            folder = self.tree.find(self.tree.walk(path), Folder)
            return SimulatedDirectory(self, path, folder)

    def make_directory(self, path: str) -> Directory:
        """Make a directory if it is missing, its name durable; open it."""
        there = suppress(FileExistsError)
        with self.call("make_directory", self.tree.spell(path)), there:
            place = self.tree.walk(path)
            self.tree.put(Folder(place.path), place)
        SimulatedDirectory(self, path, place.folder).sync()
        return self.open_directory(path)

    def random_bytes(self, count: int) -> bytes:
        """Return bytes from the seed, others at each call."""
        return self._random.randbytes(count)

    def tell_children(self, owner: Forked) -> None:
        """Do nothing: nobody forks on this machine."""


class SimulatedDirectory(Directory):
    """An open directory of a simulated disk: the same one, whatever it is called."""

    def __init__(self, disk: SimulatedDisk, path: str, folder: Folder) -> None:
        self.path = path
        self._disk, self._tree = disk, disk.tree
        self._file = disk.handle(folder)

    @property
    def _folder(self) -> Folder:
        return self._disk.opened(self._file.descriptor, Folder)

    def open(self, name: str, *, writable: bool = False) -> File:
        """Open a file that exists."""
        place = Place(self._folder, name)
        with self._disk.call("open", place.path):
            return self._disk.handle(self._tree.find(place, Inode), writable=writable)

    def create(self, name: str) -> File:
        """Make a file that does not exist yet."""
        place = Place(self._folder, name)
        with self._disk.call("create", place.path):
            return self._disk.handle(self._tree.make_file(place), writable=True)

    def rename(self, source: str, target: str) -> None:
        """Give a file a new name, over whatever had that name before."""
        old, new = Place(self._folder, source), Place(self._folder, target)
        with self._disk.call("rename", f"{old.path} to {new.path}"):
            self._tree.rename(old, new)

    def remove(self, name: str) -> None:
        """Take the name away. Anyone who has the file open can go on."""
        place = Place(self._folder, name)
        with self._disk.call("remove", place.path):
            self._tree.remove(self._tree.find(place, Inode), place)

    def exists(self, name: str) -> bool:
        """Say whether there is anything of this name."""
        place = Place(self._folder, name)
        with self._disk.call("exists", place.path):
            return place in self._tree.seen

    def names(self) -> list[str]:
        """Return the names in the directory, sorted."""
        with self._disk.call("names", self._folder.path):
            return [place.name for place in self._tree.inside(self._folder)]

    def sync(self) -> None:
        """Settle which names are in the directory."""
        with self._disk.call("sync_directory", self._folder.path):
            self._tree.settle(self._folder)

    def is_removed(self) -> bool:
        """Say whether the directory has no name any more."""
        with self._disk.call("is_removed", self._folder.path):
            return not self._tree.has_name(self._folder)

    def close(self) -> None:
        """Let go of the directory. Nothing can be reached through it any more."""
        self._file = NO_FILE

    def lock(self, name: str) -> Lock:
        """Take the one lock that a writer needs, or raise `LockedError` at once."""
        place = Place(self._folder, name)
        with self._disk.call("lock", place.path):
            if place not in self._tree.seen:
                self._tree.make_file(place)
            inode = self._tree.find(place, Inode)
            opened = {self._folder: self._file, inode: self._disk.handle(inode)}
            return SimulatedLock(place.path, opened, self._disk.locks)


class SimulatedLock(Lock):
    """A lock on a directory and on a file in it, whatever they are called."""

    def __init__(self, path: str, opened: dict[Node, File], locks: Locks) -> None:
        self._opened, self._locks = opened, locks  # held open until the release
        if opened.keys() & locks.keys():
            raise LockedError(f"{path}: the store is open for writing already")
        locks.update(dict.fromkeys(opened, self))

    def release(self) -> None:
        """Let others write. Safe to call again."""
        for node in self._opened:
            if self._locks.get(node) is self:
                del self._locks[node]
        self._opened = {}


Locks = MutableMapping[Node, SimulatedLock]
