"""The files of this machine: each small promise that the modules above build on."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kvstore
from kvstore.filesystem import Directory, File
from kvstore.posix import DISK, PosixFileSystem, most_open
from tests.disks import FaultyFileSystem
from tests.helpers import ROOT, Process, folder


@pytest.fixture
def here(tmp_path: Path) -> Directory:
    """Return an open directory."""
    return folder(tmp_path)


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
    DISK.write(file, b"ab", 2)
    here.remove("file")
    descriptor = file.descriptor
    del file
    gc.collect()
    assert (len(shown), shown[0:9]) == (6, b"01ab45")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


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


@pytest.mark.parametrize("spelled", ["store", "store/", "./store", "above/store"])
def test_a_new_directory_is_made_durable_in_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    """The files in it are no use where the directory itself is gone."""
    synced: list[int] = []

    def sync(_: PosixFileSystem, file: File) -> None:
        synced.append(os.fstat(file.descriptor).st_ino)

    monkeypatch.setattr(PosixFileSystem, "sync", sync)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "above").mkdir()
    parent = (tmp_path / spelled).parent.stat().st_ino
    for place in (spelled, f"{tmp_path}/{spelled}"):  # the second time it is there
        synced.clear()
        DISK.make_directory(place)
        assert synced == [parent], "the whole store can vanish in a power cut"
    assert (tmp_path / spelled).stat().st_mode & 0o777 == 0o700
    for attempt in (DISK.make_directory, DISK.open_directory):
        with pytest.raises(FileNotFoundError):
            attempt("nowhere/store")
    with pytest.raises(FileNotFoundError):
        DISK.open_directory("")


def test_the_files_to_keep_open_are_a_share_of_those_that_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for allowed, most in ((256, 64), (1024, 256), (10**6, 4096), (4, 8), (-1, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, a=allowed: (a, a))
        assert most_open() == most, f"of {allowed}"


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
path, *missing = sys.argv[1:]
for name in missing:
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
    kvstore.open(path)
except kvstore.UnsupportedPlatformError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "missing", [["fcntl", "mmap"], ["mmap"], []], ids=["fcntl", "mmap", "pread"]
)
def test_where_something_is_missing_a_simulated_disk_works_and_open_says_what(
    path: Path, missing: list[str]
) -> None:
    """As in a browser. What the system lacks is one module's business."""
    command = [sys.executable, "-c", WITHOUT, str(path), *missing]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (missing or ["pread"])[0] in done.stdout, "it says what is missing"
    assert "Linux or macOS" in done.stdout
    assert not path.exists()
