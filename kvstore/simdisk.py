"""A disk in memory that can lose power, and shows every state that it may be left in.

`SimulatedDisk` stands in the place of `filesystem.FileSystem`. A process sees files as
they were last written, as on any machine. Beside that the disk keeps account of what a
power cut may leave, between a change and the fsync that covers it:

- Of a file, each sector holds any of its versions since the last fsync, whatever the other
  sectors hold. So writes arrive in part, and in any order. How large a sector is, is a
  choice: 512 or 4,096 bytes as on real disks, or 1, the worst that could be.
- The length of a file is any that it had since the last fsync. A sector that the length
  covers and that was never written holds zeros, or stale bytes of something older.
- Of a directory, each name that came, changed or went since its last fsync did so or not.
- After an fsync that failed, nothing is known of what it was for, and a later fsync does
  not ask for that again. Processes see the new bytes, or the old ones once more.

The model is close to the one that ALICE holds programs against (Pillai and others, 2014).
That short lives of a store are enough to find much is from CrashMonkey (Mohan and others,
2018), which asks it of file systems; what a failed fsync does is from Rebello and others
(2020). It leaves out an fsync that tells of its failure only the next time, as that of ext4
does when it keeps data in its journal; disks that lie; bits that rot later; a rename done
by half; links. All of it is kept in memory, with an account of every unsynced sector, so it
is made for stores of kilobytes.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from kvstore.errors import LockedError
from kvstore.filesystem import File, FileSystem, Lock

Image = dict[str, bytes]  # what a disk holds: path to bytes, directories end in "/"


class Inode:
    """One file: what processes see of it, and what the disk may hold of it."""

    def __init__(
        self, path: str, sector_bytes: int, raw: bytes = b"", older: bytes = b""
    ) -> None:
        self.path = path
        self.sector_bytes = sector_bytes
        self.seen = bytearray(raw)
        # What is surely on the disk, and behind it what stood there before.
        self.settled = bytearray(raw + older[len(raw) :])
        self.versions: dict[int, list[bytes | None]] = {}  # of a sector; None: a hole
        self.lengths = [len(raw)]
        self._dirty: set[int] = set()  # sectors that the next fsync is for
        self._resized = False  # whether it is for the length too

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Change what is seen, and note what the disk may hold from now on."""
        before, end = len(self.seen), offset + len(data)
        self._resize(max(before, end))
        self.seen[offset:end] = data
        self._note(min(before, offset), end)
        if end == len(self.seen):
            self._note_length()

    def truncate(self, length: int) -> None:
        """Cut the file, or let it grow by zeros."""
        before = len(self.seen)
        self._resize(length)
        self._note(*sorted((before, length)))
        self._note_length()

    def _resize(self, length: int) -> None:
        del self.seen[length:]
        self.seen.extend(bytes(length - len(self.seen)))

    def _note(self, start: int, end: int) -> None:
        """Add a version to every sector that has bytes from `start` to `end`."""
        size = self.sector_bytes
        for number in range(start // size, -(-end // size)):
            place = number * size
            if number not in self.versions:
                known = place < self.lengths[0]
                self.versions[number] = [
                    self.sector(self.settled, place) if known else None
                ]
            seen = self.sector(self.seen, place) if place < len(self.seen) else None
            if seen != self.versions[number][-1]:
                self.versions[number].append(seen)
            self._dirty.add(number)

    def sector(self, raw: bytes | bytearray, place: int) -> bytes:
        """Return one whole sector of some bytes, with zeros behind their end."""
        size = self.sector_bytes
        return bytes(raw[place : place + size]).ljust(size, b"\0")

    def _note_length(self) -> None:
        if self.lengths[-1] != len(self.seen):
            self.lengths.append(len(self.seen))
        self._resized = True

    def settle(self) -> None:
        """An fsync has succeeded: what it was for is on the disk, in its last version.

        Bytes that were cut off stay where they are; only the length leaves them out.
        """
        for number in self._dirty:
            place, versions = number * self.sector_bytes, self.versions.pop(number)
            written = [version for version in versions if version is not None]
            if written:
                self.settled.extend(bytes(max(0, place - len(self.settled))))
                self.settled[place : place + self.sector_bytes] = written[-1]
        if self._resized:
            self.lengths = [len(self.seen)]
        self._dirty, self._resized = set(), False

    def fail(self, drop: bool) -> None:
        """An fsync has failed: from now on the kernel takes for clean what it was for.

        With `drop` it also shows the old bytes again, as many as there were.
        """
        if drop and self._resized:
            self._resize(self.lengths[0])
        for number in self._dirty if drop else ():
            place, end = number * self.sector_bytes, len(self.seen)
            old = self.versions[number][0] or bytes(self.sector_bytes)
            self.seen[place : place + self.sector_bytes] = old
            del self.seen[end:]
        self._dirty, self._resized = set(), False

    def doubts(self) -> Iterator[Doubt]:
        """Yield what is not settled: first the length, then sector by sector."""
        lengths = tuple(f"{length} bytes long" for length in self.lengths)
        yield Doubt(self.path, lengths)
        last = "as written last"
        for number, versions in self.versions.items():
            oldest = "never written" if versions[0] is None else "as synced"
            between = [
                f"as written {n} before the last" for n in range(1, len(versions) - 1)
            ]
            ways = (oldest, *between[::-1], last)[: len(versions)]
            yield Doubt(f"sector {number} of {self.path}", ways)

    def content(self, picks: Iterator[int], stale: bytes | None) -> bytes:
        """Return the bytes of one outcome; a hole is zeros, or stale bytes if there are any."""
        size, length = self.sector_bytes, self.lengths[next(picks)]
        raw = bytearray(self.settled[:length].ljust(length, b"\0"))
        for number, versions in self.versions.items():
            place, data = number * size, versions[next(picks)]
            if place < length:
                raw[place : place + size] = data or self._hole(place, stale)
        return bytes(raw[:length])

    def _hole(self, place: int, stale: bytes | None) -> bytes:
        if stale is None:
            return bytes(self.sector_bytes)
        return self.sector(self.settled[place:] or stale[place:], 0)


class Doubt(NamedTuple):
    """Something that a power cut may leave in more than one way, the oldest way first."""

    about: str
    ways: tuple[str, ...]


class NameChange(NamedTuple):
    """A file got a name, lost one, or both: made, removed, renamed."""

    inode: Inode
    old: str | None
    new: str | None

    @property
    def folder(self) -> str:
        """Return the directory in which the change is made."""
        return folder_of(self.new or self.old or "")

    def apply(self, names: dict[str, Inode]) -> None:
        """Make the change, as far as it still has to be made."""
        if self.old is not None and names.get(self.old) is self.inode:
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.inode

    def __str__(self) -> str:
        if self.old is None:
            return f"the making of {self.new}"
        if self.new is None:
            return f"the removal of {self.old}"
        return f"the renaming of {self.old} to {self.new}"


def folder_of(path: str) -> str:
    """Return the directory that a name stands in, "" for the outermost."""
    return path.rstrip("/").rpartition("/")[0]


def system_error(number: int, path: str) -> OSError:
    """Return the error that the operating system would raise."""
    return OSError(number, os.strerror(number), path)


class Operation(NamedTuple):
    """One call to the disk: what, on which file, and for bytes from where and how many."""

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


class Handle(NamedTuple):
    """A file as one process has it open."""

    inode: Inode
    writable: bool


class SimulatedDisk(FileSystem):
    """The files of a machine that may lose power, from what is on its disk at the start.

    `older` gives bytes that stood in the same files before; they turn up where a file grows
    and nothing is written. `operations` lists every call. `fault` is asked before each one,
    and may raise an `OSError`, or return how many bytes of a write get through. `watch` is
    told after each.
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
        self.drops_pages = (
            False  # whether an fsync that fails takes new bytes out of sight
        )
        self.sector_bytes = sector_bytes
        self._random = random.Random(seed)
        behind = older or {}
        self._names = {
            path: Inode(path, sector_bytes, raw, behind.get(path, b""))
            for path, raw in (image or {}).items()
        }
        self._settled_names = self._names.copy()
        self._changes: list[NameChange] = []
        self._stale = b""  # the bytes of the file that was given up last
        self._open: dict[int, Handle] = {}
        self._descriptors = itertools.count(3)
        self._locks: dict[str, Lock] = {}
        self._one_call = threading.RLock()

    @contextmanager
    def _call(
        self, name: str, path: str, offset: int = 0, length: int = 0
    ) -> Iterator[int | None]:
        """Note a call, let it fail or be done, and tell who watches."""
        operation = Operation(name, path, offset, length)
        with self._one_call:
            self.operations.append(operation)
            yield self.fault(operation)
            self.watch(operation)

    def open(self, path: str, *, writable: bool = False) -> File:
        """Open a file that exists."""
        with self._call("open", path):
            return self._handle(self._find(path), writable)

    def create(self, path: str) -> File:
        """Make a file that does not exist yet."""
        with self._call("create", path):
            if self._names.keys() & {path, f"{path}/"}:
                raise system_error(errno.EEXIST, path)
            return self._handle(self._make(path), writable=True)

    def _find(self, path: str) -> Inode:
        if path not in self._names:
            raise system_error(errno.ENOENT, path)
        return self._names[path]

    def _make(self, path: str) -> Inode:
        folder = folder_of(path)
        if folder and f"{folder}/" not in self._names:
            raise system_error(errno.ENOENT, path)
        inode = Inode(path, self.sector_bytes)
        self._change(NameChange(inode, None, path))
        return inode

    def _change(self, change: NameChange) -> None:
        """Change a name for everybody who looks; on the disk it may be so or not."""
        change.apply(self._names)
        self._changes.append(change)

    def _handle(self, inode: Inode, writable: bool) -> File:
        descriptor = next(self._descriptors)
        self._open[descriptor] = Handle(inode, writable)
        return File(descriptor, self._close)

    def _close(self, descriptor: int) -> None:
        del self._open[descriptor]

    def _to_change(self, descriptor: int) -> Inode:
        inode, writable = self._open[descriptor]
        if not writable:
            raise system_error(errno.EBADF, inode.path)
        return inode

    def size(self, file: File) -> int:
        """Return the length of the file in bytes."""
        inode = self._open[file.descriptor].inode
        with self._call("size", inode.path):
            return len(inode.seen)

    def pread(self, descriptor: int, length: int, offset: int, /) -> bytes:
        """Return bytes of a file, as processes see them."""
        inode = self._open[descriptor].inode
        with self._call("read", inode.path, offset, length):
            return bytes(inode.seen[offset : offset + length])

    def pwrite(self, descriptor: int, data: Any, offset: int, /) -> int:
        """Write as much as `fault` lets through, and return how much that was."""
        inode = self._to_change(descriptor)
        with self._call("write", inode.path, offset, len(data)) as most:
            inode.write(data[:most], offset)
            return len(data[:most])

    def truncate(self, file: File, length: int) -> None:
        """Cut the file to `length` bytes."""
        inode = self._to_change(file.descriptor)
        with self._call("truncate", inode.path, length):
            inode.truncate(length)

    def map(self, file: File, length: int) -> bytes:
        """Return a copy of the first `length` bytes: what is mapped never changes."""
        inode = self._open[file.descriptor].inode
        with self._call("map", inode.path):
            return bytes(inode.seen[:length])

    def sync(self, file: File) -> None:
        """Settle what the disk holds of a file."""
        inode = self._open[file.descriptor].inode
        try:
            with self._call("sync", inode.path):
                inode.settle()
        except OSError:
            inode.fail(self.drops_pages)
            raise

    def sync_directory(self, path: str) -> None:
        """Settle which names are in a directory."""
        with self._call("sync_directory", path):
            for change in self._changes:
                if change.folder == path:
                    change.apply(self._settled_names)
            self._changes = [each for each in self._changes if each.folder != path]

    def rename(self, source: str, target: str) -> None:
        """Give a file a new name, over whatever had that name before."""
        with self._call("rename", f"{source} to {target}"):
            inode = self._find(source)
            self._give_up(target)
            inode.path = target
            self._change(NameChange(inode, source, target))

    def remove(self, path: str) -> None:
        """Take the name away."""
        with self._call("remove", path):
            inode = self._find(path)
            self._give_up(path)
            self._change(NameChange(inode, path, None))

    def _give_up(self, path: str) -> None:
        """Give up the room of a file: what stood in it may turn up in another."""
        if path in self._names:
            self._stale = bytes(self._names[path].seen)

    def exists(self, path: str) -> bool:
        """Say whether there is anything at this path."""
        with self._call("exists", path):
            return bool(self._names.keys() & {path, f"{path}/"})

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted."""
        with self._call("names", directory):
            if directory in self._names:
                raise system_error(errno.ENOTDIR, directory)
            self._find(f"{directory}/")
            inside = (path for path in self._names if folder_of(path) == directory)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in inside)

    def make_directory(self, path: str) -> None:
        """Make a directory, if it is missing; make its name durable."""
        with self._call("make_directory", path):
            if f"{path}/" not in self._names:
                self._make(f"{path}/")
        self.sync_directory(folder_of(path))

    def random_bytes(self, count: int) -> bytes:
        """Return bytes from the seed, others at each call."""
        return self._random.randbytes(count)

    def lock(self, path: str) -> Lock:
        """Take the one lock that a writer needs, or raise `LockedError` at once."""
        with self._call("lock", path):
            if path not in self._names:
                self._make(path)
            return SimulatedLock(path, self._locks)

    def end_process(self) -> None:
        """Let every process end, as kill -9 would: its locks go, what it wrote stays."""
        self._locks.clear()

    def image(self) -> Image:
        """Return what processes see, and would still see after kill -9."""
        return {path: bytes(inode.seen) for path, inode in self._names.items()}

    def power_cut(self) -> PowerCut:
        """Return what the disk may hold if the power goes now, before the next call."""
        return PowerCut(self._settled_names, self._changes, self._stale)


