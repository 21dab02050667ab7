"""Pitfalls 37 to 40: ways in which two writers met, or a file was not the store's own."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from pathlib import Path

import pytest

import kvstore
from tests.disks import NO_SYNC, PATIENCE, FaultyFileSystem
from tests.helpers import (
    Process,
    Worker,
    all_raise,
    copy_of,
    files,
    in_a_fork,
    read,
    refusals,
    segments,
)

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


def tried_elsewhere(path: Path) -> str:
    """Return what another process hears that tries to open a store for writing."""
    with Process(TRY_TO_OPEN, path) as other:
        return other.line()


def test_pitfall_37_a_number_in_a_file_locks_nothing(path: Path) -> None:
    kvstore.open(path).close()
    made = (path / "LOCK").stat().st_ino
    for number in (os.getpid(), os.getppid(), 1, 10**9):
        (path / "LOCK").write_text(f"{number}\n")
        with kvstore.open(path):
            assert (path / "LOCK").read_text() == f"{os.getpid()}\n", (
                "the number tells a person whom to look for"
            )
    assert tried_elsewhere(path) == "opened"
    for flag in ("w", "n", "r"):
        kvstore.open(path, flag).close()
    assert (path / "LOCK").stat().st_ino == made, "the file is made once, and stays"


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
    db[b"bob"] = b"1"
    assert dict(db) == read(path)


def test_pitfall_38_a_second_open_is_refused_where_flock_lets_a_process_in_twice(
    db: kvstore.Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where flock stands on the locks of POSIX, on NFS for one."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(kvstore.LockedError, match="this process"):
        kvstore.open(path)
    db.close()
    kvstore.open(path).close()


def test_pitfall_38_no_other_handle_takes_the_lock_along(
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


def test_pitfall_39_a_forked_child_reads_and_never_writes(
    db: kvstore.Store, path: Path
) -> None:
    before, held, parent = files(path), dict(db), os.getpid()

    def child() -> str:
        # in a namespace of its own a child may have its parent's number
        pytest.MonkeyPatch().setattr(os, "getpid", lambda: parent)
        assert dict(db) == held
        all_raise(refusals(db), kvstore.ReadOnlyError, "forked")
        with pytest.raises(kvstore.LockedError, match=f"process {os.getppid()}"):
            kvstore.open(path)
        db.close()
        return "right"

    assert in_a_fork(child) == "right"
    assert files(path) == before, "a child wrote into its parent's files"
    db[b"bob"] = b"1"
    assert dict(db) == read(path) == held | {b"bob": b"1"}, "the parent goes on"
    assert tried_elsewhere(path).startswith("locked: "), "the child let go of the lock"


def test_pitfall_39_a_child_takes_no_compaction_for_damage(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100, filesystem=NO_SYNC) as db:
        db.update({b"%d" % number: b"x" * 40 for number in range(9)})
        ready, go = os.pipe(), os.pipe()

        def child() -> str:
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            try:
                return str(len({key: db[key] for key in db}))
            except (OSError, kvstore.KVStoreError) as error:
                return type(error).__name__

        def parent() -> None:
            os.read(ready[0], 1)
            db.update({b"%d" % number: b"" for number in range(0, 9, 2)})
            db.compact()
            os.write(go[1], b"1")

        moving = Worker(parent)
        assert in_a_fork(child) in ("9", "ReadOnlyError")
        moving.done()


def a_child() -> int:
    """Fork a child that holds all that this process holds, and does nothing."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))  # if nobody ends it
        signal.pause()
    return child


def test_pitfall_39_a_lock_ends_with_close_for_children(
    db: kvstore.Store, path: Path
) -> None:
    child = a_child()
    try:
        db.close()
        assert tried_elsewhere(path) == "opened"
        with kvstore.open(path) as again:
            assert len(again) == 3
            assert tried_elsewhere(path).startswith("locked: ")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_pitfall_39_a_lock_ends_with_its_process(path: Path) -> None:
    """Although a child lives on that has copies of its descriptors."""
    wait, ready = os.pipe()
    parent = os.fork()
    if parent == 0:
        with kvstore.open(path):
            os.write(ready, b"%d" % a_child())
            signal.pause()
    child = int(os.read(wait, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        assert tried_elsewhere(path) == "opened", "the child holds its parent's lock"
    finally:
        os.kill(child, signal.SIGKILL)


def test_pitfall_39_a_child_waits_for_no_thread_of_its_parent(path: Path) -> None:
    filesystem = FaultyFileSystem()
    with kvstore.open(path, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        stop = filesystem.pause("write", ".segment")
        writer = Worker(lambda: db.__setitem__(b"alan", b"1912"))
        assert stop.reached.wait(PATIENCE)
        answer = in_a_fork(lambda: repr(dict(db)))  # the lock for writes is held
        stop.go_on.set()
        writer.done()
    assert answer == repr({b"ada": b"1815"})


def test_pitfall_40_a_store_is_for_this_user_alone(path: Path, tmp_path: Path) -> None:
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


# That no link is followed, see `test_posix`.


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


def test_pitfall_40_a_manifest_aside_is_made_anew(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"dear ada")
    with kvstore.open(path, segment_bytes=50) as db:
        (path / "MANIFEST.new").symlink_to(precious)
        db.update({b"ada": b"x" * 50, b"alan": b"1912"})
        assert len(segments(path)) == 2
    assert precious.read_bytes() == b"dear ada"
    assert mode(path / "MANIFEST") == 0o600
    assert not (path / "MANIFEST").is_symlink()
