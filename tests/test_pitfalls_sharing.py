"""Pitfalls 37 to 40: ways in which two writers met, or a file was not the store's own."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import FaultyFileSystem
from support import (
    PATIENCE,
    Process,
    Worker,
    copy_of,
    files,
    in_a_fork,
    pause,
    read,
    refusals,
    segments,
)

import kvstore

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)

TRY_TO_OPEN = """
import sys, kvstore
try:
    kvstore.open(sys.argv[1]).close()
except kvstore.LockedError as error:
    print("locked:", error)
else:
    print("opened")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


@pytest.fixture
def db(path: Path) -> Iterator[kvstore.Store]:
    """Return an open store with a key."""
    with kvstore.open(path) as opened:
        opened[b"ada"] = b"1815"
        yield opened


def tried_elsewhere(path: Path) -> str:
    """Return what another process hears that tries to open a store for writing."""
    with Process(TRY_TO_OPEN, path) as other:
        return other.line()


@pytest.mark.parametrize("whose", ["our own", "our parent's", "the first", "nobody's"])
def test_pitfall_37_a_number_in_the_lock_file_locks_nothing(
    path: Path, whose: str
) -> None:
    numbers = {"our own": os.getpid(), "our parent's": os.getppid(), "the first": 1}
    number = numbers.get(whose, 10**9)
    kvstore.open(path).close()
    (path / "LOCK").write_text(f"{number}\n")
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
        assert (path / "LOCK").read_text() == f"{os.getpid()}\n", (
            "the number tells a person whom to look for"
        )
    assert tried_elsewhere(path) == "opened"


def test_pitfall_37_the_lock_file_is_made_once_and_never_removed(path: Path) -> None:
    kvstore.open(path).close()
    made = (path / "LOCK").stat().st_ino
    for flag in ("c", "w", "n", "r"):
        kvstore.open(path, flag).close()
        assert (path / "LOCK").stat().st_ino == made, f"flag {flag}"


def test_pitfall_37_a_process_that_was_killed_holds_no_lock(path: Path) -> None:
    code = "import sys, kvstore; db = kvstore.open(sys.argv[1]); print(1, flush=True)"
    with Process(f"{code}; sys.stdin.read()", path) as other:
        assert other.line() == "1"
        assert f"process {other.popen.pid}" in tried_elsewhere(path)
        other.kill()
    assert tried_elsewhere(path) == "opened"


