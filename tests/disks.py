"""Disks for tests: calls that are noted, that fail or wait, and machines that stop.

`Faults` is asked before every call. It can be the `fault` of a simulated disk, and
`FaultyFileSystem` asks it about real files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstore.filesystem import Budget, Directory, File, FileSystem
from kvstore.posix import DISK, PosixFileSystem
from kvstore.simdisk import Operation, SimulatedDisk, no_fault

PATIENCE = 30.0  # seconds after which a test that waits for a thread gives up

Rule = Callable[[Operation], int | None]  # raises, waits, or cuts a write short


@dataclass
class Strike:
    """Something that happens at calls of one name, from the `first` on, `times` times."""

    operation: str
    name: str  # a part of the file's name; "" matches all
    work: Callable[[], int | None]
    first: int = 1
    times: int = 1
    seen: int = 0

    def __call__(self, operation: Operation) -> int | None:
        """Count a call, and do what has to be done at it."""
        if operation.name != self.operation or self.name not in operation.path:
            return None
        self.seen += 1
        hit = self.first <= self.seen < self.first + self.times
        return self.work() if hit else None


class Pause:
    """A call that stops until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        """Stop here."""
        self.reached.set()
        assert self.go_on.wait(PATIENCE), "nobody let the call go on"


@dataclass(eq=False)
class Faults:
    """Asked before every call."""

    operations: list[Operation] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def __call__(self, operation: Operation) -> int | None:
        """Note a call, and let the first rule that knows it have its way."""
        self.operations.append(operation)
        for rule in tuple(self.rules):
            most = rule(operation)
            if most is not None:
                return most
        return None

    def at(
        self,
        operation: str,
        name: str,
        work: Callable[[], object],
        *,
        first: int = 1,
        times: int = 1,
    ) -> Strike:
        """Have some work done before calls to come; what it returns counts for nothing."""

        def do() -> None:
            work()

        rule = Strike(operation, name, do, first, times)
        self.rules.append(rule)
        return rule

    def fail(
        self,
        operation: str,
        error: BaseException | None,
        name: str = "",
        *,
        first: int = 1,
        times: int = 1,
        take: int = 0,
    ) -> Strike:
        """Have calls raise an error, or reads and writes take a few bytes."""

        def strike() -> int:
            if error is not None:
                raise error
            return take

        rule = Strike(operation, name, strike, first, times)
        self.rules.append(rule)
        return rule

    def pause(self, operation: str, name: str = "", *, first: int = 1) -> Pause:
        """Have a call stop until `go_on` is set."""
        stop = Pause()
        self.at(operation, name, stop, first=first)
        return stop

    def log(self, *names: str) -> list[str]:
        """Return the calls so far as text, those of some names or all."""
        return [
            f"{each.name} {each.path}".strip()
            for each in self.operations
            if not names or each.name in names
        ]

    def fsyncs(self) -> int:
        """Return how often a segment was synced so far."""
        return sum(".segment" in call for call in self.log("sync"))

    def forget(self) -> None:
        """Begin the list of calls anew."""
        self.operations.clear()


def noted(name: str, known_as: str = "") -> Any:
    """Return a method that has a call noted, which may fail, and then makes it."""

    def call(self: FaultyFileSystem | FaultyDirectory, *arguments: Any) -> Any:
        self.note(known_as or name, self.about(*arguments))
        return getattr(self.real, name)(*arguments)

    return call


