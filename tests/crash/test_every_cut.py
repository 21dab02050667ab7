"""A store that was not closed, its last segment cut at every byte.

What was synced has to be there, or the loss is an error. What came after it may be cut
anywhere by a power cut: the store opens, holds a prefix of what was written, batches
whole or not there, and says what it cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import NO_SYNC, Contents, copy_of, read, segments

import kvstore
from kvstore.segment import HEADER_BYTES


@dataclass
class History:
    """A directory as it was while the store was open, and what it held when."""

    directory: Path
    synced: int = (
        HEADER_BYTES  # how much of the last segment is known to be on the disk
    )
    states: dict[int, Contents] = field(default_factory=dict)  # by the segment's length

    def last(self) -> Path:
        """Return the segment that takes records."""
        return segments(self.directory)[-1]

    def note(self, db: kvstore.Store) -> None:
        """Note what the store holds at this length of its last segment."""
        self.states[self.last().stat().st_size] = dict(db)

    def state(self, length: int) -> tuple[int, Contents]:
        """Return the last whole state of a segment that is cut to a length."""
        return max(each for each in self.states.items() if each[0] <= length)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """Write to a store, sync in the middle, and leave it open."""
    directory = tmp_path_factory.mktemp("cut") / "store"
    made = History(directory)
    with kvstore.open(directory, segment_bytes=100) as db:
        for number in range(9):
            db[b"%d" % (number % 4)] = b"%d" % number * 15
    with kvstore.open(directory, segment_bytes=100_000) as db:
        db[b"0"] = b"after the others"
        made.note(db)
        del db[b"1"]
        made.note(db)
        db.sync()
        made.synced = made.last().stat().st_size
        for number in range(3):
            db[b"%d" % number] = b"new" * number
            made.note(db)
        with db.batch() as batch:
            batch[b"2"] = b"in a batch"
            del batch[b"3"]
            batch[b"4"] = b""
        made.note(db)
        del db[b"2"]
        made.note(db)
        with db.batch() as batch:
            batch[b"0"] = b"x" * 40
            batch[b"5"] = b"last"
        made.note(db)
        made.directory = copy_of(directory)
        yield made


def cut(history: History, length: int) -> Path:
    """Return a copy of the directory with its last segment cut to a length."""
    directory = copy_of(history.directory, f"cut-to-{length}")
    last = segments(directory)[-1]
    last.write_bytes(last.read_bytes()[:length])
    return directory


def test_a_cut_above_what_was_synced_leaves_a_prefix_and_is_reported(
    history: History,
) -> None:
    whole = history.last().read_bytes()
    for length in range(history.synced, len(whole) + 1):
        directory = cut(history, length)
        end, expected = history.state(length)
        tail = whole[end:length]
        with kvstore.open(directory, "r") as db:
            assert dict(db) == expected, f"cut to {length}: no prefix for a reader"
            assert (db.torn_tail is not None) == bool(tail)
        with kvstore.open(directory, filesystem=NO_SYNC) as db:
            assert dict(db) == expected, f"cut to {length}: no prefix of the history"
            torn = db.torn_tail
            if not tail:
                assert torn is None, f"cut to {length}: nothing was torn"
            else:
                assert torn is not None, f"cut to {length}: bytes went in silence"
                assert (torn.offset, torn.length) == (end, len(tail))
                assert torn.path == str(segments(directory)[-1])
                assert torn.kept_as is not None
                assert Path(torn.kept_as).read_bytes() == tail, "the bytes are kept"
        with kvstore.open(directory, filesystem=NO_SYNC) as db:
            assert db.torn_tail is None, f"cut to {length}: reported twice"
            assert dict(db) == expected, f"cut to {length}: opened twice, and different"
    assert end == len(whole), "the last of them is the whole segment"
    assert len(whole) - history.synced > 200


def test_a_cut_below_what_was_synced_is_damage(history: History) -> None:
    for length in range(history.synced):
        directory = cut(history, length)
        for flag in ("r", "c"):
            with pytest.raises(kvstore.CorruptionError) as caught:
                kvstore.open(directory, flag, filesystem=NO_SYNC)
            assert caught.value.path == str(segments(directory)[-1])
            assert caught.value.offset <= length, "the error says where the file ends"
        assert segments(directory)[-1].stat().st_size == length, "nothing was changed"


def test_the_history_was_left_as_it_was(history: History) -> None:
    assert read(history.directory) == history.state(10**9)[1]
