"""What `kvstore.open` takes and refuses."""

from __future__ import annotations

import gc
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.segment import SEGMENT_HEADER_BYTES
from tests.helpers import GOLDEN, Contents, even_store, files, flip, read, segments


@pytest.mark.parametrize("flag", ["r", "w"])
def test_flags_r_and_w_make_nothing(path: Path, flag: kvstore.Flag) -> None:
    for there in (False, True):
        with pytest.raises(kvstore.StoreNotFoundError) as caught:
            kvstore.open(path, flag)
        assert str(path) in str(caught.value), "the error says where there is no store"
        assert 'flag="c"' in str(caught.value), "the error says what would make one"
        assert path.exists() == there, "nothing is made"
        path.mkdir(exist_ok=True)
    assert files(path) == {}, "an empty directory stays empty"


@pytest.mark.parametrize("name", ["", "MANIFEST", "00000001.segment", "MARK"])
def test_flag_n_begins_anew_also_where_a_store_is_damaged(
    path: Path, name: str
) -> None:
    even_store(path)
    if name:
        flip(path / name, 20, 3)
    with kvstore.open(path, "n") as db:
        assert dict(db) == {}, "n begins with nothing"
        db[b"new"] = b"1"
    with kvstore.open(path, "c") as db:
        assert dict(db) == {b"new": b"1"}, "c keeps what is there"
    assert len(segments(path)) == 1, "the old segments are gone"


RIGHT = {
    "flag": r'"r" reads.*"w".*"c".*"n"',
    "sync": r'"os", "always" or a number of seconds',
    "segment_bytes": r"whole number of bytes from 1 to 1,073",
}
WRONG: dict[str, list[Any]] = {
    "flag": ["x", "", "rw", "R", None],
    "sync": [
        *("never", "", b"os", None, True, False),
        *(0, -1, 0.0, 1e12, math.nan, math.inf),
    ],
    "segment_bytes": [0, -1, (1 << 30) + 1, 1.5, "big", None],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_told_the_right_ones(path: Path, name: str) -> None:
    for value in WRONG[name]:
        wrong: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=RIGHT[name]):
            pytest.fail(f"{wrong} is taken: {kvstore.open(path, **wrong)}")
    assert not path.exists(), "nothing is made"


class Spelled(os.PathLike[Any]):
    """A path of some kind of its own."""

    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self) -> str | bytes:
        """Return the path."""
        return self.path


def test_a_path_can_be_anything_that_the_system_takes(tmp_path: Path) -> None:
    name = f"{tmp_path}/nach\udce4ste"  # a name that is no UTF-8
    with kvstore.open(name) as db:
        db[b"ada"] = b"1815"
    raw = os.fsencode(name)
    for path in (raw, Path(name), Spelled(name), Spelled(raw)):
        try:
            found = read_any(path)
        except (TypeError, kvstore.StoreNotFoundError) as error:
            pytest.fail(f"{path!r} leads elsewhere: {error!r}")
        assert found == {b"ada": b"1815"}
        kvstore.salvage(path, raw + b"-saved")
        assert read_any(raw + b"-saved") == {b"ada": b"1815"}
        shutil.rmtree(raw + b"-saved")
    assert os.listdir(os.fsencode(tmp_path)) == [b"nach\xe4ste"], "nothing else is made"
    for wrong in ("", b"", "no\0name"):
        with pytest.raises((FileNotFoundError, ValueError)):
            kvstore.open(wrong)


def read_any(path: Any) -> Contents:
    """Return what the store at a path of any kind holds."""
    with kvstore.open(path, "r") as db:
        return dict(db)


# What the first version has written: a store that was closed, one that was not, and the
# smallest that has a file of each kind.
OLD: dict[str, Contents] = {
    "closed": {b"ada": b"", b"dan": b"DAN", b"eve": b"EVE", b"": bytes(5)},
    "crashed": {b"1": b"7" * 20, b"2": b"5" * 20, b"a": b"in a batch"}
    | {b"synced": b"1", b"not synced": b"2"},
    "": {b"edsger": b"1930", b"grace": b"1906", b"": b""},
}


@pytest.mark.parametrize("name", OLD)
def test_a_store_of_old_opens_and_goes_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    path.mkdir()
    for each in (GOLDEN / name).iterdir():
        if each.is_file():
            (path / each.name).write_bytes(each.read_bytes())
    assert read(path) == OLD[name]
    with kvstore.open(path) as db:
        assert dict(db) == OLD[name]
        assert (db.torn_tail is not None) == (name == "crashed")
        assert db.verify().ok
        db[b"new"] = b"1"
        db.compact()
    assert read(path) == OLD[name] | {b"new": b"1"}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="nowhere to count open files")
def test_openings_that_fail_leave_nothing_open(path: Path) -> None:
    """Not even until the collector comes, which it may never do."""
    with kvstore.open(path, segment_bytes=1) as db:
        db.update({b"%d" % number: b"x" for number in range(3)})
    flip(segments(path)[1], SEGMENT_HEADER_BYTES + 16, 0)
    locked = path.with_name("locked")
    with kvstore.open(locked):
        before = len(os.listdir("/dev/fd"))
        for flag in ("r", "w", "c"):
            with pytest.raises(kvstore.CorruptionError):
                kvstore.open(path, flag)
        with pytest.raises(kvstore.LockedError):
            kvstore.open(locked)
        with pytest.raises(kvstore.StoreNotFoundError):
            kvstore.open(path.parent / "none", "r")
        assert len(os.listdir("/dev/fd")) == before, "descriptors are left open"


def test_a_store_that_nobody_closed_is_told_of(path: Path) -> None:
    db = kvstore.open(path)
    with pytest.warns(ResourceWarning, match="nobody closed <kvstore.Store .*close()"):
        del db
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        db = kvstore.open(path)
        db.close()
        del db
        gc.collect()
