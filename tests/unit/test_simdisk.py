"""The simulated machine: it has to be as strict as a real one where a store leans on it."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from kvstore.errors import LockedError
from kvstore.filesystem import Directory, File, FileSystem, Lock
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


# Files


def test_an_image_goes_in_and_comes_out(disk: SimulatedDisk) -> None:
    assert disk.image() == IMAGE
    assert SimulatedDisk().image() == {}
    assert SimulatedDisk({"d/a/f": b"F"}).image() == {
        "d/": b"",
        "d/a/": b"",
        "d/a/f": b"F",
    }


def test_a_file_opened_for_reading_can_not_be_changed(
    disk: SimulatedDisk, directory: Directory
) -> None:
    file = directory.open("f")
    raises(errno.EBADF, lambda: disk.write(file, b"data", 0))
    raises(errno.EBADF, lambda: disk.truncate(file, 0))
    disk.write(directory.open("f", writable=True), b"data", 0)
    assert disk.read(file, 5, 0) == b"data4"


def test_a_map_is_a_copy(disk: SimulatedDisk, directory: Directory) -> None:
    file = directory.open("f", writable=True)
    shown = disk.map(file, 6)
    disk.write(file, b"ab", 2)
    assert (len(shown), shown[2:4], shown[4:9]) == (6, b"23", b"45")
    assert disk.map(file, 20)[:] == b"01ab456789"


# Directories by path


# Open directories, and what others do meanwhile


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


# Locks


def test_a_lock_is_had_by_one_alone(disk: SimulatedDisk, directory: Directory) -> None:
    lock = directory.lock("LOCK")
    assert disk.image()["d/LOCK"] == b""
    again = disk.open_directory("d")
    with pytest.raises(LockedError, match="d/LOCK"):
        again.lock("LOCK")
    with pytest.raises(LockedError):
        again.lock("other name")
    disk.open_directory("e").lock("LOCK").release()
    lock.release()
    second = again.lock("LOCK")
    lock.release()
    with pytest.raises(LockedError):
        directory.lock("LOCK")
    second.release()


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


# Calls: noted, failed, watched


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


# Descriptors


def test_descriptors_are_counted_until_all_let_go(disk: SimulatedDisk) -> None:
    assert disk.open_descriptors() == 0
    directory = disk.open_directory("d")
    file, lock = directory.open("f"), directory.lock("LOCK")
    assert disk.open_descriptors() == 3
    held = [file]
    lock.release()
    del file, lock
    gc.collect()
    assert disk.open_descriptors() == 2
    held.clear()
    del directory
    gc.collect()
    assert disk.open_descriptors() == 0


def test_a_lock_keeps_its_directory_open(disk: SimulatedDisk) -> None:
    lock = disk.open_directory("d").lock("LOCK")
    gc.collect()
    assert disk.open_descriptors() == 2
    with pytest.raises(LockedError):
        disk.open_directory("d").lock("LOCK")
    gc.collect()
    assert disk.open_descriptors() == 2, "a lock that failed has kept a descriptor"
    lock.release()
    assert disk.open_descriptors() == 0, "a lock that was released has kept one"
    lock.release()


def test_a_closed_directory_leads_nowhere_and_its_files_stay_open(
    disk: SimulatedDisk, directory: Directory
) -> None:
    file = directory.open("f")
    directory.close()
    directory.close()
    for work in (directory.names, directory.sync, directory.is_removed):
        raises(errno.EBADF, work)
    raises(errno.EBADF, lambda: directory.open("f"))
    assert disk.open_descriptors() == 1
    assert disk.read(file, 2, 0) == b"01"


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

T = TypeVar("T")
PATHS = ("a", "b", "a/x", "a/y", "b/x", "b/y", "a/x/z", "x/y")


class Player:
    """Does by chance what a store and its neighbours do; the same for the same seed."""

    def __init__(self, seed: int, machine: FileSystem) -> None:
        self.chance = random.Random(seed)
        self.machine = machine
        self.directories = [machine.make_directory(path) for path in ("a", "b", "a/x")]
        self.files: list[File] = []
        self.locks: list[Lock] = []

    def step(self) -> str:
        """Do one thing; return what, and what came of it."""
        works = (self.by_path, self.by_others, self.in_a_directory, self.in_a_file)
        (work,) = self.chance.choices(works, (1, 1, 3, 1))
        self.what = ""
        try:
            answer = work()
        except (OSError, LockedError):
            answer = "fails"  # of two errors that fit, each system has its own first
        return f"{self.what}: {answer}"

    def any_of(self, name: str, *choices: T) -> T:
        choice = self.chance.choice(choices)
        self.what += (
            f" {name} {choice}" if isinstance(choice, str | int) else f" {name}"
        )
        return choice

    def by_path(self) -> object:
        path, machine = self.any_of("path", *PATHS), self.machine
        match self.any_of("call", "exists", "open", "make", "make"):
            case "exists":
                return machine.exists(path)
            case "open":
                self.directories.append(machine.open_directory(path))
            case _:
                self.directories.append(machine.make_directory(path))
        return "done"

    def by_others(self) -> object:
        path, target = self.any_of("path", *PATHS), self.any_of("target", *PATHS)
        match self.any_of("other", "move", "move", "move", "link", "remove"):
            case "move":
                self.move(path, target)
            case "remove":
                self.remove_tree(path)
            case _:
                self.link(path, target)
        return "done"

    def move(self, source: str, target: str) -> None:
        os.rename(source, target)

    def remove_tree(self, path: str) -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink()

    def link(self, source: str, target: str) -> None:
        if Path(source).is_dir():
            raise IsADirectoryError
        os.link(source, target)

    def in_a_directory(self) -> object:
        if not self.directories:
            return None
        directory = self.any_of("directory", *self.directories)
        name, other = self.any_of("name", *"xyz"), self.any_of("other", *"xyz")
        calls = ("create", "create", "open", "rename", "remove", "ask", "lock")
        match self.any_of("call", *calls):
            case "create":
                self.files.append(directory.create(name))
            case "open":
                self.files.append(directory.open(name, writable=True))
            case "rename":
                directory.rename(name, other)
            case "remove":
                directory.remove(name)
            case "lock":
                with suppress(IndexError):
                    self.locks.pop().release()
                self.locks.append(directory.lock("LOCK"))
            case _:
                return directory.is_removed(), directory.names(), directory.exists(name)
        return "done"

    def in_a_file(self) -> object:
        if not self.files:
            return None
        file, machine = self.any_of("file", *self.files), self.machine
        offset, length = self.any_of("at", 0, 3, 9), self.any_of("length", 1, 5)
        match self.any_of("call", "read", "write", "truncate", "sync"):
            case "write":
                machine.write(file, b"%d" % offset * length, offset)
            case "truncate":
                machine.truncate(file, offset)
            case "sync":
                machine.sync(file)
        return machine.size(file), machine.read(file, 30, 0)


class SimulatedPlayer(Player):
    """Does it on a simulated machine."""

    def __init__(self, seed: int, machine: SimulatedDisk) -> None:
        super().__init__(seed, machine)
        self.move, self.link = machine.move, machine.link  # type: ignore[method-assign]
        self.remove_tree = machine.remove_tree  # type: ignore[method-assign]


def test_it_does_what_a_real_machine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posix = pytest.importorskip("kvstore.posix")
    for seed in range(100):
        here = tmp_path / str(seed)
        here.mkdir()
        monkeypatch.chdir(here)
        real = Player(seed, posix.PosixFileSystem())
        ours = SimulatedPlayer(seed, SimulatedDisk())
        done: list[str] = []
        for _ in range(60):
            done.append(real.step())
            assert ours.step() == done[-1], done