def test_pitfall_38_a_second_open_in_one_process_is_refused(
    db: kvstore.Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for way in (path, str(path), "store", "./store/../store", tmp_path / "link"):
        for flag in ("c", "w", "n"):
            with pytest.raises(kvstore.LockedError, match="this process"):
                kvstore.open(way, flag)
    db[b"alan"] = b"1912"
    assert dict(db) == read(path) == {b"ada": b"1815", b"alan": b"1912"}


def test_pitfall_38_a_second_open_is_refused_where_flock_lets_a_process_in_twice(
    db: kvstore.Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where flock stands on the locks of POSIX, on NFS for one."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(kvstore.LockedError, match="this process"):
        kvstore.open(path)
    db.close()
    kvstore.open(path).close()


def test_pitfall_38_no_other_handle_that_is_closed_takes_the_lock_along(
    db: kvstore.Store, path: Path
) -> None:
    with kvstore.open(path, "r") as beside:
        assert dict(beside) == dict(db)
    with pytest.raises(kvstore.LockedError):
        kvstore.open(path)
    for each in path.iterdir():
        each.read_bytes()
    assert tried_elsewhere(path).startswith("locked: "), "the lock is lost"
    db.close()
    assert tried_elsewhere(path) == "opened", "close lets go of it"


def test_pitfall_38_two_stores_in_one_process_do_not_lock_each_other(
    db: kvstore.Store, tmp_path: Path
) -> None:
    with kvstore.open(tmp_path / "other") as other:
        other[b"alan"] = b"1912"
    assert dict(db) == {b"ada": b"1815"}
    assert tried_elsewhere(tmp_path / "other") == "opened"


def test_pitfall_39_a_forked_child_reads_and_never_writes(
    db: kvstore.Store, path: Path
) -> None:
    before = files(path)

    def child() -> str:
        assert dict(db) == {b"ada": b"1815"}
        assert db[b"ada"] == b"1815"
        for name, attempt in refusals(db).items():
            with pytest.raises(kvstore.ReadOnlyError) as caught:
                attempt()
            assert "forked" in str(caught.value), f"{name}: the reason is named"
        with pytest.raises(kvstore.LockedError, match=f"process {os.getppid()}"):
            kvstore.open(path)
        db.close()
        return "right"

    assert in_a_fork(child) == "right"
    assert files(path) == before, "a child wrote into its parent's files"
    db[b"alan"] = b"1912"
    assert dict(db) == {b"ada": b"1815", b"alan": b"1912"}, "the parent goes on"
    assert tried_elsewhere(path).startswith("locked: "), "the child let go of the lock"


def test_pitfall_39_a_store_opened_after_the_fork_is_the_childs_own(
    db: kvstore.Store, path: Path, tmp_path: Path
) -> None:
    def child() -> str:
        with kvstore.open(tmp_path / "own") as own:
            own[b"grace"] = b"1906"
        return "right"

    assert in_a_fork(child) == "right"
    assert read(tmp_path / "own") == {b"grace": b"1906"}
    assert dict(db) == read(path)


class Children:
    """Children that live until the test lets them go."""

    def __init__(self) -> None:
        self._wait, self._go = os.pipe()
        self._pids: list[int] = []

    def fork(self) -> None:
        """Fork a child that holds all that this process holds, and does nothing."""
        pid = os.fork()
        if pid == 0:
            os.close(self._go)
            os.read(self._wait, 1)
            os._exit(0)
        self._pids.append(pid)

    def end(self) -> None:
        """Let all of them go, and wait until they are gone."""
        os.close(self._go)
        for pid in self._pids:
            os.waitpid(pid, 0)
        os.close(self._wait)


def test_pitfall_39_a_lock_ends_with_close_although_a_child_lives_on(
    db: kvstore.Store, path: Path
) -> None:
    children = Children()
    children.fork()
    try:
        db.close()
        assert tried_elsewhere(path) == "opened"
        with kvstore.open(path) as again:
            assert dict(again) == {b"ada": b"1815"}
            assert tried_elsewhere(path).startswith("locked: ")
    finally:
        children.end()


def test_pitfall_39_a_lock_ends_with_its_process_although_a_child_lives_on(
    path: Path,
) -> None:
    code = (
        "import os, sys, kvstore\n"
        "db = kvstore.open(sys.argv[1])\n"
        "if os.fork() == 0:\n"
        "    print('child', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    with Process(code, path) as other:
        assert other.line() == "child"
        os.kill(other.popen.pid, 9)
        other.popen.wait()
        assert tried_elsewhere(path) == "opened", "the child holds its parent's lock"
        other.kill()  # closes what the child waits for


def test_pitfall_39_a_child_does_not_wait_for_threads_that_it_does_not_have(
    path: Path,
) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        stop = pause(filesystem, "write", ".segment")
        writer = Worker(lambda: db.__setitem__(b"alan", b"1912"))
        assert stop.reached.wait(PATIENCE)
        answer = in_a_fork(lambda: repr(dict(db)))  # the lock for writes is held
        stop.go_on.set()
        writer.done()
    assert answer == repr({b"ada": b"1815"})


def test_pitfall_39_a_child_does_not_wait_for_readers_that_it_does_not_have(
    path: Path,
) -> None:
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
    with kvstore.open(path, "r") as beside, beside._writing:
        answer = in_a_fork(lambda: repr(dict(beside)))
    assert answer == repr({b"ada": b"1815"})


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no list of open files")
def test_pitfall_39_no_open_file_is_handed_to_another_program(
    db: kvstore.Store, path: Path
) -> None:
    assert db.verify().ok
    code = (
        "import os\n"
        "for number in os.listdir('/dev/fd'):\n"
        "    try:\n"
        "        print(os.fstat(int(number)).st_ino)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        close_fds=False,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    handed_on = set(map(int, done.stdout.split()))
    ours = {each.stat().st_ino: each.name for each in path.iterdir()}
    assert handed_on, "the program was meant to list its files"
    assert [ours[each] for each in handed_on & ours.keys()] == []


def test_pitfall_40_what_the_store_makes_is_for_this_user_alone(
    path: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        db = kvstore.open(path, segment_bytes=50)
        for number in range(5):
            db[b"%d" % (number % 3)] = b"x" * 50
        db.compact()
        db[b"torn"] = b""
        torn = copy_of(path, "torn")
        last = segments(torn)[-1]
        last.write_bytes(last.read_bytes() + b"\x01")
        kept = set(torn.iterdir())
        kvstore.open(torn).close()
        db.close()
        kvstore.salvage(path, tmp_path / "saved")
    finally:
        os.umask(before)
    new = [each for each in torn.iterdir() if each not in kept]
    assert any(".cut-" in each.name for each in new)
    for directory in (path, tmp_path / "saved"):
        assert mode(directory) == 0o700, "the directory is for its owner alone"
        new += directory.iterdir()
    assert {each.name for each in new} >= {"LOCK", "MANIFEST", "MARK"}
    assert {each.name: mode(each) for each in new if mode(each) != 0o600} == {}


def mode(path: Path) -> int:
    """Return who may do what with a file."""
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize(
    "name", ["LOCK", "MARK", "MANIFEST", "00000001.segment", "00000002.segment"]
)
@pytest.mark.parametrize("flag", ["c", "n"])
def test_pitfall_40_nothing_is_written_through_a_link(
    path: Path, tmp_path: Path, name: str, flag: kvstore.store.Flag
) -> None:
    kvstore.open(path).close()
    precious = tmp_path / "precious"
    if (path / name).exists():
        (path / name).rename(precious)
    if name in ("LOCK", "00000002.segment"):
        precious.write_bytes(b"dear ada")
    (path / name).symlink_to(precious)
    before = precious.read_bytes()
    try:
        with kvstore.open(path, flag, segment_bytes=1) as db:
            db[b"ada"] = b"1815"
            db[b"alan"] = b"1912"
    except (OSError, kvstore.KVStoreError):
        pass  # refusing is right, and so is replacing the link by a file
    assert precious.read_bytes() == before


def test_pitfall_40_a_file_that_is_in_the_way_is_not_written_over(path: Path) -> None:
    with kvstore.open(path, segment_bytes=50) as db:
        db[b"ada"] = b"x" * 50
        planted = path / "00000002.segment"
        planted.write_bytes(b"dear ada")
        with pytest.raises(FileExistsError):
            db[b"alan"] = b"1912"
        assert planted.read_bytes() == b"dear ada"
        db[b"alan"] = b"1912"
        assert planted.read_bytes() == b"dear ada"
    assert read(path) == {b"ada": b"x" * 50, b"alan": b"1912"}


def test_pitfall_40_a_manifest_aside_is_made_anew_and_not_written_into(
    path: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"dear ada")
    with kvstore.open(path, segment_bytes=50) as db:
        (path / "MANIFEST.new").symlink_to(precious)
        db.update({b"ada": b"x" * 50, b"alan": b"1912"})
        assert len(segments(path)) == 2
    assert precious.read_bytes() == b"dear ada"
    assert mode(path / "MANIFEST") == 0o600
    assert not (path / "MANIFEST").is_symlink()
