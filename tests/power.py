"""A machine that stops at a change, for tests that are not about the disk.

`tests/crash` explores what a power cut may leave for its own sake. Here it is one more
thing that a promise has to survive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from support import files

from kvstore.simdisk import Image, Operation, SimulatedDisk, no_fault, no_watch

CHANGES = frozenset(
    {"create", "write", "truncate", "sync", "sync_directory", "rename", "remove"}
)
PATH = "store"
STATES = 12  # drawn where a power cut may leave more than so many


class Died(BaseException):
    """The machine stopped at this call. Nothing of ours handles it, as nothing could."""


def on_a_disk(directory: Path) -> SimulatedDisk:
    """Return a disk that holds the files of a directory as `PATH`, all of them safe."""
    image = {f"{PATH}/{name}": raw for name, raw in files(directory).items()}
    return SimulatedDisk({f"{PATH}/": b"", **image})


def stops(disk: SimulatedDisk, number: int, work: Callable[[], object]) -> str:
    """Do some work on a machine that stops at change `number`: where; "" if it does not.

    A write gets through by half, anything else not at all.
    """
    changes = itertools.count(1)

    def die(operation: Operation) -> None:
        raise Died(f"at {operation}")

    def fault(operation: Operation) -> int | None:
        if operation.name not in CHANGES or next(changes) < number:
            return None
        if operation.name != "write":
            die(operation)
        disk.watch = die
        return operation.length // 2

    disk.fault = fault
    try:
        work()
    except Died as death:
        return str(death)
    finally:
        disk.fault, disk.watch = no_fault, no_watch
    return ""


def remains(disk: SimulatedDisk) -> Iterator[tuple[str, Image]]:
    """Yield what may be left of the files: after kill -9, and after a power cut."""
    yield "killed", disk.image()
    cut = disk.power_cut()
    for picks, image in cut.images(STATES):
        yield f"power lost; {cut.describe(picks)}", image
