"""What the tests share: small stores and copies of them, threads, processes, flipped bits."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from zlib import crc32

import pytest
from hypothesis import settings

import kvstore
from kvstore.filesystem import Directory, FileSystem
from kvstore.manifest import Manifest, read_manifest, rows_of
from kvstore.posix import DISK
from kvstore.record import encode
from kvstore.segment import Segment, SegmentMeta
from kvstore.watermark import Watermark, read_watermark
from tests.disks import NO_SYNC, PATIENCE

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(kvstore.__file__).resolve().parent
GOLDEN = Path(__file__).parent / "golden"
FIRST, SECOND, THIRD = (f"0000000{n}.segment" for n in (1, 2, 3))

# The same examples in every run, and nothing kept between runs.
FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=200)

Contents = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]  # None: the key is deleted
RawRecord = tuple[int, int, bytes, bytes]  # kind, sequence number, key, value

# --- stores and their files --------------------------------------------------------------


def change(db: kvstore.Store, changes: Mapping[bytes, bytes | None]) -> None:
    """Make some changes as one batch."""
    with db.batch() as batch:
        for key, value in changes.items():
            if value is None:
                del batch[key]
            else:
                batch[key] = value


def segments(directory: Path) -> list[Path]:
    """Return the segments of a store, the one that takes records last."""
    return sorted(directory.glob("*.segment"))


def files(directory: Path) -> dict[str, bytes]:
    """Return every file of a directory, name to bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def without_lock(directory: Path) -> dict[str, bytes]:
    """Return the same but for LOCK, which holds the number of a process."""
    return {name: raw for name, raw in files(directory).items() if name != "LOCK"}


def read(directory: Path | str, filesystem: FileSystem = DISK) -> Contents:
    """Return what a store holds, read by a reader that changes nothing."""
    with kvstore.open(directory, "r", filesystem=filesystem) as db:
        return dict(db)


def recovered(directory: Path | str, filesystem: FileSystem = NO_SYNC) -> Contents:
    """Return what a store holds after a recovery that may repair it, and use it then."""
    with kvstore.open(directory, filesystem=filesystem) as db:
        found = dict(db)
        assert db.verify().ok, f"{directory}: {db.verify()}"
        db[b"new"] = b"new"
    after = read(directory, filesystem)
    assert after == found | {b"new": b"new"}, "a repaired store takes writes"
    return found


def copy_of(directory: Path, name: str = "copy") -> Path:
    """Copy a directory as it stands: what a crash of the process would leave."""
    return Path(shutil.copytree(directory, directory.with_name(name)))


def extend(path: Path, more: bytes) -> None:
    """Add some bytes to a file."""
    with path.open("ab") as file:
        file.write(more)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Put some bytes in the place of others."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file, in place."""
    raw = path.read_bytes()
    overwrite(path, byte, bytes([raw[byte] ^ 1 << bit]))


