"""The manifest: which files count, changed in one step or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore.manifest import (
    MAX_NEXT_NUMBER,
    Manifest,
    decode_manifest,
    install_manifest,
    write_manifest_aside,
)
from kvstore.posix import DISK
from kvstore.record import MAX_SEQUENCE
from kvstore.segment import SegmentMeta
from tests.helpers import (
    FIXED,
    GOLDEN,
    files,
    flipped,
    folder,
    manifest_of,
    manifest_with,
    sealed,
)

# magic, version, next number, sequence number, how many are sealed
GOLDEN_HEAD = "4b564d414e490d0a 01000000 0300000000000000 0400000000000000 01000000"
# number, seed, length; the active one; checksum
GOLDEN_TAIL = (
    "0100000000000000 5fbdf566 8800000000000000"
    "0200000000000000 4e0eb2c1 0000000000000000 77df1c59"
)
GOLDEN_BYTES = bytes.fromhex(GOLDEN_HEAD + GOLDEN_TAIL)
SEALED = SegmentMeta(number=1, seed=0x66F5BD5F, length=136)
ACTIVE = SegmentMeta(number=2, seed=0xC1B20E4E, length=0)
GOLDEN_MANIFEST = manifest_with(3, 4, (SEALED,), ACTIVE)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Draw a manifest that a store could have."""
    numbers = st.integers(0, MAX_NEXT_NUMBER - 1)
    seeds, lengths = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
    *sealed, active = [
        SegmentMeta(number, draw(seeds), draw(lengths))
        for number in draw(st.lists(numbers, min_size=1, max_size=20, unique=True))
    ]
    highest = max(each.number for each in (*sealed, active))
    next_number = draw(st.integers(highest + 1, MAX_NEXT_NUMBER))
    sequence = draw(st.integers(0, MAX_SEQUENCE))
    return manifest_with(next_number, sequence, sealed, active)


def test_a_manifest_becomes_the_bytes_that_it_always_became() -> None:
    written = GOLDEN_MANIFEST.encode().hex()
    assert written == GOLDEN_BYTES.hex(), "the format has changed"
    assert (GOLDEN / "MANIFEST").read_bytes() == GOLDEN_BYTES
    assert manifest_of(GOLDEN) == GOLDEN_MANIFEST, "a manifest of old is misread"


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


@pytest.mark.parametrize("count", [0, 2, 0xFFFFFFFF])
def test_a_count_that_does_not_fit_is_refused(count: int) -> None:
    counted = GOLDEN_BYTES[:28] + count.to_bytes(4, "little") + GOLDEN_BYTES[32:-4]
    with pytest.raises(kvstore.CorruptionError, match="do not fit") as caught:
        decode_manifest(sealed(counted), "path")
    assert caught.value.offset == 28


@pytest.mark.parametrize(
    "impossible",
    [
        manifest_with(2, 4, (SEALED,), ACTIVE),
        manifest_with(MAX_NEXT_NUMBER + 1, 4, (SEALED,), ACTIVE),
        manifest_with(3, MAX_SEQUENCE + 1, (SEALED,), ACTIVE),
        manifest_with(3, 4, (SEALED, SEALED), ACTIVE),
        manifest_with(3, 4, (ACTIVE,), ACTIVE),
    ],
)
def test_numbers_that_no_store_can_have_are_refused(impossible: Manifest) -> None:
    with pytest.raises(kvstore.CorruptionError, match="no store") as caught:
        decode_manifest(impossible.encode(), "path")
    assert caught.value.offset == 12


def test_a_rotation_seals_the_active_segment_and_names_the_new_one() -> None:
    after = GOLDEN_MANIFEST.rotated(
        ACTIVE._replace(length=102), SegmentMeta(5, 50, 32), sequence=9
    )
    assert after.sealed == (SEALED, ACTIVE._replace(length=102))
    assert after.size == len(after.encode())
    assert after.active == (5, 50, 32), "after its header all is to come"
    assert (after.next_number, after.sequence) == (6, 9)


@pytest.mark.parametrize(
    ("results", "next_number"),
    [([], 3), ([SegmentMeta(7, 70, 500), SegmentMeta(4, 40, 600)], 8)],
)
def test_a_compaction_puts_the_new_in_place_of_the_old(
    results: list[SegmentMeta], next_number: int
) -> None:
    third = SegmentMeta(3, 30, 300)
    before = manifest_with(3, 4, (SEALED, third), ACTIVE)
    after = before.compacted([1], results)
    assert after == manifest_with(next_number, 4, (third, *results), ACTIVE), (
        "what was noted about the active segment still holds"
    )


def test_numbers_are_never_given_back() -> None:
    far = manifest_with(100, 4, (), ACTIVE)
    after = far.rotated(ACTIVE, SegmentMeta(3, 30, 32), sequence=5)
    assert after.next_number == 100
    assert far.compacted([], [SegmentMeta(7, 7, 7)]).next_number == 100
    recovered = ACTIVE._replace(length=77)
    assert far.advanced(6, recovered, 99) == manifest_with(100, 6, (), recovered)
    assert far.advanced(6, recovered, 101) == manifest_with(101, 6, (), recovered)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store."""
    kvstore.open(tmp_path).close()
    (tmp_path / "LOCK").unlink()
    return tmp_path


def test_a_manifest_aside_changes_nothing_until_it_is_installed(store: Path) -> None:
    old = manifest_of(store)
    new = old.advanced(77, old.active._replace(length=99), 5)
    (store / "MANIFEST.new").write_bytes(b"from an interrupted change")
    write_manifest_aside(DISK, folder(store), new)
    assert manifest_of(store) == old
    install_manifest(folder(store))
    assert manifest_of(store) == new
    assert "MANIFEST.new" not in files(store)