class SimulatedLock(Lock):
    """A lock among the processes of a simulated machine."""

    def __init__(self, path: str, held: dict[str, Lock]) -> None:
        self._path, self._all = path, held
        if path in held:
            raise LockedError(f"{path}: the store is open for writing already")
        held[path] = self

    def release(self) -> None:
        """Let others write. Safe to call twice."""
        if self._all.get(self._path) is self:
            del self._all[self._path]


Picks = tuple[int, ...]  # for each doubt, the way in which it turned out


class PowerCut:
    """All that the disk may hold after a power cut at one moment.

    Every outcome is one way for each doubt. They come in this order: what stands in
    holes, then the changes of names, then each file's length and sectors.
    """

    def __init__(
        self, names: dict[str, Inode], changes: Sequence[NameChange], stale: bytes
    ) -> None:
        self._names = names
        self._changes = changes
        self._stale = stale
        made = (change.inode for change in changes)
        self._inodes = list(dict.fromkeys((*names.values(), *made)))
        of_files = [doubt for inode in self._inodes for doubt in inode.doubts()]
        holes = any("never written" in doubt.ways for doubt in of_files)
        self.doubts = [
            Doubt("what was never written", ("zeros", "stale bytes")[: 1 + holes]),
            *(Doubt(str(change), ("lost", "done")) for change in changes),
            *of_files,
        ]
        self._sizes = [len(doubt.ways) for doubt in self.doubts]
        self.outcomes = math.prod(self._sizes)

    def image(self, picks: Picks) -> Image:
        """Return what the disk holds in one outcome."""
        pick = iter(picks)
        stale = self._stale if next(pick) else None
        names = self._names.copy()
        for change in self._changes:
            if next(pick):
                change.apply(names)
        held = {inode: inode.content(pick, stale) for inode in self._inodes}
        return {
            p: held[inode] for p, inode in names.items() if can_be_reached(p, names)
        }

    def images(self, limit: int, seed: int = 0) -> Iterator[tuple[Picks, Image]]:
        """Yield the different outcomes: all, or as many draws as `limit`, if there are more."""
        chance = random.Random(seed)
        some = (draw(self._sizes, chance) for _ in range(limit))
        every = itertools.product(*map(range, self._sizes))
        known: set[frozenset[tuple[str, bytes]]] = set()
        for picks in every if self.outcomes <= limit else some:
            image = self.image(picks)
            content = frozenset(image.items())
            if content not in known:
                known.add(content)
                yield picks, image

    def describe(self, picks: Picks) -> str:
        """Say in words which outcome this is."""
        turns = [
            (doubt, doubt.ways[pick])
            for doubt, pick in zip(self.doubts, picks, strict=True)
        ]
        return "; ".join(
            f"{doubt.about}: {way}" for doubt, way in turns if len(doubt.ways) > 1
        )


def can_be_reached(path: str, names: dict[str, Inode]) -> bool:
    """Say whether every directory on the way to a name is there."""
    folder = folder_of(path)
    return not folder or (f"{folder}/" in names and can_be_reached(folder, names))


def draw(sizes: Sequence[int], chance: random.Random) -> Picks:
    """Draw one outcome, given how many ways each doubt can turn out.

    A coin for each sector would hardly ever show a log that is torn at one point, or has one
    hole. So one stretch of the doubts turns out otherwise than the rest.
    """
    start, end = sorted(chance.choices(range(len(sizes) + 1), k=2))
    turns = (oldest, newest, chance.randrange)
    outside, inside = chance.choice(turns), chance.choice(turns)
    return tuple(
        inside(size) if start <= place < end else outside(size)
        for place, size in enumerate(sizes)
    )


def oldest(_: int) -> int:
    """Return the number of the oldest way, however many there are."""
    return 0


def newest(ways: int) -> int:
    """Return the number of the newest way."""
    return ways - 1
