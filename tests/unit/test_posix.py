"""The files of this machine: each small promise that the modules above build on."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import kvstore
from kvstore.filesystem import Directory, File
from kvstore.posix import DISK, PosixFileSystem, most_open
from tests.disks import FaultyFileSystem
from tests.helpers import ROOT, Process, folder, in_a_fork


@pytest.fixture
def here(tmp_path: Path) -> Directory:
    """Return an open directory."""
    return folder(tmp_path)


def is_open(descriptor: int) -> bool:
    """Say whether a descriptor is open."""
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def test_a_file_closes_when_the_last_holder_lets_go(here: Directory) -> None:
    closed: list[int] = []
    file = File(123, closed.append)
    held = [file]
    del file
    assert closed == [], "a file was closed under the hands of a reader"
    held.clear()
    gc.collect()
    assert closed == [123]
    real = here.create("file")
    descriptor = real.descriptor
    assert is_open(descriptor)
    del real
    gc.collect()
    assert not is_open(descriptor)


def test_a_file_that_exists_is_never_made_anew(here: Directory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        here.create("file")
    with pytest.raises(NotADirectoryError):
        DISK.make_directory(str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_links_are_not_followed(here: Directory, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    attempts: list[Callable[[str], object]] = [
        here.create,
        here.open,
        lambda name: here.open(name, writable=True),
        here.lock,
    ]
    for attempt in attempts:
        for name in ("link", "broken"):
            with pytest.raises(OSError, match=f"{tmp_path.name}/{name}"):
                attempt(name)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists(), "a file was made at the end of a link"


def test_no_descriptor_is_inherited_by_another_program(here: Directory) -> None:
    files = [here.create("file"), here.open("file"), here.open("file", writable=True)]
    for file in files:
        flags = fcntl.fcntl(file.descriptor, fcntl.F_GETFD)
        assert flags & fcntl.FD_CLOEXEC, "another program gets the store's files"


def test_a_file_opened_to_read_takes_no_writes(here: Directory, tmp_path: Path) -> None:
    here.create("file")
    with pytest.raises(OSError, match="Bad file descriptor"):
        DISK.write(here.open("file"), b"data", 0)
    DISK.write(here.open("file", writable=True), b"data", 0)
    with pytest.raises(FileNotFoundError) as caught:
        here.open("other", writable=True)
    assert caught.value.filename == str(tmp_path / "other"), "the whole path is named"


def test_bytes_come_and_go_where_they_should(here: Directory, tmp_path: Path) -> None:
    file = here.create("file")
    DISK.write(file, b"0123456789", 0)
    DISK.write(file, b"abc", 4)
    assert DISK.size(file) == 10
    assert DISK.read(file, 5, 3) == b"3abc7"
    assert DISK.read(file, 100, 7) == b"789", "fewer bytes only at the end of the file"
    assert DISK.read(file, 1, 10) == b""
    DISK.truncate(file, 5)
    assert (tmp_path / "file").read_bytes() == b"0123a"


def test_a_system_that_takes_three_bytes_gets_them_all(tmp_path: Path) -> None:
    filesystem = FaultyFileSystem()
    for operation in ("read", "write"):
        filesystem.fail(operation, None, take=3, times=100)
    file = folder(tmp_path, filesystem).create("file")
    filesystem.write(file, b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0" + b"0123456789"
    assert filesystem.read(file, 9, 2) == b"012345678", "a short read was taken as all"
    assert filesystem.read(file, 50, 2) == b"0123456789"
    assert filesystem.log("write") == ["write file"] * 4


def test_a_map_shows_later_writes_and_outlives_the_name(here: Directory) -> None:
    file = here.create("file")
    DISK.write(file, b"0123456789", 0)
    shown = DISK.map(file, 6)
    assert (len(shown), shown[2:4]) == (6, b"23")
    DISK.write(file, b"ab", 2)
    here.remove("file")
    del file
    gc.collect()
    assert shown[0:6] == b"01ab45"


def test_a_file_that_was_cut_is_mapped_as_far_as_it_goes(here: Directory) -> None:
    """A reader may map a segment at the moment when its writer takes an append back."""
    file = here.create("file")
    DISK.write(file, b"0123456789", 0)
    assert DISK.map(file, 20)[0:99] == b"0123456789", "the reader met a bare ValueError"
    assert DISK.map(file, 4)[0:99] == b"0123"


def test_names_are_sorted_and_dead_links_exist(here: Directory, tmp_path: Path) -> None:
    for name in ("b", "a", "ä", "B"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    assert here.names() == ["B", "a", "b", "link", "ä"]
    assert here.exists("link")
    assert not here.exists("nowhere")
    assert DISK.exists(str(tmp_path / "link"))


def test_a_directory_stays_the_same_one_whatever_becomes_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = DISK.make_directory("a")
    (tmp_path / "elsewhere" / "a").mkdir(parents=True)
    monkeypatch.chdir("elsewhere")
    made.create("one")
    (tmp_path / "a").rename(tmp_path / "b")
    made.create("two")
    (tmp_path / "a").mkdir()
    made.rename("two", "three")
    made.remove("one")
    made.sync()
    assert not made.is_removed()
    assert made.names() == os.listdir(tmp_path / "b") == ["three"]
    assert os.listdir(tmp_path / "a") == os.listdir(tmp_path / "elsewhere/a") == []
    made.remove("three")
    (tmp_path / "b").rmdir()
    assert made.is_removed()
    made.close()
    for attempt in (made.names, made.sync, lambda: made.open("three")):
        with pytest.raises(OSError, match="Bad file descriptor"):
            attempt()


def test_a_directory_is_made_once_for_this_user_alone_wherever_we_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for spelled in ("directory", "directory/", f"{tmp_path}/directory", "./directory"):
        DISK.make_directory(spelled)
    assert (tmp_path / "directory").stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileNotFoundError):
        DISK.make_directory("nowhere/directory")
    for wrong in ("", "nowhere"):
        with pytest.raises(FileNotFoundError):
            DISK.open_directory(wrong)


def test_a_new_directory_is_made_durable_in_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def sync(_: PosixFileSystem, file: File) -> None:
        synced.append(os.fstat(file.descriptor).st_ino)

    monkeypatch.setattr(PosixFileSystem, "sync", sync)
    for _ in range(2):  # also where an interrupted attempt has left it
        synced.clear()
        DISK.make_directory(str(tmp_path / "store"))
        assert synced == [tmp_path.stat().st_ino]


def test_the_files_to_keep_open_are_a_share_of_those_that_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for allowed, most in ((256, 64), (1024, 256), (10**6, 4096), (4, 8), (-1, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, a=allowed: (a, a))
        assert most_open() == most, f"of {allowed}"


class Owner:
    """Something that a child must not go on using."""

    disowned_in = 0

    def disown(self) -> None:
        """Note in which process this was called."""
        self.disowned_in = os.getpid()


def test_who_asked_is_told_in_every_forked_child_and_nowhere_else() -> None:
    owner = Owner()
    DISK.tell_children(owner)
    answer = in_a_fork(lambda: str(owner.disowned_in == os.getpid()))
    assert answer == "True", "it was not called in the child"
    assert owner.disowned_in == 0, "it was called in the parent"


def test_a_lock_is_on_directory_and_file(here: Directory, tmp_path: Path) -> None:
    lock = here.lock("LOCK")
    (tmp_path / "LOCK").unlink()  # by hand, or by somebody who tidies up
    for opened in (here, folder(tmp_path)):
        with pytest.raises(kvstore.LockedError, match="this process"):
            opened.lock("LOCK")
    lock.release()
    lock.release()
    again = here.lock("LOCK")
    lock.release()
    with pytest.raises(kvstore.LockedError):
        here.lock("LOCK")
    del again
    gc.collect()
    here.lock("LOCK").release()


OLDER_PROGRAM = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_program_that_locks_the_file_alone_is_respected(
    here: Directory, tmp_path: Path
) -> None:
    here.lock("LOCK").release()
    with Process(OLDER_PROGRAM, tmp_path / "LOCK") as older:
        assert older.line() == "held"
        with pytest.raises(kvstore.LockedError, match="process unknown"):
            here.lock("LOCK")
        older.kill()
    here.lock("LOCK").release()


WITHOUT = """
import sys
for name in ("fcntl", "mmap", "resource"):
    sys.modules[name] = None
import os
for name in ("pread", "pwrite", "fork", "register_at_fork"):
    delattr(os, name)
import kvstore
from kvstore.simdisk import SimulatedDisk
disk = SimulatedDisk()
with kvstore.open("store", filesystem=disk) as db:
    db[b"ada"] = b"1815"
with kvstore.open("store", "r", filesystem=disk) as db:
    assert dict(db) == {b"ada": b"1815"}
kvstore.salvage("store", "saved", filesystem=disk)
try:
    kvstore.open(sys.argv[1])
except kvstore.UnsupportedPlatformError as error:
    print(error)
"""


@pytest.mark.parametrize("missing", ["fcntl", "mmap", "pread"])
def test_where_something_is_missing_a_simulated_disk_works_and_open_says_what(
    path: Path, missing: str
) -> None:
    """As in a browser. What the system lacks is one module's business."""
    code = WITHOUT
    if missing == "mmap":
        code = code.replace('"fcntl", ', "")
    if missing == "pread":
        code = code.replace('"fcntl", "mmap", "resource"', "")
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert missing in done.stdout, "it says what is missing"
    assert "Linux or macOS" in done.stdout
    assert not path.exists()
