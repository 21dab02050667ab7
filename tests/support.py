"""What several tests need: small stores, copies of them, other processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from faults import Call, Fault, FaultyFileSystem

import kvstore
from kvstore.filesystem import DISK

PACKAGE_PARENT = Path(kvstore.__file__).resolve().parents[1]
PATIENCE = 30.0  # seconds after which a test that waits for a thread gives up

Contents = dict[bytes, bytes]


class NoSync(kvstore.filesystem.FileSystem):
    """The real files, without the waits for the disk: for tests with many opens."""

    def sync(self, file: kvstore.filesystem.File) -> None:
        """Do nothing."""

    def sync_directory(self, path: str) -> None:
        """Do nothing."""


NO_SYNC = NoSync()


@dataclass
class Pause(Fault):
    """A call that stops until it is told to go on."""

    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def strikes(self, call: Call) -> bool:
        """Wait at the call that matches; never let it fail."""
        if super().strikes(call):
            self.reached.set()
            assert self.go_on.wait(PATIENCE), f"nobody let {call} go on"
        return False


def pause(filesystem: FaultyFileSystem, operation: str, name: str = "") -> Pause:
    """Have the next call of an operation stop until `go_on` is set."""
    stop = Pause(operation, None, name)
    filesystem.faults.append(stop)
    return stop


@dataclass
class Meanwhile(Fault):
    """A call before which something else happens, in the same thread."""

    work: Callable[[], object] = lambda: None

    def strikes(self, call: Call) -> bool:
        """Do the work at the call that matches; never let it fail."""
        if super().strikes(call):
            self.work()
        return False


def meanwhile(
    filesystem: FaultyFileSystem,
    operation: str,
    name: str,
    work: Callable[[], object],
    which: int = 1,
) -> None:
    """Have some work done before a call to come of an operation on a file."""
    filesystem.faults.append(Meanwhile(operation, None, name, which, work=work))


class Worker(threading.Thread):
    """A thread whose error is the test's error."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do the work, and keep the error."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is joined
            self.error = error

    def done(self) -> None:
        """Wait for the end, and raise what the thread raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "a thread does not come to an end"
        if self.error is not None:
            raise self.error


def segments(directory: Path) -> list[Path]:
    """Return the segments of a store, the one that takes records last."""
    return sorted(directory.glob("*.segment"))


def files(directory: Path) -> dict[str, bytes]:
    """Return every file of a directory, name to bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def read(
    directory: Path | str, filesystem: kvstore.filesystem.FileSystem = DISK
) -> Contents:
    """Return what a store holds, read by a reader that changes nothing."""
    with kvstore.open(directory, "r", filesystem=filesystem) as db:
        return dict(db)


def recovered(
    directory: Path | str, filesystem: kvstore.filesystem.FileSystem = NO_SYNC
) -> Contents:
    """Return what a store holds after a recovery that may mend it, and use it then."""
    with kvstore.open(directory, filesystem=filesystem) as db:
        found = dict(db)
        assert db.verify().ok, f"{directory}: {db.verify()}"
        db[b"new"] = b"new"
    after = read(directory, filesystem)
    assert after == found | {b"new": b"new"}, "a mended store takes writes"
    return found


def copy_of(directory: Path, name: str = "copy") -> Path:
    """Copy a directory as it stands: what a crash of the process would leave."""
    return Path(shutil.copytree(directory, directory.with_name(name)))


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def record_bytes(key: bytes, value: bytes = b"") -> int:
    """Return how long the record of a key and a value is."""
    return 19 + len(key) + len(value)


def refusals(db: kvstore.Store) -> dict[str, Callable[[], object]]:
    """Return every way to write to a store, for stores that must refuse them all."""

    def batch() -> None:
        with db.batch() as changes:
            changes[b"key"] = b"value"

    return {
        "a put": lambda: db.__setitem__(b"key", b"value"),
        "a delete": lambda: db.__delitem__(next(iter(db))),
        "popitem": db.popitem,
        "clear": db.clear,
        "update": lambda: db.update({b"key": b"value"}),
        "a batch": batch,
        "a compaction": db.compact,
    }


def small_store(
    directory: Path, filesystem: kvstore.filesystem.FileSystem = NO_SYNC
) -> Contents:
    """Make a closed store with all there can be in one, and return what it holds.

    Several segments, overwritten and deleted keys, batches, a tombstone that has to stay
    because an older record of its key lives in a segment that was not merged.
    """
    expected: Contents = {}
    with kvstore.open(directory, segment_bytes=110, filesystem=filesystem) as db:
        for word in (b"ada", b"bob", b"cyd", b"dan", b"eve"):
            db[word] = expected[word] = word.upper()
        del db[b"bob"]
        for number in range(3):
            db[b"ada"] = expected[b"ada"] = b"%d" % number
        done = db.compact(0.6)
        assert done.segments_before, "the small store is meant to be compacted once"
        with db.batch() as batch:
            batch[b"fay"] = b"Fay"
            batch[b"ada"] = b""
            del batch[b"cyd"]
        db[b""] = expected[b""] = b"\0" * 5
        del db[b"fay"]
    del expected[b"bob"], expected[b"cyd"]
    expected[b"ada"] = b""
    return expected


def in_a_fork(work: Callable[[], str]) -> str:
    """Run `work` in a forked child, and return what it returned."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))  # a child that hangs ends
        try:
            answer = work()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent shows it
            answer = traceback.format_exc()
        os.write(send, answer.encode())
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    return answer


class Process:
    """Another Python process that runs some code, with this package to import."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(PACKAGE_PARENT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Return the next line that it prints, "" at its end."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        self.popen.kill()
        self.popen.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.kill()
