"""Every bit of every file of a small store, flipped one by one; every file, cut short.

Either everything is right, or there is an error that the store has a name for. Never a
wrong value, never a key that is missing in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import NO_SYNC, Contents, files, flip, small_store

import kvstore


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """Return a closed store with all there can be in one, and what it holds."""
    directory = tmp_path_factory.mktemp("bits") / "store"
    return directory, small_store(directory)


def bits(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield every bit of every file: the file, the byte, the bit."""
    for path in sorted(directory.iterdir()):
        for byte in range(path.stat().st_size):
            for bit in range(8):
                yield path, byte, bit


def outcome(directory: Path, flag: kvstore.store.Flag) -> Contents | None:
    """Open a store and read everything; None if it says that something is wrong."""
    try:
        with kvstore.open(directory, flag, filesystem=NO_SYNC) as db:
            keys = list(db)
            values = {key: db[key] for key in keys}
            assert dict(db) == values, "an iteration and gets differ"
            assert len(db) == len(keys)
            return values
    except kvstore.KVStoreError as error:
        assert str(directory) in str(error), "no place"  # noqa: PT017 - or no error
        return None


def restore(directory: Path, before: dict[str, bytes]) -> None:
    """Make the files of a directory what they were."""
    for path in directory.iterdir():
        if path.name not in before:
            path.unlink()
        elif path.read_bytes() != before[path.name]:
            path.write_bytes(before[path.name])


@pytest.mark.parametrize("flag", ["r", "c"])
def test_a_closed_store_is_right_or_says_that_it_is_damaged(
    closed: tuple[Path, Contents], flag: kvstore.store.Flag
) -> None:
    directory, expected = closed
    before = files(directory)
    assert sum(name.endswith(".segment") for name in before) > 3
    harmless: set[str] = set()
    for path, byte, bit in bits(directory):
        flip(path, byte, bit)
        found = outcome(directory, flag)
        assert found in (None, expected), f"bit {bit} of byte {byte} of {path.name}"
        if found is not None:
            harmless.add(path.name)
        restore(directory, before)
    assert harmless == {"LOCK", "MARK"}, "a flip in any other file is noticed"


def test_an_open_store_reads_what_is_right_or_says_that_it_is_damaged(
    closed: tuple[Path, Contents],
) -> None:
    directory, expected = closed
    before = files(directory)
    with kvstore.open(directory, filesystem=NO_SYNC) as db:
        for path, byte, bit in bits(directory):
            where = f"bit {bit} of byte {byte} of {path.name}"
            flip(path, byte, bit)
            assert set(db) == expected.keys(), where
            for key, value in expected.items():
                try:
                    assert db[key] == value, where
                except kvstore.CorruptionError as error:
                    assert error.path == str(path), where  # noqa: PT017
            found = db.verify()
            if path.name == "LOCK":
                assert found.ok, "its number decides nothing"
            else:
                assert [each.path for each in found.damage] == [str(path)], where
                (damage,) = found.damage
                assert damage.offset <= byte < damage.offset + damage.length, where
            flip(path, byte, bit)
        assert db.verify().ok
        assert dict(db) == expected
    restore(directory, before)


@pytest.mark.parametrize("flag", ["r", "c"])
def test_a_file_that_is_cut_short_is_noticed_or_does_no_harm(
    closed: tuple[Path, Contents], flag: kvstore.store.Flag
) -> None:
    directory, expected = closed
    before = files(directory)
    harmless: set[str] = set()
    for name, raw in before.items():
        for length in range(len(raw)):
            (directory / name).write_bytes(raw[:length])
            found = outcome(directory, flag)
            assert found in (None, expected), f"{name} cut to {length} bytes"
            if found is not None:
                harmless.add(name)
            restore(directory, before)
    assert harmless == {"LOCK", "MARK"}, "a cut of any other file is noticed"


@pytest.mark.parametrize("flag", ["r", "c"])
def test_a_file_that_is_gone_is_noticed_or_does_no_harm(
    closed: tuple[Path, Contents], flag: kvstore.store.Flag
) -> None:
    directory, expected = closed
    before = files(directory)
    for name in before:
        (directory / name).unlink()
        found = outcome(directory, flag)
        assert (found == expected) == (name in ("LOCK", "MARK")), f"{name} is gone"
        for path in directory.iterdir():
            path.unlink()
        for each, raw in before.items():
            (directory / each).write_bytes(raw)
