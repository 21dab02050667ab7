"""What every machine promises, a real one and a simulated one, and the budget of what is open."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.errors import LockedError
from kvstore.filesystem import Budget, Directory, File, FileSystem
from kvstore.posix import DISK
from kvstore.simdisk import SimulatedDisk


@pytest.fixture(params=["real", "simulated"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FileSystem:
    """Return the files of this machine, and then of one in memory."""
    monkeypatch.chdir(tmp_path)
    return DISK if request.param == "real" else SimulatedDisk()


@pytest.fixture
def here(machine: FileSystem) -> Directory:
    """Return an open directory."""
    return machine.make_directory("here")


def test_a_file_closes_when_the_last_holder_lets_go() -> None:
    closed: list[int] = []
    file = File(123, closed.append)
    held = [file]
    del file
    assert closed == [], "a file was closed under the hands of a reader"
    held.clear()
    gc.collect()
    assert closed == [123]


def test_a_file_opened_to_read_takes_no_writes(
    machine: FileSystem, here: Directory
) -> None:
    here.create("file")
    file = here.open("file")
    attempts: list[Callable[[], object]] = [
        lambda: machine.write(file, b"data", 0),
        lambda: machine.truncate(file, 0),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
            attempt()
    machine.write(here.open("file", writable=True), b"data", 0)
    with pytest.raises(FileNotFoundError) as caught:
        here.open("other", writable=True)
    assert caught.value.filename == "here/other", "the whole path is named"


def test_bytes_come_and_go_where_they_should(
    machine: FileSystem, here: Directory
) -> None:
    file = here.create("file")
    machine.write(file, b"0123456789", 0)
    machine.write(file, b"abc", 4)
    assert machine.size(file) == 10
    assert machine.read(file, 5, 3) == b"3abc7"
    assert machine.read(file, 100, 7) == b"789", "fewer bytes only at the file's end"
    assert machine.read(file, 1, 10) == b""
    machine.truncate(file, 5)
    assert machine.read(here.open("file"), 9, 0) == b"0123a"
    assert machine.map(file, 4)[0:99] == b"0123"
    assert machine.map(file, 20)[0:99] == b"0123a", "the file was cut, and that is all"


def test_a_lock_is_had_by_one_alone(machine: FileSystem, here: Directory) -> None:
    lock = here.lock("LOCK")
    here.remove("LOCK")  # by hand, or by somebody who tidies up
    again = machine.open_directory("./here")
    for directory, name in ((here, "LOCK"), (again, "LOCK"), (again, "other name")):
        with pytest.raises(LockedError, match="here/"):
            directory.lock(name)
    machine.make_directory("elsewhere").lock("LOCK").release()
    lock.release()
    second = again.lock("LOCK")
    lock.release()
    with pytest.raises(LockedError):
        here.lock("LOCK")
    del second
    gc.collect()
    here.lock("LOCK").release()


def test_a_closed_directory_leads_nowhere_and_its_files_stay_open(
    machine: FileSystem, here: Directory
) -> None:
    file = here.create("file")
    machine.write(file, b"0123", 0)
    here.close()
    here.close()
    for attempt in (here.names, here.sync, here.is_removed, lambda: here.open("file")):
        with pytest.raises(OSError, match="Bad file descriptor"):
            attempt()
    assert machine.read(file, 2, 0) == b"01"


class Holder:
    """Holds something open until it has to let go."""

    is_open = True

    def let_go(self) -> None:
        """Close it."""
        self.is_open = False


def test_who_opened_first_lets_go_first() -> None:
    budget, holders = Budget(3), [Holder() for _ in range(5)]
    for holder in holders:
        budget.note(holder)
    assert [each.is_open for each in holders] == [False, False, True, True, True]
    budget.let_go_of_all()
    assert not any(each.is_open for each in holders)
    budget.let_go_of_all()


def test_a_budget_keeps_nobody_alive() -> None:
    budget, last = Budget(2), Holder()
    budget.note(Holder())
    budget.note(last)
    gc.collect()
    budget.note(Holder())
    assert last.is_open
    budget.note(Holder())
    assert not last.is_open, "it was the oldest"
