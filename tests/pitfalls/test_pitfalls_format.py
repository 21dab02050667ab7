"""Pitfalls 1 to 9: how a file format loses, revives or invents data.

Each test names the pitfall that it guards against. The numbers are those of the list of
pitfalls that the store was built by.
"""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import pytest

import kvstore
from kvstore.record import (
    DELETE,
    MAX_KEY_BYTES,
    OVERHEAD_BYTES,
    PUT,
    RECORD_HEAD,
    decode,
    encode,
)
from kvstore.segment import SEGMENT_HEADER_BYTES, WINDOW_BYTES, Segment
from tests.disks import NO_SYNC, FaultyFileSystem
from tests.helpers import (
    FIRST,
    Process,
    change,
    copy_of,
    extend,
    files,
    flipped,
    new_segment,
    old_segment,
    read,
    sealed,
    without_lock,
)


def keys_until_trouble(segment: Segment) -> tuple[list[bytes], int | None]:
    """Return the keys that a scan yields, and the offset at which it raises, if so."""
    keys: list[bytes] = []
    try:
        keys.extend(entry.key for entry in segment.scan())
    except kvstore.CorruptionError as error:
        return keys, error.offset
    return keys, None


def put_all(directory: Path, *keys: bytes) -> kvstore.Store:
    """Open the store in a directory, and put some keys with their capitals as values."""
    db = kvstore.open(directory, filesystem=NO_SYNC)
    for key in keys:
        db[key] = key.upper()
    return db


# 1 and 3: lengths outside the checksum, a tombstone told by its value


def test_pitfalls_01_and_03_kind_and_lengths_are_under_the_checksum() -> None:
    for kind, other in itertools.product([1, 2, 129, 130], repeat=2):
        raw = encode(kind, 1, b"key", b"value", seed=5)
        for key_bytes in range(9):  # the border shifts, and the sum stays the same
            head = RECORD_HEAD.pack(other, 1, key_bytes, 8 - key_bytes)
            if head != raw[: RECORD_HEAD.size]:
                with pytest.raises(kvstore.BadRecordError, match="checksum"):
                    pytest.fail(f"read as {decode(head + raw[RECORD_HEAD.size :], 5)}")


def test_pitfall_01_a_flipped_length_swallows_no_neighbour(tmp_path: Path) -> None:
    """The records behind would fit the longer length exactly, and must not vanish."""
    records = [(PUT, n, b"key %02d" % n, b"x" * (13 + n % 2)) for n in range(1, 40)]
    segment = new_segment(tmp_path, 1, *records)
    whole = Path(segment.path).read_bytes()
    second = list(segment.scan())[1]
    start, end = second.offset + 9, second.offset + RECORD_HEAD.size
    swallowed = 0
    for bit, lengths in flipped(whole[start:end]):
        Path(segment.path).write_bytes(whole[:start] + lengths + whole[end:])
        key_bytes, value_bytes = struct.unpack("<HI", lengths)
        length = OVERHEAD_BYTES + key_bytes + value_bytes
        swallowed += length > second.length and second.offset + length < len(whole)
        found = keys_until_trouble(segment)
        assert found == ([b"key 01"], second.offset), f"length bit {bit} not noticed"
    assert swallowed, "no flipped length of this test reaches over a neighbour"


# 2: a length that drives an allocation


@pytest.mark.parametrize(
    ("key_bytes", "value_bytes"),
    [(0, 1 << 30), (65_535, 1 << 20), (3, 5), (4, 4)],
)
def test_pitfall_02_a_length_is_bound_by_what_is_left_in_the_file(
    tmp_path: Path, key_bytes: int, value_bytes: int
) -> None:
    """No length that a damaged record claims makes the store read or allocate."""
    filesystem = FaultyFileSystem()
    segment = new_segment(tmp_path, 1, filesystem=filesystem)
    raw = RECORD_HEAD.pack(PUT, 1, key_bytes, value_bytes) + b"keyvalu" + bytes(4)
    segment.append(raw)
    segment.size += len(raw)
    tracemalloc.start()
    try:
        found = keys_until_trouble(segment)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == ([], SEGMENT_HEADER_BYTES)
    asked = [each.length for each in filesystem.operations if each.name == "read"]
    assert max(asked) <= segment.size, "more was asked for than is there"
    assert peak < WINDOW_BYTES


# 3: a tombstone told by its value

LOOK_LIKE_TOMBSTONES = [
    b"",
    b"\0",
    b"\2",
    b"bitcask_tombstone",
    b"bitcask_tombstone2\0\0\0\1",
    b"None",
    encode(DELETE, 99, b"key", b"", 0),
    pickle.dumps(None),
]


