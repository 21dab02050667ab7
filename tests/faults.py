"""A file system that notes every call and fails where a test wants it to.

It works on real files in a temporary directory, so what a failed call leaves behind is
what the operating system leaves behind.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstore.filesystem import File, FileSystem, Lock


@dataclass
class Call:
    """One call to the operating system: what, and on which file (its name alone)."""

    operation: str
    name: str

    def __str__(self) -> str:
        return f"{self.operation} {self.name}".strip()


@dataclass
class Fault:
    """Fail the calls that match, from the `first` on and `times` times."""

    operation: str
    error: OSError | None  # None: a short write
    name: str = ""  # part of the file's name; "" matches all
    first: int = 1
    times: int = 1
    seen: int = 0
    take: int = 0  # bytes that a short write takes

    def strikes(self, call: Call) -> bool:
        """Count a call, and say whether it is one that has to fail."""
        if call.operation != self.operation or self.name not in call.name:
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


@dataclass
class FaultyFileSystem(FileSystem):
    """The real file system, with a log of calls, and faults."""

    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pread: Callable[..., bytes] = self._pread
        self.pwrite: Callable[..., int] = self._pwrite

    def fail(self, operation: str, error: OSError | None, **where: Any) -> Fault:
        """Have calls of an operation fail; see `Fault` for what `where` can say."""
        fault = Fault(operation, error, **where)
        self.faults.append(fault)
        return fault

    def log(self, *operations: str) -> list[str]:
        """Return the calls so far as text, those of some operations or all."""
        return [
            str(c) for c in self.calls if not operations or c.operation in operations
        ]

    def _note(self, operation: str, name: str) -> Fault | None:
        call = Call(operation, name)
        self.calls.append(call)
        for fault in self.faults:
            if fault.strikes(call):
                if fault.error is not None:
                    raise fault.error
                return fault
        return None

    def _named(self, path: str, file: File) -> File:
        self._names[file.descriptor] = Path(path).name
        return file

    def _pread(self, descriptor: int, length: int, offset: int) -> bytes:
        self._note("read", self._names[descriptor])
        return FileSystem.pread(descriptor, length, offset)

    def _pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        fault = self._note("write", self._names[descriptor])
        if fault is not None:
            data = data[: fault.take]
        return FileSystem.pwrite(descriptor, data, offset)

    def open(self, path: str, *, writable: bool = False) -> File:
        self._note("open", Path(path).name)
        return self._named(path, super().open(path, writable=writable))

    def create(self, path: str) -> File:
        self._note("create", Path(path).name)
        return self._named(path, super().create(path))

    def size(self, file: File) -> int:
        self._note("size", self._names[file.descriptor])
        return super().size(file)

    def truncate(self, file: File, length: int) -> None:
        self._note("truncate", self._names[file.descriptor])
        super().truncate(file, length)

    def map(self, file: File, length: int) -> mmap.mmap | bytes:
        self._note("map", self._names[file.descriptor])
        return super().map(file, length)

    def sync(self, file: File) -> None:
        self._note("sync", self._names[file.descriptor])
        super().sync(file)

    def sync_directory(self, path: str) -> None:
        self._note("sync_directory", Path(path).name)
        FileSystem().sync_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._note("rename", f"{Path(source).name} {Path(target).name}")
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self._note("remove", Path(path).name)
        super().remove(path)

    def exists(self, path: str) -> bool:
        self._note("exists", Path(path).name)
        return super().exists(path)

    def names(self, directory: str) -> list[str]:
        self._note("names", Path(directory).name)
        return super().names(directory)

    def make_directory(self, path: str) -> None:
        self._note("make_directory", Path(path).name)
        super().make_directory(path)

    def lock(self, path: str) -> Lock:
        self._note("lock", Path(path).name)
        return super().lock(path)
