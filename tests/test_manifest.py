"""The manifest: which files count, changed in one step or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
from faults import FaultyFileSystem
from hypothesis import given
from hypothesis import strategies as st
from samples import FIXED, GOLDEN, flipped
from support import files

import kvstore
from kvstore.filesystem import DISK
from kvstore.manifest import (
    MAX_NEXT_NUMBER,
    Manifest,
    begin,
    commit,
    decode_manifest,
    find_store,
    leftovers,
    read_manifest,
    stage,
)
from kvstore.mark import Mark, read_mark
from kvstore.record import MAX_SEQUENCE
from kvstore.segment import HEADER_BYTES, Description, Segment, segment_name

# magic, version, next number, sequence number, how many are sealed
GOLDEN_HEAD = "4b564d414e490d0a 01000000 0300000000000000 0400000000000000 01000000"
# number, seed, length; the active one; checksum
GOLDEN_TAIL = (
    "0100000000000000 5fbdf566 8800000000000000"
    "0200000000000000 4e0eb2c1 0000000000000000 77df1c59"
)
GOLDEN_BYTES = bytes.fromhex(GOLDEN_HEAD + GOLDEN_TAIL)
SEALED = Description(number=1, seed=0x66F5BD5F, length=136)
ACTIVE = Description(number=2, seed=0xC1B20E4E, length=0)
GOLDEN_MANIFEST = Manifest(next_number=3, sequence=4, sealed=(SEALED,), active=ACTIVE)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Draw a manifest that a store could have."""
    numbers = st.integers(0, MAX_NEXT_NUMBER - 1)
    seeds, lengths = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
    *sealed, active = [
        Description(number, draw(seeds), draw(lengths))
        for number in draw(st.lists(numbers, min_size=1, max_size=20, unique=True))
    ]
    highest = max(each.number for each in (*sealed, active))
    next_number = draw(st.integers(highest + 1, MAX_NEXT_NUMBER))
    sequence = draw(st.integers(0, MAX_SEQUENCE))
    return Manifest(next_number, sequence, tuple(sealed), active)


def test_a_manifest_becomes_the_bytes_that_it_always_became() -> None:
    assert GOLDEN_MANIFEST.encode().hex() == GOLDEN_BYTES.hex(), (
        "the format has changed"
    )
    assert (GOLDEN / "MANIFEST").read_bytes() == GOLDEN_BYTES


def test_a_manifest_of_old_is_still_read() -> None:
    assert read_manifest(DISK, str(GOLDEN)) == GOLDEN_MANIFEST


def test_a_store_of_old_is_still_read(tmp_path: Path) -> None:
    for file in GOLDEN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    flags: list[kvstore.store.Flag] = ["r", "w", "r"]
    for flag in flags:
        with kvstore.open(tmp_path, flag) as db:
            assert dict(db) == {b"edsger": b"1930", b"grace": b"1906", b"": b""}
            assert db.torn_tail is None
            assert db.verify().ok


@FIXED
@given(manifests())
def test_what_was_encoded_comes_back(manifest: Manifest) -> None:
    assert decode_manifest(manifest.encode(), "path") == manifest


def test_a_manifest_with_any_one_bit_flipped_is_refused() -> None:
    for bit, damaged in flipped(GOLDEN_BYTES):
        with pytest.raises(kvstore.KVStoreError, match="path"):
            pytest.fail(f"bit {bit}: {decode_manifest(damaged, 'path')}")


def test_a_manifest_of_any_other_length_is_refused() -> None:
    for length in range(len(GOLDEN_BYTES)):
        with pytest.raises(kvstore.KVStoreError, match="path"):
            pytest.fail(f"{length}: {decode_manifest(GOLDEN_BYTES[:length], 'path')}")
    with pytest.raises(kvstore.CorruptionError):
        decode_manifest(GOLDEN_BYTES + b"\0", "path")


def resealed(body: bytes) -> bytes:
    """Return a manifest with the right checksum over what it says."""
    return body + crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("count", [0, 2, 0xFFFFFFFF])
def test_a_count_that_does_not_fit_is_refused(count: int) -> None:
    counted = GOLDEN_BYTES[:28] + count.to_bytes(4, "little") + GOLDEN_BYTES[32:-4]
    with pytest.raises(kvstore.CorruptionError, match="do not fit") as caught:
        decode_manifest(resealed(counted), "path")
    assert caught.value.offset == 28


