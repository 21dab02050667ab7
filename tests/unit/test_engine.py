"""What every store promises: a mapping from bytes to bytes, batches, steady iterations."""

from __future__ import annotations

import copy
import shelve
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

import kvstore
from tests.helpers import all_raise, change, files, read, segments


def test_a_missing_key_is_a_key_error_that_names_it(
    db: kvstore.Store, path: Path
) -> None:
    before = files(path)
    attempts: list[Callable[[bytes], object]] = [db.__getitem__, db.__delitem__]
    for attempt in attempts:
        with pytest.raises(KeyError) as caught:
            attempt(b"no")
        assert caught.value.args == (b"no",), "the error holds the key"
    assert files(path) == before, "a delete of no key writes nothing"
    assert db.get(b"no") is None
    assert db.get(b"no", b"else") == b"else"
    assert b"no" not in db


@pytest.mark.parametrize("word", ["text", "", 5, None, 1.5])
def test_anything_but_bytes_is_a_type_error_with_advice(
    db: kvstore.Store, path: Path, word: Any
) -> None:
    before = files(path)
    advice = "encode" if isinstance(word, str) else "use bytes"
    with db.batch() as batch:
        attempts: dict[str, Callable[[], object]] = {
            "get": lambda: db[word],
            "get with a default": lambda: db.get(word),
            "put of a key": lambda: db.__setitem__(word, b"value"),
            "put of a value": lambda: db.__setitem__(b"key", word),
            "delete": lambda: db.__delitem__(word),
            "in": lambda: word in db,
            "pop": lambda: db.pop(word, None),
            "put of a key in a batch": lambda: batch.__setitem__(word, b"value"),
            "put of a value in a batch": lambda: batch.__setitem__(b"key", word),
            "delete in a batch": lambda: batch.__delitem__(word),
        }
        all_raise(attempts, TypeError, type(word).__name__, advice)
    assert files(path) == before, "nothing was written"


def test_pop_popitem_and_setdefault_are_those_of_a_mapping(
    db: kvstore.Store, path: Path
) -> None:
    assert db.popitem() == (b"grace", b"1906"), "what was put last goes first"
    assert db.setdefault(b"ada", b"else") == b"1815"
    assert db.setdefault(b"bob", b"1") == b"1"
    assert [db.pop(b"bob"), db.pop(b"bob", b"none")] == [b"1", b"none"]
    with pytest.raises(KeyError, match="bob"):
        db.pop(b"bob")
    assert dict(db) == read(path) == {b"ada": b"1815", b"alan": b"1912"}
    assert {db.popitem() for _ in range(2)} == {(b"ada", b"1815"), (b"alan", b"1912")}
    with pytest.raises(KeyError, match="empty"):
        db.popitem()


def test_the_views_are_those_of_a_mapping(db: kvstore.Store) -> None:
    expected = {b"ada": b"1815", b"alan": b"1912", b"grace": b"1906"}
    assert list(db) == list(db.keys()) == list(expected)
    assert list(db.values()) == list(expected.values())
    assert list(db.items()) == list(expected.items())
    assert len(db.keys()) == len(db.values()) == len(db.items()) == 3
    assert b"ada" in db.keys()  # noqa: SIM118 - the view is what is looked at
    assert b"1912" in db.values()
    assert b"1913" not in db.values()
    assert (b"ada", b"1815") in db.items()
    assert (b"ada", b"1912") not in db.items()
    assert db.keys() & {b"ada", b"bob"} == {b"ada"}


def open_shelf(path: Path, flag: kvstore.Flag) -> shelve.Shelf[object]:
    """Return a shelf of objects on top of a store."""
    return shelve.Shelf(cast("Any", kvstore.open(path, flag)))


def test_shelve_works_on_top(path: Path) -> None:
    with open_shelf(path, "c") as shelf:
        shelf["ada"] = {"born": 1815, "notes": ["a", "b"]}
        shelf["alan"] = 1912
        del shelf["alan"]
        shelf.sync()
    with open_shelf(path, "r") as shelf:
        assert dict(shelf) == {"ada": {"born": 1815, "notes": ["a", "b"]}}


def test_repr_tells_path_keys_and_bytes(path: Path) -> None:
    with kvstore.open(path, segment_bytes=1000) as db:
        db.update({b"%04d" % number: b"" for number in range(1234)})
        held = sum(segment.stat().st_size for segment in segments(path))
        assert repr(db) == f"<kvstore.Store {str(path)!r}: 1,234 keys, {held:,} bytes>"
    assert repr(db) == f"<kvstore.Store {str(path)!r}: closed>"


def test_a_batch_is_there_when_its_block_ends(db: kvstore.Store, path: Path) -> None:
    before = dict(db)
    with db.batch() as batch:
        batch[b"bob"] = b"first"
        batch[b"bob"] = b"last"
        batch[b"ada"] = b"first"
        del batch[b"ada"]
        batch[b"new"] = b""
        del batch[b"new"]
        del batch[b"alan"]
        batch[b"alan"] = b"back"
        assert len(batch) == 4, "a batch counts the keys that it changes"
        assert dict(db) == read(path) == before, "nothing is done before the end"
    after = {b"bob": b"last", b"alan": b"back", b"grace": b"1906"}
    assert dict(db) == after, "the last change of a key counts"
    assert read(path) == after, "and after reopening"