class FaultyFileSystem(Faults, FileSystem):
    """Real files. Every call is noted first, with the file's name alone."""

    real = DISK

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        self.pread = self._pread
        self.pwrite = self._pwrite
        self.budget = Budget(8)

    def note(
        self, name: str, path: str, offset: int = 0, length: int = 0
    ) -> int | None:
        """Note a call, which may fail."""
        return self(Operation(name, Path(path).name, offset, length))

    def about(self, what: str | File, *_: int) -> str:
        """Return what a call is about: a path, or how a file is called."""
        return what if isinstance(what, str) else self._names[what.descriptor]

    def named(self, name: str, file: File) -> File:
        """Remember how a file is called."""
        self._names[file.descriptor] = name
        return file

    def _pread(self, descriptor: int, length: int, offset: int) -> bytes:
        most = self.note("read", self._names[descriptor], offset, length)
        return DISK.pread(descriptor, length if most is None else most, offset)

    def _pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        most = self.note("write", self._names[descriptor], offset, len(data))
        return DISK.pwrite(descriptor, data[:most], offset)

    def open_directory(self, path: str) -> Directory:
        self.note("open_directory", path)
        return FaultyDirectory(self, DISK.open_directory(path))

    def make_directory(self, path: str) -> Directory:
        self.note("make_directory", path)
        made = DISK.make_directory(path)
        self.note("sync_directory", str(Path(path).parent))
        return FaultyDirectory(self, made)

    exists, size, truncate = noted("exists"), noted("size"), noted("truncate")
    map, sync = noted("map"), noted("sync")
    random_bytes, tell_children = DISK.random_bytes, DISK.tell_children


class FaultyDirectory(Directory):
    """A real directory of a `FaultyFileSystem`."""

    def __init__(self, filesystem: FaultyFileSystem, real: Directory) -> None:
        self.filesystem, self.real, self.path = filesystem, real, real.path
        self.note = filesystem.note

    def about(self, *names: str) -> str:
        """Return what a call is about: names in the directory, or the directory."""
        return " ".join(names) or self.path

    def open(self, name: str, *, writable: bool = False) -> File:
        self.note("open", name)
        return self.filesystem.named(name, self.real.open(name, writable=writable))

    def create(self, name: str) -> File:
        self.note("create", name)
        return self.filesystem.named(name, self.real.create(name))

    def close(self) -> None:
        self.real.close()

    rename, remove, exists = noted("rename"), noted("remove"), noted("exists")
    names, is_removed, lock = noted("names"), noted("is_removed"), noted("lock")
    sync = noted("sync", "sync_directory")


class NoSync(PosixFileSystem):
    """Real files without the waits for the disk, for tests with many opens."""

    def __init__(self) -> None:
        self.budget = DISK.budget  # descriptors are the process's

    def sync(self, file: File) -> None:
        """Do nothing."""


NO_SYNC = NoSync()

# --- a machine that stops ----------------------------------------------------------------

CHANGES = frozenset(
    {"create", "write", "truncate", "sync", "sync_directory", "rename", "remove"}
)
PATH = "store"
STATES = 12  # drawn where a power cut may leave more than so many


def on_a_disk(directory: Path) -> SimulatedDisk:
    """Return a disk that holds the files of a directory as `PATH`, all of them safe."""
    held = {f"{PATH}/{each.name}": each.read_bytes() for each in directory.iterdir()}
    return SimulatedDisk({f"{PATH}/": b"", **held})


def remains(disk: SimulatedDisk) -> Iterator[tuple[str, SimulatedDisk]]:
    """Yield the disks that may be left: after kill -9, and after a power cut."""
    yield "killed", SimulatedDisk(disk.image())
    cut = disk.power_cut()
    for picks, image in cut.images(STATES):
        yield f"power lost; {cut.describe(picks)}", SimulatedDisk(image)


def moments(
    disk: SimulatedDisk, work: Callable[[], object]
) -> list[tuple[str, SimulatedDisk]]:
    """Do some work; return what is left if the machine stops at any change, or at the end."""
    found: list[tuple[str, SimulatedDisk]] = []

    def look(operation: Operation | str) -> None:
        if isinstance(operation, str) or operation.name in CHANGES:
            found.extend(
                (f"at {operation}, {how}", left) for how, left in remains(disk)
            )

    disk.fault = look
    work()
    disk.fault = no_fault
    assert len(found) > 8, "the work is meant to change something"
    look("the end")
    return found
