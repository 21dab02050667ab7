"""The ways in which a call to the operating system fails, on any disk.

A disk (a simulated one, or real files through `FaultyFileSystem`) asks before each call. What
it asks may raise an error, stop for a while, or say how many bytes of a write get through. A
simulated disk also tells of each call that is done.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Protocol

from kvstore.powercut import Image
from kvstore.simdisk import Operation, SimulatedDisk
from tests.disks import CHANGES, Rule
from tests.helpers import elsewhere

# Calls after which a disk may be left in another state, should the power go.
CHANGES_OF_A_DISK = CHANGES | {"make_directory", "lock"}


class Disk(Protocol):
    """A disk that asks before each call."""

    fault: Rule


@contextmanager
def failing(disk: Disk, *rules: Rule) -> Iterator[None]:
    """Have some rules asked before those of the disk, while the block lasts."""
    before = disk.fault

    def in_turn(operation: Operation) -> int | None:
        answers = (rule(operation) for rule in (*rules, before))
        return next((most for most in answers if most is not None), None)

    disk.fault = in_turn
    try:
        yield
    finally:
        disk.fault = before


def system_error(name: str, operation: Operation) -> OSError:
    """Return the error of this name, such as ``EIO``, for a call."""
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), operation.path)


@dataclass
class OneCall:
    """Lets one call fail, by its number among those that the fault can strike.

    ============== ======================================================================
    fault          what happens to the call
    ============== ======================================================================
    EIO, ENOSPC... it fails with this error, and does nothing
    EIO-dropped    the same, and an fsync that fails takes the new bytes out of sight
    EIO-lasting    the same, and so do all calls after it, until `lasts` is unset
    EIO-after      it does what it was for, and fails nevertheless
    short-by-one   a write gets through but for its last byte, and does not fail
    short-by-half  a write gets through by half, and does not fail
    ============== ======================================================================
    """

    fault: str
    number: int
    calls: int = 0
    struck: Operation | None = None  # the call that failed
    place: str = ""  # where in the engine that was
    lasts: bool = False

    @property
    def error(self) -> str:
        return self.fault.partition("-")[0]

    @property
    def errno(self) -> int:
        return int(getattr(errno, self.error))

    @property
    def is_short(self) -> bool:
        return self.fault.startswith("short")

    def on(self, disk: SimulatedDisk) -> None:
        disk.drops_pages = self.fault.endswith("-dropped")
        if self.fault.endswith("-after"):
            disk.watch = self.after
        else:
            disk.fault = self.before

    def before(self, operation: Operation) -> int | None:
        if self.is_short:
            length = operation.length
            part = length - 1 if self.fault == "short-by-one" else length // 2
            return part if operation.name == "write" and self._hits(operation) else None
        if self._hits(operation) or self.lasts:
            raise system_error(self.error, operation)
        return None

    def after(self, operation: Operation) -> None:
        if operation.name in CHANGES and self._hits(operation):
            raise system_error(self.error, operation)

    def _hits(self, operation: Operation) -> bool:
        """Count a call, and say whether it is the one."""
        self.calls += 1
        if self.calls != self.number:
            return False
        self.struck = operation
        self.place = " < ".join(code.co_qualname for code in codes_on_the_stack())
        self.lasts = self.fault.endswith("-lasting")
        return True


FAULTS = (
    *("EIO", "ENOSPC", "EDQUOT", "EMFILE", "EINTR"),
    *("EIO-dropped", "EIO-lasting", "EIO-after", "short-by-one", "short-by-half"),
)


DISKS = {"kvstore.simdisk", "kvstore.powercut", "kvstore.filesystem", "kvstore.posix"}


def codes_on_the_stack() -> Iterator[CodeType]:
    """Yield the code of the engine's functions that this thread is in, innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("kvstore.") and module not in DISKS:
            yield frame.f_code
        frame = frame.f_back


@dataclass
class FailingSync:
    """Lets one fsync fail, after so many that succeed."""

    successes: int
    struck: Operation | None = None

    def __call__(self, operation: Operation) -> int | None:
        if operation.name == "sync" and self.struck is None:
            self.successes -= 1
            if self.successes < 0:
                self.struck = operation
                raise system_error("EIO", operation)
        return None


@dataclass
class FullDisk:
    """Lets writes and new files fail when so many bytes more were written.

    Only where a file grows it takes space. After one error there is space again, or else
    the disk stays full, and has no inode for a new file from the beginning. That a write
    finds no space is an error without a file's name, as `os.pwrite` knows none.
    """

    disk: SimulatedDisk
    space: int
    stays_full: bool = False
    struck: Operation | None = None

    def __call__(self, operation: Operation) -> int | None:
        if operation.name not in ("write", "create"):
            return None
        if self.struck is not None and not self.stays_full:
            return None
        no_inode = operation.name == "create" and self.stays_full
        grows = operation.length
        if operation.name == "write":
            size = len(self.disk.image()[operation.path])
            grows = max(0, operation.offset + operation.length - size)
            if not grows:
                return None
        if no_inode or not self.space:
            self.struck = operation
            if operation.name == "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise system_error("ENOSPC", operation)
        taken = min(self.space, grows)
        self.space -= taken
        return operation.length - grows + taken


class BusyDisk(SimulatedDisk):
    """A simulated disk on which something else is done before each of the next copies.

    A copy is a record that is written while the files are rearranged: any write but those
    to the head of a file. What is done is done in another thread, as an engine demands it,
    and before the call, since calls to a disk wait for each other.
    """

    works: Sequence[Callable[[], object]] = ()
    busy = False

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int, /) -> int:
        """Do the next work, and write."""
        if self.works and offset > 0 and not self.busy:
            self.busy, (work, *self.works) = True, self.works
            try:
                elsewhere(work)
            finally:
                self.busy = False
        return super().pwrite(descriptor, data, offset)


@dataclass
class Budget:
    """Says how many bytes may be read in all, and raises what `too_much` returns."""

    left: int
    too_much: Callable[[str], Exception]

    def __call__(self, operation: Operation) -> None:
        if operation.name == "read":
            self.left -= operation.length
        if self.left < 0:
            what = f"{operation}: {-self.left:,} bytes more than this should take"
            raise self.too_much(what)


def image_before_last(
    disk: SimulatedDisk, name: str, work: Callable[[], object]
) -> Image:
    """Do some work; return what was left if the process had died before a call.

    It is the last call of this name.
    """
    images: list[Image] = []

    def look(operation: Operation) -> None:
        if operation.name == name:
            images.append(disk.image())

    with failing(disk, look):
        work()
    return images[-1]
