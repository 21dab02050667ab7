"""The seam to the operating system: each small promise that the layers above build on."""

from __future__ import annotations

import fcntl
import gc
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faults import FaultyFileSystem
from support import Process, in_a_fork

import kvstore
from kvstore.filesystem import DISK, File


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_open(descriptor: int) -> bool:
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def test_a_file_closes_when_the_last_holder_lets_go(tmp_path: Path) -> None:
    closed: list[int] = []
    file = File(123, closed.append)
    held = [file]
    del file
    assert closed == [], "a file was closed under the hands of a reader"
    held.clear()
    gc.collect()
    assert closed == [123]
    real = DISK.create(str(tmp_path / "file"))
    descriptor = real.descriptor
    assert is_open(descriptor)
    del real
    gc.collect()
    assert not is_open(descriptor)


def test_a_new_file_is_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        DISK.create(str(tmp_path / "file"))
        DISK.make_directory(str(tmp_path / "directory"))
        DISK.lock(str(tmp_path / "LOCK")).release()
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == mode(tmp_path / "LOCK") == 0o600
    assert mode(tmp_path / "directory") == 0o700


def test_a_file_that_exists_is_never_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        DISK.create(str(path))
    DISK.make_directory(str(path))
    assert path.read_bytes() == b"mine"


def test_links_are_not_followed(tmp_path: Path) -> None:
    victim, link, broken = (tmp_path / name for name in ("victim", "link", "broken"))
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    broken.symlink_to(tmp_path / "nothing")
    attempts: list[Callable[[str], object]] = [
        DISK.create,
        DISK.open,
        lambda path: DISK.open(path, writable=True),
        DISK.lock,
    ]
    for attempt in attempts:
        for path in (link, broken):
            with pytest.raises(OSError, match=path.name):
                attempt(str(path))
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists(), "a file was made at the end of a link"


