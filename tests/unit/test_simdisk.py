"""The simulated machine: it has to be as strict as a real one where a store leans on it."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.errors import LockedError
from kvstore.filesystem import Directory, FileSystem, Lock
from kvstore.simdisk import Operation, SimulatedDisk, no_fault

IMAGE = {"d/": b"", "d/f": b"0123456789", "d/g": b"G", "e/": b""}


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(IMAGE)


@pytest.fixture
def directory(disk: SimulatedDisk) -> Directory:
    found = disk.open_directory("d")
    disk.operations.clear()
    return found


def calls(disk: SimulatedDisk) -> list[str]:
    """Return what was called since the last look."""
    made = [str(operation) for operation in disk.operations]
    disk.operations.clear()
    return made


def raises(number: int, work: Callable[[], object]) -> None:
    """See that some work fails, with this error of the system."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what matters
        work()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def test_an_image_goes_in_and_comes_out(disk: SimulatedDisk) -> None:
    assert disk.image() == IMAGE
    assert SimulatedDisk().image() == {}
    image = SimulatedDisk({"d/a/f": b"F"}).image()
    assert image == {"d/": b"", "d/a/": b"", "d/a/f": b"F"}


def test_a_map_is_a_copy(disk: SimulatedDisk, directory: Directory) -> None:
    file = directory.open("f", writable=True)
    shown = disk.map(file, 6)
    disk.write(file, b"ab", 2)
    assert (len(shown), shown[2:4], shown[4:9]) == (6, b"23", b"45")
    assert disk.map(file, 20)[:] == b"01ab456789"


def test_other_processes_are_not_among_the_calls_and_may_act_inside_one(
    disk: SimulatedDisk, directory: Directory
) -> None:
    def move_away(operation: Operation) -> None:
        if operation.name == "create":
            disk.move("d", "moved")

    disk.fault = move_away
    directory.create("new")
    assert calls(disk) == ["create d/new"]
    assert "moved/new" in disk.image()


def test_a_lock_is_on_the_file_too(disk: SimulatedDisk, directory: Directory) -> None:
    lock = directory.lock("LOCK")
    disk.link("d/LOCK", "e/LOCK")
    with pytest.raises(LockedError):
        disk.open_directory("e").lock("LOCK")
    lock.release()
    disk.open_directory("e").lock("LOCK").release()


def test_the_end_of_a_process_drops_its_locks_for_good(
    disk: SimulatedDisk, directory: Directory
) -> None:
    dead = directory.lock("LOCK")
    disk.end_process()
    lock = directory.lock("LOCK")
    dead.release()
    with pytest.raises(LockedError):
        directory.lock("LOCK")
    lock.release()


def test_a_fault_keeps_a_call_from_having_happened(
    disk: SimulatedDisk, directory: Directory
) -> None:
    file = directory.open("f", writable=True)
    watched: list[Operation] = []

    def fault(operation: Operation) -> None:
        raise OSError(errno.EIO, "made to fail", operation.path)

    disk.fault, disk.watch = fault, watched.append
    for work in (
        lambda: directory.create("new"),
        lambda: directory.open("f"),
        lambda: directory.rename("f", "g"),
        lambda: directory.remove("f"),
        lambda: directory.lock("LOCK"),
        lambda: disk.write(file, b"x", 0),
        lambda: disk.truncate(file, 0),
        lambda: disk.make_directory("new"),
        lambda: disk.exists("x"),
        directory.sync,
    ):
        with pytest.raises(OSError, match="made to fail"):
            work()
    assert watched == []
    disk.fault = no_fault
    assert disk.image() == IMAGE
    assert disk.power_cut().outcomes == 1
    assert not disk.exists("x")
    assert [operation.name for operation in watched] == ["exists"]


def test_a_fault_lets_part_of_a_write_in(
    disk: SimulatedDisk, directory: Directory
) -> None:
    parts = [3, 4]
    disk.fault = lambda _: parts.pop(0) if parts else None
    file = directory.create("new")
    assert disk.pwrite(file.descriptor, b"01234567", 0) == 4
    disk.write(file, b"4567", 4)
    assert disk.image()["d/new"] == b"01234567"


def test_a_watch_sees_the_call_done(disk: SimulatedDisk, directory: Directory) -> None:
    seen: list[tuple[str, bool]] = []
    disk.watch = lambda operation: seen.append(
        (operation.name, "d/new" in disk.image())
    )
    directory.create("new")
    directory.remove("new")
    assert seen == [("create", True), ("remove", False)]


