"""The names of the world's letters, all of them, in a store and in a dict."""

from __future__ import annotations

import random
import sys
from itertools import islice
from pathlib import Path
from unicodedata import ucd_3_2_0

import kvstore
from tests.helpers import Contents, segments

SEED = 320


def names() -> Contents:
    """Return every letter that has a name in Unicode 3.2: its UTF-8 and its name."""
    found = {}
    for number in range(sys.maxunicode + 1):
        name = ucd_3_2_0.name(chr(number), "")
        if name:
            found[chr(number).encode()] = name.encode()
    return found


def check(db: kvstore.Store, expected: Contents, when: str) -> None:
    """Compare a store with a dict: a part of it value by value, and all at once."""
    for key, value in islice(expected.items(), 0, None, 9):
        assert db[key] == value, f"{when}: {key.decode()!r}"
    assert dict(db) == expected, when


def test_a_store_of_all_names_equals_a_dict(tmp_path: Path) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    expected = names()
    assert len(expected) > 90_000, "Unicode 3.2 names so many letters"
    letters = list(expected)
    with kvstore.open(tmp_path / "names", segment_bytes=1 << 20) as db:
        for key, value in expected.items():
            db[key] = value
        check(db, expected, "written")
        for key in chance.sample(letters, len(letters) // 3):
            del db[key], expected[key]
        check(db, expected, "deleted from")
        for key in chance.sample(letters, len(letters) // 10):
            db[key] = expected[key] = b"SMALL " + expected.get(key, b"AGAIN")
        check(db, expected, "overwritten")
        before = len(segments(tmp_path / "names"))
        done = db.compact()
        assert before > done.segments_after + 1 > 2, "there are several segments"
        check(db, expected, "compacted")
    with kvstore.open(tmp_path / "names") as db:
        check(db, expected, "closed and opened again")
        assert db.verify().ok
        assert db.stats().dead_bytes == 0