def test_a_batch_whose_block_raises_does_nothing(db: kvstore.Store, path: Path) -> None:
    before, held = dict(db), files(path)
    with pytest.raises(KeyError, match="no such key"):
        change(db, {b"bob": b"1", b"ada": None, b"no such key": None})
    assert dict(db) == before, "all or nothing"
    assert files(path) == held, "nothing was written"


def test_a_batch_deletes_what_is_still_there_and_nothing_else(
    db: kvstore.Store, path: Path
) -> None:
    with db.batch() as batch:
        with pytest.raises(KeyError):
            del batch[b"no"]
        del batch[b"ada"]
        with pytest.raises(KeyError):
            del batch[b"ada"]
        batch[b"bob"] = b"1"
        del db[b"ada"]
    assert read(path) == dict(db) == {b"alan": b"1912", b"grace": b"1906", b"bob": b"1"}


def test_a_batch_takes_changes_only_inside_its_block(db: kvstore.Store) -> None:
    batch = db.batch()
    with batch:
        batch[b"bob"] = b"1"
    for attempt in (
        lambda: batch.__setitem__(b"late", b"1"),
        lambda: batch.__delitem__(b"bob"),
        lambda: len(batch),
    ):
        with pytest.raises(kvstore.ClosedError, match="inside its with block"):
            attempt()
    assert b"late" not in db


def iterate(db: kvstore.Store, view: str) -> Iterator[object]:
    """Begin an iteration over a store, in one of the four ways."""
    views: dict[str, Callable[[], Iterable[object]]] = {
        "keys": db.keys,
        "values": db.values,
        "items": db.items,
        "iter": lambda: db,
    }
    return iter(views[view]())


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("view", ["keys", "values", "items", "iter"])
def test_an_iterator_sees_the_store_as_it_was_when_it_began(
    path: Path, view: str, compacted: bool
) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"old %d" % number for number in range(20)})
        expected = list(iterate(db, view))
        not_started = iterate(db, view)
        half_way = iterate(db, view)
        begun = [next(half_way) for _ in range(7)]
        for number in range(0, 20, 2):
            db[b"%d" % number] = b"new"
        for number in range(1, 20, 4):
            del db[b"%d" % number]
        db[b"later"] = b"new"
        if compacted:
            db.compact()
        try:
            seen = begun + list(half_way)
        except RuntimeError as error:
            pytest.fail(f"writes disturb an iteration: {error}")
        assert seen == expected, "writes leave an iteration alone"
        assert list(not_started) == expected, "an iteration begins with iter()"
        assert list(iterate(db, view)) != expected, (
            "a new one sees the store as it is now"
        )
        assert len(list(iterate(db, view))) == 16


def test_a_value_can_be_searched_while_keys_are_deleted(db: kvstore.Store) -> None:
    class Deleting(bytes):
        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            db.clear()
            return bytes.__eq__(self, other)

    assert Deleting(b"1906") in db.values(), "the search sees the store as it was"
    assert len(db) == 0


def test_a_batch_is_entered_once_at_a_time(db: kvstore.Store) -> None:
    with db.batch() as batch:
        batch[b"outer"] = b"1"
        with pytest.raises(RuntimeError, match="open already"):
            batch.__enter__()
        assert len(batch) == 1, "the outer changes are still there"
    assert db[b"outer"] == b"1"


def test_a_store_can_not_be_copied(db: kvstore.Store) -> None:
    with pytest.raises(TypeError, match="open its path"):
        copy.copy(db)


def test_a_missing_key_raises_nothing_inside(db: kvstore.Store) -> None:
    """An exception that is caught costs more than the look-up."""
    raised: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "exception":
            raised.append(frame.f_code.co_qualname)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = db.get(b"no"), db.get(b"no", b"else"), b"no" in db, db.pop(b"no", None)
    finally:
        sys.settrace(before)
    assert found == (None, b"else", False, None)
    assert raised == []


class Short(bytes):
    """Bytes that are wrong about their length."""

    def __len__(self) -> int:
        return 3


def test_no_door_lets_in_what_is_no_bytes(db: kvstore.Store, path: Path) -> None:
    before = files(path)
    numbers = memoryview(array("I", [1, 2, 3]))  # twelve bytes, and a length of three
    wrong: list[Any] = [0, "", [], bytearray(b"x"), numbers]
    for value in wrong:
        with pytest.raises(TypeError):
            db.change({b"fine": b"", b"key": value})
    with pytest.raises(TypeError):
        db.change({cast("bytes", "key"): b""})
    with pytest.raises(kvstore.LimitError):
        db.change({b"k" * 70_000: b""})
    assert files(path) == before, "nothing was written"
    with suppress(TypeError):
        db[Short(b"a key")] = Short(b"longer than it says")
    with suppress(TypeError):
        change(db, {b"one more": Short(b"longer than it says")})
    expected = dict(db)
    assert all(type(each) is bytes for pair in expected.items() for each in pair)
    assert read(path) == expected