def flipped(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each bit of `raw`, and `raw` with that bit flipped."""
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def sealed(body: bytes) -> bytes:
    """Return some bytes with their checksum after them, as every file here ends."""
    return body + crc32(body).to_bytes(4, "little")


def record_bytes(key: bytes, value: bytes = b"") -> int:
    """Return how long the record of a key and a value is."""
    return 19 + len(key) + len(value)


def small_store(directory: Path, filesystem: FileSystem = NO_SYNC) -> Contents:
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
        change(db, {b"fay": b"Fay", b"ada": b"", b"cyd": None})
        db[b""] = expected[b""] = b"\0" * 5
        del db[b"fay"]
    del expected[b"bob"], expected[b"cyd"]
    expected[b"ada"] = b""
    return expected


def even_store(directory: Path, keys: int = 6) -> Path:
    """Make a closed store of keys with values of 20 bytes, two in each of its segments."""
    with kvstore.open(directory, segment_bytes=100, filesystem=NO_SYNC) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(keys)})
    return directory


def torn_store(directory: Path) -> Contents:
    """Make a store that was not closed, its last batch torn, a leftover beside it."""
    db = kvstore.open(directory, segment_bytes=100, filesystem=NO_SYNC)
    expected = {b"%d" % number: b"x" * 9 for number in range(7)}
    db.update(expected)
    change(db, {b"torn": b"torn", b"0": None})
    last = segments(directory)[-1]
    last.write_bytes(last.read_bytes()[:-3])
    (directory / "00000009.segment").write_bytes(b"")
    return expected


def refusals(db: kvstore.Store) -> dict[str, Callable[[], object]]:
    """Return every way to write to a store, for stores that must refuse them all."""
    return {
        "a put": lambda: db.__setitem__(b"key", b"value"),
        "a delete": lambda: db.__delitem__(next(iter(db))),
        "popitem": db.popitem,
        "clear": db.clear,
        "update": lambda: db.update({b"key": b"value"}),
        "a batch": lambda: change(db, {b"key": b"value"}),
        "a compaction": db.compact,
    }


def all_raise(
    attempts: Mapping[str, Callable[[], object]], error: type[Exception], *words: str
) -> None:
    """See that each of some attempts is such an error, and that it has these words in it."""
    for name, attempt in attempts.items():
        with pytest.raises(error) as caught:
            pytest.fail(f"{name} is let through: {attempt()!r}")
        for each in words:
            assert each in str(caught.value), f"{name}: the error says nothing of it"


# --- the parts of a store ----------------------------------------------------------------


def folder(directory: Path | str, filesystem: FileSystem = DISK) -> Directory:
    """Open a directory."""
    return filesystem.open_directory(str(directory))


def new_segment(
    directory: Path, number: int, *records: RawRecord, filesystem: FileSystem = DISK
) -> Segment:
    """Make a segment with some records."""
    segment = Segment.create(filesystem, folder(directory, filesystem), number)
    append(segment, *records)
    return segment


def append(segment: Segment, *records: RawRecord) -> list[tuple[int, int]]:
    """Append records, and return the offset and the length of each."""
    places = []
    for record in records:
        raw = encode(*record, segment.seed)
        places.append((segment.append(raw), len(raw)))
        segment.size += len(raw)
    return places


def old_segment(
    directory: Path, number: int = 1, filesystem: FileSystem = DISK
) -> Segment:
    """Open a segment that is there."""
    return Segment.open(filesystem, folder(directory, filesystem), number)


def manifest_with(
    next_number: int, sequence: int, listed: Iterable[SegmentMeta], active: SegmentMeta
) -> Manifest:
    """Return the manifest of these segments."""
    return Manifest(next_number, sequence, rows_of(listed), active)


def manifest_of(directory: Path | str, filesystem: FileSystem = DISK) -> Manifest:
    """Return the manifest of a store."""
    return read_manifest(filesystem, folder(directory, filesystem))


def watermark_of(
    directory: Path | str, filesystem: FileSystem = DISK
) -> Watermark | None:
    """Return how far the log of a store is known to be on the disk."""
    return read_watermark(filesystem, folder(directory, filesystem))


def synced_bytes(directory: Path | str, filesystem: FileSystem = DISK) -> int:
    """Return how many bytes of the active segment are known to be on the disk."""
    found = watermark_of(directory, filesystem)
    assert found is not None
    return found.synced.length


# --- errors, randomness, order -----------------------------------------------------------


def disk_full() -> OSError:
    """Return the error of a disk that has no space left."""
    return OSError(errno.ENOSPC, "No space left on device")


def disk_broken() -> OSError:
    """Return the error of a disk that fails."""
    return OSError(errno.EIO, "Input/output error")


def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system's random bytes be 1, 2, 3 and so on."""
    count = itertools.count(1)
    monkeypatch.setattr(os, "urandom", lambda n: next(count).to_bytes(n, "little"))


def first_missing(log: Sequence[str], steps: Sequence[str]) -> str | None:
    """Return the first step that does not come in the log after the steps before it."""
    rest = iter(log)
    return next((step for step in steps if step not in rest), None)


# --- threads and processes ---------------------------------------------------------------


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


def elsewhere(work: Callable[[], object]) -> None:
    """Do some work in another thread, and wait for its end."""
    Worker(work).done()


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


def run(*command: object, folder: Path) -> str:
    """Run a command that has to succeed; return what it says."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Process:
    """Another Python process that runs some code, with package and tests to import."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
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