@pytest.mark.parametrize(
    "impossible",
    [
        replace(GOLDEN_MANIFEST, next_number=2),
        replace(GOLDEN_MANIFEST, next_number=MAX_NEXT_NUMBER + 1),
        replace(GOLDEN_MANIFEST, sequence=MAX_SEQUENCE + 1),
        replace(GOLDEN_MANIFEST, sealed=(SEALED, SEALED)),
        replace(GOLDEN_MANIFEST, sealed=(ACTIVE,)),
    ],
)
def test_numbers_that_no_store_can_have_are_refused(impossible: Manifest) -> None:
    with pytest.raises(kvstore.CorruptionError, match="no store") as caught:
        decode_manifest(impossible.encode(), "path")
    assert caught.value.offset == 12


@pytest.mark.parametrize("raw", [b"", b"KVMANI", b"GDBM\r\n" * 9, bytes(76)])
def test_what_is_no_manifest_is_called_foreign(raw: bytes) -> None:
    with pytest.raises(kvstore.ForeignDirectoryError, match="path"):
        decode_manifest(raw, "path")


def test_a_manifest_of_a_newer_version_is_refused_by_name() -> None:
    newer = resealed(GOLDEN_BYTES[:8] + b"\2\0\0\0" + GOLDEN_BYTES[12:-4])
    with pytest.raises(kvstore.NewerFormatError, match="format 2"):
        decode_manifest(newer, "path")
    older = resealed(GOLDEN_BYTES[:8] + b"\0\0\0\0" + GOLDEN_BYTES[12:-4])
    with pytest.raises(kvstore.CorruptionError):
        decode_manifest(older, "path")


def test_a_rotation_seals_the_active_segment_and_names_the_new_one() -> None:
    after = GOLDEN_MANIFEST.rotated(
        ACTIVE._replace(length=102), Description(5, 50, 32), sequence=9
    )
    assert after.sealed == (SEALED, ACTIVE._replace(length=102))
    assert after.active == (5, 50, 32), "behind its header all is to come"
    assert (after.next_number, after.sequence) == (6, 9)


@pytest.mark.parametrize(
    ("results", "next_number"),
    [([], 3), ([Description(7, 70, 500), Description(4, 40, 600)], 8)],
)
def test_a_compaction_puts_the_new_in_place_of_the_old(
    results: list[Description], next_number: int
) -> None:
    third = Description(3, 30, 300)
    before = Manifest(3, 4, (SEALED, third), ACTIVE)
    after = before.compacted([1], results)
    assert after == Manifest(next_number, 4, (third, *results), ACTIVE), (
        "what was noted about the active segment still holds"
    )


