"""What a power cut may leave of a disk, between a change and the fsync that covers it.

- Of a file, each sector holds any of its versions since the last fsync, whatever the other
  sectors hold. So writes arrive in part, and in any order. How large a sector is, is a
  choice: 512 or 4,096 bytes as on real disks, or 1, the worst that could be.
- The length of a file is any that it had since the last fsync, never one in between. A
  sector that the length covers and that was never written is a hole: it holds zeros, or
  stale bytes of something older.
- Of a directory, each name that came, changed or went since its last fsync did so or not.
  What is in a directory can be found only if the directory's own name is there. A rename
  is done or lost as a whole. One from a directory to another may be lost until both have
  had their fsync.
- After an fsync of a file that failed, nothing is known of what it was for, and a later
  fsync does not ask for that again. Processes see the new bytes, or the old ones once more.

The model is close to the one that ALICE holds programs against (Pillai and others, 2014).
That short lives of a store are enough to find much is from CrashMonkey (Mohan and others,
2018), which asks it of file systems; what a failed fsync does is from Rebello and others
(2020). It leaves out an fsync that tells of its failure only the next time, as that of ext4
does when it keeps data in its journal; an fsync of a directory that forgets what it failed
to do; disks that lie; bits that rot later; a rename done by half; symbolic links.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Image = dict[str, bytes]  # what a disk holds: path to bytes, directories end in "/"


class Doubt(NamedTuple):
    """Something that a power cut may leave in more than one way, the oldest way first."""

    about: str
    ways: tuple[str, ...]


class Node:
    """A file or a directory. `path` is its name, or the last one that it had."""

    def __init__(self, path: str) -> None:
        self.path = path


class Inode(Node):
    """One file: what processes see of it, and what the disk may hold of it."""

    def __init__(
        self, path: str, sector_bytes: int, raw: bytes = b"", older: bytes = b""
    ) -> None:
        super().__init__(path)
        self.sector_bytes = sector_bytes
        self.seen = bytearray(raw)
        # What is surely on the disk, and after its end what stood there before.
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
        """Return one whole sector of some bytes, with zeros after their end."""
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


class Folder(Node):
    """A directory. It holds nothing itself: each name knows the folder that it is in."""


class Place(NamedTuple):
    """Where a name is: in which directory, whatever that is called, and the name."""

    folder: Folder
    name: str

    @property
    def path(self) -> str:
        """Return the path of the place, as its directory is called at the moment."""
        return f"{self.folder.path}/{self.name}".strip("/")


class NameChange:
    """A file or a directory got a name, lost one, or both: made, removed, renamed."""

    def __init__(self, node: Node, old: Place | None, new: Place | None) -> None:
        self.node = node
        self.old = old
        self.new = new
        self.folders = {place.folder for place in (old, new) if place is not None}
        self.unsynced = set(self.folders)  # those whose fsync has yet to come

    def apply(self, names: dict[Place, Node]) -> None:
        """Make the change, as far as it still has to be made."""
        if self.old is not None and names.get(self.old) is self.node:
            del names[self.old]
        if self.new is not None:
            if isinstance(self.node, Folder):  # it can't be in two places
                elsewhere = [p for p, node in names.items() if node is self.node]
                for place in elsewhere:
                    del names[place]
            names[self.new] = self.node

    @property
    def ways(self) -> tuple[str, ...]:
        """Return what a power cut may make of the change."""
        return ("lost", "done") if self.unsynced else ("done",)

    def __str__(self) -> str:
        slash = "/" if isinstance(self.node, Folder) else ""
        old = self.old and f"{self.old.path}{slash}"
        new = self.new and f"{self.new.path}{slash}"
        if old is None:
            return f"the making of {new}"
        if new is None:
            return f"the removal of {old}"
        return f"the renaming of {old} to {new}"


class Names:
    """Which name leads where: as processes see it, and as it is surely on the disk."""

    def __init__(self, sector_bytes: int, image: Image, older: Image) -> None:
        self.sector_bytes = sector_bytes
        self.root = Folder("")
        self.seen: dict[Place, Node] = {}
        self.changes: list[NameChange] = []  # what has not been settled, in order
        self.stale = b""  # the bytes of the file that was given up last
        for path, raw in image.items():
            folder, (*above, name) = self.root, path.split("/")
            for each in above:
                folder = self._folder(Place(folder, each))
            if name:  # a path that ends in "/" is a directory's
                inode = Inode(path, sector_bytes, raw, older.get(path, b""))
                self.seen[Place(folder, name)] = inode
        self.settled = self.seen.copy()

    def _folder(self, place: Place) -> Folder:
        folder = self.seen.setdefault(place, Folder(place.path))
        assert isinstance(folder, Folder), f"{place.path} is a file, with files in it"
        return folder

    def change(self, node: Node, old: Place | None, new: Place | None) -> None:
        """Change a name for everybody who looks; on the disk it may be so or not."""
        given_up = node if new is None else self.seen.get(new)
        change = NameChange(node, old, new)
        change.apply(self.seen)
        self.changes.append(change)
        if isinstance(given_up, Inode) and not self.has_name(given_up):
            # Its space is free now: what stood there may turn up in another file.
            self.stale = bytes(given_up.seen)
        for path, each in tree(self.seen, self.root):
            each.path = path.rstrip("/")

    def remove(self, node: Node, place: Place) -> None:
        """Take a name away; first those in a directory, the innermost first."""
        for inner in self.inside(node):
            self.remove(self.seen[inner], inner)
        if place.name:  # the root has none
            self.change(node, place, None)

    def has_name(self, node: Node) -> bool:
        """Say whether a file or a directory can still be found."""
        return node is self.root or node in self.seen.values()

    def inside(self, node: Node) -> list[Place]:
        """Return the places in a directory, sorted; a file has none."""
        found = [place for place in self.seen if place.folder is node]
        return sorted(found, key=lambda place: place.name)

    def settle(self, folder: Folder) -> None:
        """The fsync of a directory has succeeded: the names in it are on the disk.

        A change that follows on one still in doubt, which waits for another directory,
        keeps its turn: it is done in every outcome, but after that one.
        """
        waiting: list[NameChange] = []
        in_doubt: set[Folder] = set()
        for change in self.changes:
            change.unsynced.discard(folder)
            if change.unsynced or change.folders & in_doubt:
                waiting.append(change)
                in_doubt |= change.folders
            else:
                change.apply(self.settled)
        self.changes = waiting


def tree(
    names: dict[Place, Node], folder: Folder, above: str = ""
) -> Iterator[tuple[str, Node]]:
    """Yield all that can be found from a directory on, by its path."""
    for place, node in names.items():
        if place.folder is folder:
            path = f"{above}{place.name}"
            if isinstance(node, Folder):
                yield f"{path}/", node
                yield from tree(names, node, f"{path}/")
            else:
                yield path, node


Picks = tuple[int, ...]  # for each doubt, the way in which it turned out


class PowerCut:
    """All that the disk may hold after a power cut at one moment, until the next change.

    Every outcome is one way for each doubt. They come in this order: what stands in
    holes, then the changes of names, then each file's length and sectors.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        nodes = *names.settled.values(), *(change.node for change in names.changes)
        self._inodes = [n for n in dict.fromkeys(nodes) if isinstance(n, Inode)]
        of_files = [doubt for inode in self._inodes for doubt in inode.doubts()]
        holes = any("never written" in doubt.ways for doubt in of_files)
        self.doubts = [
            Doubt("what was never written", ("zeros", "stale bytes")[: 1 + holes]),
            *(Doubt(str(change), change.ways) for change in names.changes),
            *of_files,
        ]
        self._sizes = [len(doubt.ways) for doubt in self.doubts]
        self.outcomes = math.prod(self._sizes)

    def image(self, picks: Picks) -> Image:
        """Return what the disk holds in one outcome."""
        pick = iter(picks)
        stale = self._names.stale if next(pick) else None
        names = self._names.settled.copy()
        for change in self._names.changes:
            if change.ways[next(pick)] == "done":
                change.apply(names)
        held = {inode: inode.content(pick, stale) for inode in self._inodes}
        found = tree(names, self._names.root)
        return {p: held[n] if isinstance(n, Inode) else b"" for p, n in found}

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
