"""A store and a dict that are told the same hold the same, whatever they are told."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support import NO_SYNC, Contents, read, segments

import kvstore

KEYS = st.sampled_from([b"", b"\0", *(b"%d" % number for number in range(8))])
VALUES = st.binary(max_size=40)
CHANGES = st.dictionaries(KEYS, VALUES | st.none(), max_size=5)


class StoreAndDict(RuleBasedStateMachine):
    """What can be done to a store, done to a dict as well."""

    @initialize(segment_bytes=st.sampled_from([1, 60, 200, 5000]))
    def make(self, segment_bytes: int) -> None:
        """Begin with nothing."""
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "store"
        self.segment_bytes = segment_bytes
        self.copies = 0
        self.dict: Contents = {}
        self.open()

    def open(self) -> None:
        """Open the store."""
        self.db = kvstore.open(
            self.path, segment_bytes=self.segment_bytes, filesystem=NO_SYNC
        )

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        """Put a key."""
        self.db[key] = self.dict[key] = value

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        """Delete a key, or fail if it is not there."""
        assert self.db.pop(key, None) == self.dict.pop(key, None)

    @rule(changes=CHANGES, fails=st.booleans())
    def batch(self, changes: dict[bytes, bytes | None], fails: bool) -> None:
        """Change several keys, wholly or not at all."""
        after = self.dict.copy()
        try:
            with self.db.batch() as batch:
                for key, value in changes.items():
                    if value is not None:
                        after[key] = value
                        batch[key] = value
                    elif key in after:
                        del after[key]
                        del batch[key]
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        self.dict = after

    @rule(update=st.dictionaries(KEYS, VALUES))
    def update(self, update: Contents) -> None:
        """Put several keys."""
        self.db.update(update)
        self.dict.update(update)

    @rule()
    def clear(self) -> None:
        """Delete everything."""
        self.db.clear()
        self.dict.clear()

    @precondition(lambda self: self.dict)
    @rule()
    def popitem(self) -> None:
        """Remove some key."""
        key, value = self.db.popitem()
        assert self.dict.pop(key) == value

    @rule(least_dead=st.sampled_from([0.0, 0.2, 0.5, 0.9]))
    def compact(self, least_dead: float) -> None:
        """Compact, and see that only what was taken up has changed."""
        before = sum(each.stat().st_size for each in segments(self.path))
        done = self.db.compact(least_dead)
        after = sum(each.stat().st_size for each in segments(self.path))
        fresh = 32  # the header of a segment that the log may have begun
        gone = done.bytes_before - done.bytes_after
        assert before - after in (gone, gone - fresh)

    @rule(changes=CHANGES, compact=st.booleans())
    def iterate(self, changes: dict[bytes, bytes | None], compact: bool) -> None:
        """Write in the middle of an iteration, which does not see it."""
        expected = list(self.db.items())
        items, keys = iter(self.db.items()), iter(self.db)
        begun = [next(items)] if expected else []
        for key, value in changes.items():
            if value is None:
                self.delete(key)
            else:
                self.put(key, value)
        if compact:
            self.db.compact()
        assert begun + list(items) == expected
        assert list(keys) == [key for key, _ in expected]

    @rule()
    def reopen(self) -> None:
        """Close, and open again."""
        self.db.close()
        self.open()
        assert self.db.torn_tail is None

    @rule()
    def crash(self) -> None:
        """Go on with what the directory holds, as after kill -9."""
        self.copies += 1
        path = self.folder / f"store-{self.copies}"
        shutil.copytree(self.path, path)
        self.db.close()
        self.path = path
        self.open()
        assert self.db.torn_tail is None

    @invariant()
    def same(self) -> None:
        """Compare all that can be asked."""
        if not hasattr(self, "db"):
            return
        assert dict(self.db) == self.dict
        assert len(self.db) == len(self.dict)
        assert set(self.db.keys()) == self.dict.keys()
        assert sorted(self.db.values()) == sorted(self.dict.values())
        for key in (b"", b"3", b"absent"):
            assert self.db.get(key) == self.dict.get(key)
            assert (key in self.db) == (key in self.dict)

    def teardown(self) -> None:
        """Check the files once more, and remove them."""
        if not hasattr(self, "db"):
            return
        assert self.db.verify().ok
        assert read(self.path) == self.dict
        self.db.close()
        assert read(self.path) == self.dict
        shutil.rmtree(self.folder)


StoreAndDict.TestCase.settings = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    stateful_step_count=30,
)
TestStoreAndDict = StoreAndDict.TestCase