def test_numbers_are_never_given_back() -> None:
    far = Manifest(100, 4, (), ACTIVE)
    after = far.rotated(ACTIVE, Description(3, 30, 32), sequence=5)
    assert after.next_number == 100
    assert far.compacted([], [Description(7, 7, 7)]).next_number == 100
    recovered = ACTIVE._replace(length=77)
    assert far.advanced(99, 6, recovered) == Manifest(100, 6, (), recovered)
    assert far.advanced(101, 6, recovered) == Manifest(101, 6, (), recovered)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store, made by `begin`."""
    begin(DISK, str(tmp_path), None)
    return tmp_path


def test_a_store_begins_with_one_empty_segment(store: Path) -> None:
    manifest = read_manifest(DISK, str(store))
    assert sorted(files(store)) == ["00000001.segment", "MANIFEST", "MARK"]
    assert (manifest.next_number, manifest.sequence, manifest.sealed) == (2, 0, ())
    assert (manifest.active.number, manifest.active.length) == (1, HEADER_BYTES)
    assert read_mark(DISK, str(store)) == Mark(manifest.active, closed=True)
    assert leftovers(DISK, str(store), manifest) == []


def test_a_store_that_begins_anew_goes_on_counting(store: Path) -> None:
    Segment.create(DISK, str(store), 9)  # left behind by an interrupted change
    previous = Manifest(7, 1234, (), read_manifest(DISK, str(store)).active)
    begin(DISK, str(store), previous)
    manifest = read_manifest(DISK, str(store))
    assert manifest.active.number == 10, "a number was given out twice"
    assert (manifest.next_number, manifest.sequence) == (11, 1234)
    assert leftovers(DISK, str(store), manifest) == [
        str(store / segment_name(n)) for n in (1, 9)
    ]


def test_a_staged_manifest_changes_nothing_until_it_is_committed(store: Path) -> None:
    old = read_manifest(DISK, str(store))
    new = old.advanced(5, 77, old.active._replace(length=99))
    (store / "MANIFEST.new").write_bytes(b"from an interrupted change")
    stage(DISK, str(store), new)
    assert read_manifest(DISK, str(store)) == old
    commit(DISK, str(store))
    assert read_manifest(DISK, str(store)) == new
    assert "MANIFEST.new" not in files(store)


@pytest.mark.parametrize("operation", ["create", "write", "sync"])
def test_a_manifest_that_can_not_be_staged_leaves_the_old_one(
    store: Path, operation: str
) -> None:
    before = files(store)
    filesystem = FaultyFileSystem()
    filesystem.fail(operation, OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        stage(filesystem, str(store), read_manifest(DISK, str(store)))
    assert files(store) == before, "a change that failed left something behind"


def test_a_disk_that_fails_is_no_damaged_manifest(store: Path) -> None:
    filesystem = FaultyFileSystem()
    filesystem.fail("read", OSError(errno.EIO, "the disk fails"))
    with pytest.raises(OSError, match="the disk fails"):
        read_manifest(filesystem, str(store))


def put_nothing(_: Path) -> None: ...


def put_hidden_files(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"")


def put_a_lock(folder: Path) -> None:
    (folder / "LOCK").write_bytes(b"1\n")


def put_a_staged_manifest(folder: Path) -> None:
    put_a_lock(folder)
    (folder / "MANIFEST.new").write_bytes(b"half")


def put_half_a_segment(folder: Path) -> None:
    put_a_lock(folder)
    (folder / segment_name(1)).write_bytes(b"KVSEGM")


def put_an_empty_segment(folder: Path) -> None:
    put_a_staged_manifest(folder)
    Segment.create(DISK, str(folder), 1)


@pytest.mark.parametrize(
    "put",
    [
        put_nothing,
        put_hidden_files,
        put_a_lock,
        put_a_staged_manifest,
        put_half_a_segment,
        put_an_empty_segment,
    ],
)
def test_where_making_a_store_was_interrupted_there_is_room(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path)
    assert find_store(DISK, str(tmp_path)) is False
    begin(DISK, str(tmp_path), None)
    assert find_store(DISK, str(tmp_path)) is True
    with kvstore.open(tmp_path) as db:
        assert len(db) == 0


def test_where_nothing_is_there_is_room(tmp_path: Path) -> None:
    assert find_store(DISK, str(tmp_path / "store")) is False
    assert not (tmp_path / "store").exists(), "looking made a directory"


def test_a_directory_of_other_files_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"years of work")
    with pytest.raises(kvstore.ForeignDirectoryError, match=r"thesis\.tex"):
        find_store(DISK, str(tmp_path))
    with pytest.raises(kvstore.ForeignDirectoryError, match="is a file"):
        find_store(DISK, str(tmp_path / "thesis.tex"))


@pytest.mark.parametrize("kept", ["MARK", "00000001.segment", "00000002.segment"])
def test_a_store_without_its_manifest_is_damaged_and_not_empty(
    tmp_path: Path, kept: str
) -> None:
    (tmp_path / kept).write_bytes((GOLDEN / kept).read_bytes())
    with pytest.raises(kvstore.CorruptionError, match="manifest is missing"):
        find_store(DISK, str(tmp_path))


def test_only_segments_that_do_not_count_are_left_over(store: Path) -> None:
    manifest = read_manifest(DISK, str(store))
    sealed = Segment.create(DISK, str(store), 2).describe()
    Segment.create(DISK, str(store), 3)
    (store / "00000001.segment.cut-32").write_bytes(b"a torn tail, kept")
    (store / "notes.txt").write_bytes(b"a stranger's")
    found = leftovers(DISK, str(store), Manifest(4, 0, (sealed,), manifest.active))
    assert found == [str(store / segment_name(3))]