def test_pitfall_03_no_value_is_a_tombstone(tmp_path: Path) -> None:
    """Any value can be stored: what is deleted says so in the kind of its record."""
    values = dict(enumerate(LOOK_LIKE_TOMBSTONES))
    with kvstore.open(tmp_path, segment_bytes=100, filesystem=NO_SYNC) as db:
        for n, value in values.items():
            db[b"%d" % n] = value
        db.update({b"gone": b"", b"dead": b""})
        del db[b"gone"]
        with db.batch() as batch:
            batch[b"empty"] = b""
            del batch[b"dead"]
        db.compact()
    with kvstore.open(tmp_path, filesystem=NO_SYNC) as db:
        expected = {b"%d" % n: value for n, value in values.items()} | {b"empty": b""}
        assert dict(db) == expected, "a value was taken for a tombstone"


# 4: zeros. That no kind is zero, see `test_record`.


@pytest.mark.parametrize("count", [1, 18, 19, 20, 512, 4096, WINDOW_BYTES + 7])
def test_pitfall_04_zeros_above_the_mark_are_a_tail(tmp_path: Path, count: int) -> None:
    """A file that grew before its bytes came ends in zeros; they are cut and reported."""
    db = put_all(tmp_path / "store", b"ada", b"alan")
    crashed = copy_of(tmp_path / "store")
    db.close()
    length = (crashed / FIRST).stat().st_size
    extend(crashed / FIRST, bytes(count))
    with kvstore.open(crashed, segment_bytes=1, filesystem=NO_SYNC) as db:
        assert dict(db) == {b"ada": b"ADA", b"alan": b"ALAN"}
        assert db.torn_tail is not None, "zeros vanished without a word"
        assert (db.torn_tail.offset, db.torn_tail.length) == (length, count)
        assert (crashed / FIRST).stat().st_size == length
        db[b"edsger"] = b"seals the first segment"
    extend(crashed / FIRST, bytes(count))
    with pytest.raises(kvstore.CorruptionError, match=FIRST):
        kvstore.open(crashed, filesystem=NO_SYNC)


def test_pitfall_04_zeros_where_bytes_were_synced_are_damage(tmp_path: Path) -> None:
    """Zeros are accepted only as a tail of what nobody was told is safe."""
    put_all(tmp_path, b"ada", b"alan", b"grace").close()
    whole = (tmp_path / FIRST).read_bytes()
    for start in range(SEGMENT_HEADER_BYTES, len(whole), 7):
        (tmp_path / FIRST).write_bytes(whole[:start].ljust(len(whole), b"\0"))
        with pytest.raises(kvstore.CorruptionError, match=FIRST):
            kvstore.open(tmp_path, filesystem=NO_SYNC)


# 5: an intact old record that comes back to life


def segment_records(directory: Path) -> list[bytes]:
    """Return the bytes of every record in the first segment of a store."""
    raw = (directory / FIRST).read_bytes()
    entries = old_segment(directory, 1).scan()
    return [raw[each.offset : each.offset + each.length] for each in entries]


def test_pitfall_05_a_record_of_another_file_stays_dead_behind_a_tear(
    tmp_path: Path,
) -> None:
    """The file system gives this file a block that was another's: its seed is another."""
    put_all(tmp_path / "other", b"a", b"b", b"c", b"ghost").close()
    ghost = segment_records(tmp_path / "other")[-1]
    db = put_all(tmp_path / "store", b"ada")
    crashed = copy_of(tmp_path / "store")
    db.close()
    extend(crashed / FIRST, ghost)
    with kvstore.open(crashed, filesystem=NO_SYNC) as db:
        assert dict(db) == {b"ada": b"ADA"}, "a record of another file came to life"
        assert db.torn_tail is not None
        assert "checksum" in db.torn_tail.reason


def crash_and_lose(directory: Path, name: str, lost: int) -> Path:
    """Copy an open store as a power cut leaves it: without its last `lost` bytes."""
    crashed = copy_of(directory, name)
    length = (crashed / FIRST).stat().st_size
    os.truncate(crashed / FIRST, length - lost)
    return crashed


@pytest.mark.parametrize("left", ["a whole record", "half a record", "nothing"])
def test_pitfall_05_an_old_record_of_this_file_stays_dead(
    tmp_path: Path, left: str
) -> None:
    """What a power cut took must not come back behind records that were put since.

    Two records are lost, two of the same lengths are put in their place, and in another
    power cut the second of them gives way to the block that stood there before.
    """
    db = put_all(tmp_path / "store", b"ada")
    db.sync()
    expected = {b"ada": b"ADA", b"here": b"HERE"}
    if left == "a whole record":
        db[b"alan"] = expected[b"alan"] = b"ALAN"
    db.update({b"lost": b"LOST", b"dead": b"DEAD"})
    *_, lost, dead = segment_records(tmp_path / "store")
    crashed = crash_and_lose(tmp_path / "store", "one", len(lost) + len(dead))
    db.close()
    if left == "half a record":
        extend(crashed / FIRST, lost[:9])
    db = put_all(crashed, b"here", b"soon")
    again = crash_and_lose(crashed, "two", len(dead))
    db.close()
    extend(again / FIRST, dead)
    with kvstore.open(again, filesystem=NO_SYNC) as db:
        assert dict(db) == expected, "what a power cut took came back behind newer ones"
        assert db.torn_tail is not None