def test_no_descriptor_is_inherited_by_another_program(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    files = [DISK.create(path), DISK.open(path), DISK.open(path, writable=True)]
    for file in files:
        flags = fcntl.fcntl(file.descriptor, fcntl.F_GETFD)
        assert flags & fcntl.FD_CLOEXEC, "another program gets the store's files"


def test_a_file_opened_for_reading_can_not_be_written(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    DISK.create(path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        DISK.write(DISK.open(path), b"data", 0)
    DISK.write(DISK.open(path, writable=True), b"data", 0)
    with pytest.raises(FileNotFoundError):
        DISK.open(str(tmp_path / "other"), writable=True)


def test_bytes_are_written_and_read_where_they_should(tmp_path: Path) -> None:
    file = DISK.create(str(tmp_path / "file"))
    DISK.write(file, b"0123456789", 0)
    DISK.write(file, b"abc", 4)
    assert DISK.size(file) == 10
    assert DISK.read(file, 5, 3) == b"3abc7"
    assert DISK.read(file, 100, 7) == b"789", "fewer bytes only at the end of the file"
    assert DISK.read(file, 1, 10) == b""
    DISK.truncate(file, 5)
    assert (tmp_path / "file").read_bytes() == b"0123a"


class Halting(FaultyFileSystem):
    """A file system whose calls read or write three bytes at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_read, whole_write = self.pread, self.pwrite
        self.pread = lambda at, length, offset: whole_read(at, min(length, 3), offset)
        self.pwrite = lambda at, data, offset: whole_write(at, data[:3], offset)


def test_a_system_that_takes_three_bytes_at_a_time_gets_them_all(
    tmp_path: Path,
) -> None:
    filesystem = Halting()
    file = filesystem.create(str(tmp_path / "file"))
    filesystem.write(file, b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0" + b"0123456789"
    assert filesystem.read(file, 9, 2) == b"012345678", "a short read was taken as all"
    assert filesystem.read(file, 50, 2) == b"0123456789"
    assert filesystem.log("write") == ["write file"] * 4


def test_a_map_shows_what_is_written_later(tmp_path: Path) -> None:
    file = DISK.create(str(tmp_path / "file"))
    DISK.write(file, b"0123456789", 0)
    shown = DISK.map(file, 6)
    assert (len(shown), shown[2:4]) == (6, b"23")
    DISK.write(file, b"ab", 2)
    assert shown[2:4] == b"ab"


def test_a_map_outlives_the_handle_and_the_name(tmp_path: Path) -> None:
    file = DISK.create(str(tmp_path / "file"))
    DISK.write(file, b"0123456789", 0)
    shown = DISK.map(file, 10)
    DISK.remove(str(tmp_path / "file"))
    del file
    gc.collect()
    assert shown[:] == b"0123456789"


def test_a_rename_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    reader = DISK.open(str(old))
    DISK.rename(str(new), str(old))
    assert old.read_bytes() == b"new"
    assert not new.exists()
    assert DISK.read(reader, 9, 0) == b"old", "who had it open lost what they read"


def test_names_are_sorted_and_broken_links_exist(tmp_path: Path) -> None:
    for name in ("b", "a", "ä", "B"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    assert DISK.names(str(tmp_path)) == ["B", "a", "b", "link", "ä"]
    assert DISK.exists(str(tmp_path / "link"))
    assert not DISK.exists(str(tmp_path / "nowhere"))


def test_a_directory_is_made_durable_in_its_parent_whoever_made_it(
    tmp_path: Path,
) -> None:
    filesystem = FaultyFileSystem()
    for spelled in ("directory", "directory", "directory/"):
        filesystem.calls.clear()
        filesystem.make_directory(f"{tmp_path}/{spelled}")
        (tmp_path / "directory" / "kept").touch()
        log = filesystem.log("sync_directory")
        assert log == [f"sync_directory {tmp_path.name}"], spelled


def test_a_directory_can_be_made_where_we_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DISK.make_directory("here")
    assert (tmp_path / "here").is_dir()


def test_only_a_directory_is_synced_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    DISK.sync_directory(str(tmp_path))
    with pytest.raises(NotADirectoryError):
        DISK.sync_directory(str(tmp_path / "file"))


def test_random_bytes_are_as_many_as_asked_and_differ() -> None:
    given = {DISK.random_bytes(8) for _ in range(100)}
    assert {len(each) for each in given} == {8}
    assert len(given) == 100


def test_a_function_is_called_in_every_forked_child() -> None:
    called: list[int] = []
    DISK.after_fork(lambda: called.append(os.getpid()))
    answer = in_a_fork(lambda: str(called == [os.getpid()]))
    assert answer == "True", "it was not called in the child"
    assert called == [], "it was called in the parent"


def test_the_lock_is_one_handles_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = DISK.lock(path)
    for _ in range(2):
        with pytest.raises(kvstore.LockedError, match="this process"):
            DISK.lock(path)
    lock.release()
    again = DISK.lock(path)
    lock.release()
    with pytest.raises(kvstore.LockedError):
        DISK.lock(path)
    again.release()


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = DISK.lock(path)
    del lock
    gc.collect()
    DISK.lock(path).release()


def test_the_lock_file_stays_and_says_whom_to_look_for(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    path.write_bytes(b"4194304999\nand more, from another time\n")
    lock = DISK.lock(str(path))
    assert path.read_bytes() == b"%d\n" % os.getpid()
    identity = path.stat().st_ino
    lock.release()
    assert path.stat().st_ino == identity, "the lock file was removed or made anew"


def test_two_locks_in_two_places_are_two(tmp_path: Path) -> None:
    one, two = (DISK.lock(str(tmp_path / name)) for name in ("one", "two"))
    one.release()
    with pytest.raises(kvstore.LockedError):
        DISK.lock(str(tmp_path / "two"))
    two.release()


HOLD_THE_LOCK = """
import sys
from kvstore.filesystem import DISK
lock = DISK.lock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_another_process_is_respected_until_it_dies(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    with Process(HOLD_THE_LOCK, path) as holder:
        assert holder.line() == "held"
        number = holder.popen.pid
        with pytest.raises(kvstore.LockedError, match=f"process {number} "):
            DISK.lock(path)
        assert Path(path).read_bytes() == b"%d\n" % number
        holder.kill()
    DISK.lock(path).release()


def test_a_forked_child_does_not_let_go_of_its_parents_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = DISK.lock(path)

    def try_to_take_it() -> str:
        lock.release()
        with suppress(kvstore.LockedError):
            DISK.lock(path)
            return "taken"
        return "refused"

    assert in_a_fork(try_to_take_it) == "refused", "a child took its parent's lock"
    with pytest.raises(kvstore.LockedError):
        DISK.lock(path)
    lock.release()


def test_a_released_lock_is_free_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = DISK.lock(path)
    wait, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        os.read(wait, 1)  # until the parent closes its end
        os._exit(0)
    try:
        lock.release()
        DISK.lock(path).release()
    except kvstore.LockedError as error:
        pytest.fail(f"a child that does nothing holds the released lock: {error}")
    finally:
        os.close(go)
        os.close(wait)
        os.waitpid(child, 0)


def test_a_file_that_was_cut_is_mapped_as_far_as_it_goes(tmp_path: Path) -> None:
    """A reader may map a segment at the moment when its writer takes an append back."""
    file = DISK.create(str(tmp_path / "file"))
    DISK.write(file, b"0123456789", 0)
    assert DISK.map(file, 20)[:] == b"0123456789", "the reader met a bare ValueError"
    assert DISK.map(file, 4)[:] == b"0123"