def test_descriptors_are_counted_until_all_let_go(disk: SimulatedDisk) -> None:
    def left() -> int:
        gc.collect()
        return disk.open_descriptors()

    directory = disk.open_directory("d")
    held = [directory.open("f")]
    lock = directory.lock("LOCK")
    assert left() == 3
    with pytest.raises(LockedError):
        disk.open_directory("d").lock("LOCK")
    assert left() == 3, "a lock that failed has kept a descriptor"
    del directory
    assert left() == 3, "a lock keeps its directory open"
    lock.release()
    lock.release()
    assert left() == 1, "a lock that was released has kept one"
    held.clear()
    assert left() == 0


def test_what_needs_a_descriptor_fails_when_there_is_none_left(
    disk: SimulatedDisk, directory: Directory
) -> None:
    file = directory.open("f", writable=True)
    disk.most_descriptors = disk.open_descriptors()
    for work in (
        lambda: directory.open("g"),
        lambda: directory.create("new"),
        lambda: directory.lock("LOCK"),
        lambda: disk.open_directory("e"),
        lambda: disk.make_directory("new"),
        lambda: disk.map(file, 4),
    ):
        raises(errno.EMFILE, work)
    assert disk.image() == IMAGE, "a call that failed has made something"
    disk.write(file, b"ab", 0)
    directory.rename("g", "h")
    directory.remove("h")
    directory.sync()
    disk.sync(file)
    assert directory.names() == ["f"]
    disk.most_descriptors += 1
    assert disk.map(file, 2)[:] == b"ab"
    kept = directory.create("new")
    raises(errno.EMFILE, lambda: directory.open("f"))
    del kept
    gc.collect()
    directory.open("f")


# Beside a real machine

PATHS = ("a", "b", "a/x", "a/y", "b/x", "b/y", "a/x/z", "x/y")


class Neighbours:
    """What other processes do on a real machine."""

    def move(self, source: str, target: str) -> None:
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        if Path(source).is_dir():
            raise IsADirectoryError
        os.link(source, target)

    def remove_tree(self, path: str) -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink()


class Player:
    """Does by chance what a store and its neighbours do; the same for the same seed."""

    def __init__(
        self, seed: int, machine: FileSystem, others: Neighbours | SimulatedDisk
    ) -> None:
        self.chance, self.machine, self.others = random.Random(seed), machine, others
        self.directories = [machine.make_directory(path) for path in ("a", "b", "a/x")]
        self.files = [self.directories[0].create("f")]
        self.lock: Lock | None = None

    def take_lock(self, directory: Directory) -> None:
        if self.lock:
            self.lock.release()
        self.lock = directory.lock("LOCK")

    def step(self) -> str:
        """Do one thing; return what, and what came of it."""
        pick, machine, others = self.chance.choice, self.machine, self.others
        path, target, name, new = pick(PATHS), pick(PATHS), pick("xyz"), pick("xyz")
        directory, file, place = pick(self.directories), pick(self.files), pick((0, 3))
        make, open_one = machine.make_directory, machine.open_directory
        calls: dict[str, Callable[[], object]] = {
            "exists": lambda: machine.exists(path),
            "open directory": lambda: self.directories.append(open_one(path)),
            "make directory": lambda: self.directories.append(make(path)),
            "move": lambda: others.move(path, target),
            "link": lambda: others.link(path, target),
            "remove tree": lambda: others.remove_tree(path),
            "create": lambda: self.files.append(directory.create(name)),
            "open": lambda: self.files.append(directory.open(name, writable=True)),
            "rename": lambda: directory.rename(name, new),
            "remove": lambda: directory.remove(name),
            "look": lambda: (directory.names(), directory.exists(name)),
            "lock": lambda: self.take_lock(directory),
            "write": lambda: machine.write(file, b"%d" % place * 5, place),
            "truncate": lambda: machine.truncate(file, place),
            "sync": lambda: machine.sync(file),
        }
        word = pick([*calls, "move", "create", "create"])
        try:
            answer = calls[word]()
        except (OSError, LockedError):
            answer = "fails"  # of two errors that fit, each system has its own first
        seen = directory.is_removed(), machine.size(file), machine.read(file, 30, 0)
        return f"{word} {path} {target} {name} {new} {place}: {answer}, {seen}"


def test_it_does_what_a_real_machine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posix = pytest.importorskip("kvstore.posix")
    for seed in range(100):
        here = tmp_path / str(seed)
        here.mkdir()
        monkeypatch.chdir(here)
        real = Player(seed, posix.PosixFileSystem(), Neighbours())
        disk = SimulatedDisk()
        ours = Player(seed, disk, disk)
        done: list[str] = []
        for _ in range(60):
            done.append(real.step())
            assert ours.step() == done[-1], done