# 6: sizes checked after encoding


def test_pitfall_06_what_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, values and batches: a clear error, and not one byte."""
    monkeypatch.setattr("kvstore.record.MAX_VALUE_BYTES", 1000)
    monkeypatch.setattr("kvstore.engine.MAX_BATCH_BYTES", 2000)
    key, filesystem = b"k" * MAX_KEY_BYTES, FaultyFileSystem()
    with kvstore.open(tmp_path, segment_bytes=1, filesystem=filesystem) as db:
        db[b"ada"] = b"1815"
        before = files(tmp_path)
        filesystem.forget()
        for words, changes in (
            ("65,536 bytes", {key + b"k": b""}),
            ("1,001 bytes", {b"key": bytes(1001)}),
            ("the batch has", {b"%d" % n: bytes(100) for n in range(20)}),
        ):
            with pytest.raises(kvstore.LimitError, match=words):
                change(db, {b"small": b""} | changes)
            if len(changes) == 1:
                with pytest.raises(kvstore.LimitError, match=words):
                    db.update(changes)
        assert filesystem.log() == [], (
            "something was done before the sizes were checked"
        )
        assert files(tmp_path) == before
        assert dict(db) == {b"ada": b"1815"}
        db[key] = bytes(1000)
    assert len(read(tmp_path)[key]) == 1000


# 7: no magic, no version


def newer(name: str, raw: bytes) -> bytes:
    """Return the file with version 2 in its header, and the checksum that fits."""
    assert raw[8:12] == struct.pack("<I", 1)
    if name == "MANIFEST":
        return sealed(raw[:8] + struct.pack("<I", 2) + raw[12:-4])
    return sealed(raw[:8] + struct.pack("<I", 2) + raw[12:28]) + raw[32:]


@pytest.mark.parametrize(
    ("name", "flag"),
    [*itertools.product(["MANIFEST", FIRST], ["r", "w", "c"]), ("MANIFEST", "n")],
)
def test_pitfall_07_a_future_file_is_refused_by_name(
    tmp_path: Path, name: str, flag: kvstore.Flag
) -> None:
    """A file of a newer version is named, and not parsed, and not touched."""
    put_all(tmp_path, b"ada").close()
    (tmp_path / name).write_bytes(newer(name, (tmp_path / name).read_bytes()))
    before = without_lock(tmp_path)
    with pytest.raises(kvstore.NewerFormatError, match="format 2") as caught:
        kvstore.open(tmp_path, flag, filesystem=NO_SYNC)
    assert name in str(caught.value)
    assert without_lock(tmp_path) == before


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
@pytest.mark.parametrize(
    "strangers",
    [
        {"notes.txt": b"years of work"},
        {"MANIFEST": b"MANIFEST-000004\n", "CURRENT": b"MANIFEST-000004\n"},
        {"MANIFEST": b"Manifest-Version: 1.0\nCreated-By: 17 (a company)\n"},
        {"MANIFEST": b"", "LOCK": b""},
    ],
    ids=["notes", "another store", "an archive's", "an empty manifest"],
)
def test_pitfall_07_a_foreign_directory_is_refused_by_name(
    tmp_path: Path, strangers: dict[str, bytes], flag: kvstore.Flag
) -> None:
    """What is not a store is said not to be one, and stays as it is."""
    for name, raw in strangers.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(kvstore.ForeignDirectoryError, match=str(tmp_path)):
        kvstore.open(tmp_path, flag, filesystem=NO_SYNC)
    strangers.pop("LOCK", None)
    assert without_lock(tmp_path) == strangers, "a foreign directory was changed"


# 8 and 9: what is stored depends on nothing but what was put, and runs no code. That no module
# hashes, pickles or evaluates, see `test_layers`.

WRITE_A_STORE = """
import sys, pytest, kvstore
from tests.helpers import change, steady

print(hash("salted"))
steady(pytest.MonkeyPatch())
with kvstore.open(sys.argv[1], segment_bytes=300) as db:
    for n in range(60):
        db[b"key %d" % (n % 23)] = b"value %d" % n
        if n % 5 == 0:
            del db[b"key %d" % (n % 23)]
    change(db, {b"one": b"1", b"two": b"2", b"key 3": None})
    db.compact(0.3)
    db[b"last"] = b""
print("written")
"""


def test_pitfall_08_no_stored_byte_depends_on_the_salt_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that are salted differently write the same bytes."""
    salts, written = set(), []
    for salt in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", salt)
        directory = tmp_path / salt
        with Process(WRITE_A_STORE, directory) as process:
            salts.add(process.line())
            assert process.line() == "written"
        written.append(without_lock(directory))
    assert len(salts) == 2, "the processes were not salted differently"
    assert len(written[0]) > 4, "the store has too few files to show anything"
    assert written[0] == written[1], "two processes wrote different bytes"
