"""A disk that remembers what it was asked to keep, and a process that dies at any call.

What a power cut leaves is not what the process wrote. The names in a directory are safe
from the directory's fsync on. The bytes of a file are safe from the file's fsync on, but
only those that were written since the last one: after an fsync that failed, or in another
process, the kernel may believe that a page is on the disk which is not. Whatever came
later may be on the disk or not. `MortalFileSystem` notes all that, and `after_power_cut`
writes down the extreme outcomes: names as they were synced or as they are, the bytes of
segments and manifests as they were synced or as they are, and the same for the mark.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults import Call, Fault, FaultyFileSystem

from kvstore.filesystem import File, FileSystem
from kvstore.mark import MARK

CHANGES = frozenset(
    {"create", "write", "truncate", "sync", "sync_directory", "rename", "remove"}
)


class Died(BaseException):
    """The process ended at this call. Nothing of ours handles it, as nothing could."""


@dataclass
class OnDisk:
    """The bytes of a file that are safe, and the changes that are not."""

    safe: bytearray
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        """Make the changes: bytes at an offset, or a length to cut the file to."""
        for offset, data in self.pending:
            if data is None:
                del self.safe[offset:]
            end = offset + len(data or b"")
            self.safe.extend(bytes(max(0, end - len(self.safe))))
            self.safe[offset:end] = data or b""
        self.pending.clear()


@dataclass
class MortalFileSystem(FaultyFileSystem):
    """The real files of one directory; the process dies at change number `die_at`.

    What is in the directory already counts as synced, but for what `forget` is told.
    """

    directory: Path = field(kw_only=True)
    die_at: int | None = None
    changes: int = 0
    _files: dict[str, OnDisk] = field(default_factory=dict)  # by the names of now
    _synced: dict[str, OnDisk] = field(default_factory=dict)  # by the names on the disk
    _opened: dict[int, OnDisk] = field(default_factory=dict)
    _last_bytes: dict[int, bytes] = field(default_factory=dict)  # of what has no name

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directory.exists():
            for path in self.directory.iterdir():
                self._files[path.name] = OnDisk(bytearray(path.read_bytes()))
        self._synced = self._files.copy()

    def forget(self, name: str, length: int) -> None:
        """Take a file for one of which only so much is on the disk."""
        del self._files[name].safe[length:]

    def _note(self, operation: str, name: str) -> Fault | None:
        if operation in CHANGES:
            self.changes += 1
        if self.die_at is not None and self.changes >= self.die_at:
            raise Died(f"at {Call(operation, name)}")
        return super()._note(operation, name)

    def _pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if self.changes + 1 == self.die_at:  # half of it gets through
            FileSystem.pwrite(descriptor, data[: len(data) // 2], offset)
        written = super()._pwrite(descriptor, data, offset)
        change = (offset, bytes(data[:written]))
        self._opened[descriptor].pending.append(change)
        return written

    def open(self, path: str, *, writable: bool = False) -> File:
        file = super().open(path, writable=writable)
        self._opened[file.descriptor] = self._files[Path(path).name]
        return file

    def create(self, path: str) -> File:
        file = super().create(path)
        made = self._files[Path(path).name] = OnDisk(bytearray())
        self._opened[file.descriptor] = made
        return file

    def truncate(self, file: File, length: int) -> None:
        super().truncate(file, length)
        self._opened[file.descriptor].pending.append((length, None))

    def sync(self, file: File) -> None:
        super().sync(file)
        self._opened[file.descriptor].sync()

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        if Path(path) == self.directory:
            self._synced = self._files.copy()

    def rename(self, source: str, target: str) -> None:
        self._keep(Path(target))
        super().rename(source, target)
        self._files[Path(target).name] = self._files.pop(Path(source).name)

    def remove(self, path: str) -> None:
        self._keep(Path(path))
        super().remove(path)
        del self._files[Path(path).name]

    def _keep(self, path: Path) -> None:
        """Remember the bytes of a file whose name is about to go."""
        if path.name in self._files and path.exists():
            self._last_bytes[id(self._files[path.name])] = path.read_bytes()

    def _present_bytes(self, file: OnDisk) -> bytes:
        for name, live in self._files.items():
            if live is file:
                return (self.directory / name).read_bytes()
        return self._last_bytes[id(file)]

    def after_power_cut(self, target: Path) -> Iterator[tuple[str, Path]]:
        """Yield what the disk may hold now, each outcome in a directory of its own."""
        for names, data, mark in itertools.product((True, False), repeat=3):
            what = "names {}, bytes {}, mark {}".format(
                *("as synced" if synced else "as they are" for synced in (names, data)),
                "as synced" if mark else "as it is",
            )
            directory = target / what.replace(" ", "-").replace(",", "")
            directory.mkdir(parents=True)
            for name, file in (self._synced if names else self._files).items():
                as_synced = mark if name == MARK else data
                held = file.safe if as_synced else self._present_bytes(file)
                (directory / name).write_bytes(held)
            yield what, directory
