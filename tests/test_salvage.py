"""Salvage: what can still be read of a damaged store, in a new one."""

from __future__ import annotations

import errno
from pathlib import Path
from zlib import crc32

import pytest
from faults import FaultyFileSystem
from support import (
    NO_SYNC,
    Contents,
    copy_of,
    files,
    flip,
    read,
    record_bytes,
    segments,
    small_store,
)

import kvstore
from kvstore.segment import HEADER_BYTES


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a closed store of six keys, two in each of its segments."""
    with kvstore.open(tmp_path / "store", segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(6)})
    return tmp_path / "store"


def salvaged(store: Path) -> tuple[kvstore.Salvage, Contents]:
    """Salvage a store, and return the report and what the new store holds."""
    before = files(store)
    target = store.with_name(f"{store.name}-saved")
    report = kvstore.salvage(store, target, filesystem=NO_SYNC)
    assert files(store) == before, "salvage never writes to the damaged store"
    found = read(target)
    assert report.keys == len(found), "the report counts the keys"
    return report, found


def test_a_whole_store_is_copied_whole(tmp_path: Path) -> None:
    expected = small_store(tmp_path / "store")
    report, found = salvaged(tmp_path / "store")
    assert found == expected
    assert report.left_out == ()
    assert report.manifest_read


def test_a_damaged_record_is_left_out_and_reported(store: Path) -> None:
    first, length = segments(store)[0], record_bytes(b"0", b"x" * 20)
    flip(first, HEADER_BYTES + 18, 2)
    with pytest.raises(kvstore.CorruptionError, match=r"kvstore\.salvage"):
        kvstore.open(store)
    report, found = salvaged(store)
    assert found == {b"%d" % number: b"x" * 20 for number in range(1, 6)}
    (damage,) = report.left_out
    assert (damage.path, damage.offset) == (str(first), HEADER_BYTES)
    assert damage.length == length
    assert report.records_read == 5


def test_a_missing_segment_is_reported(store: Path) -> None:
    missing = segments(store)[1]
    missing.unlink()
    report, found = salvaged(store)
    assert found.keys() == {b"0", b"1", b"4", b"5"}
    assert [each.path for each in report.left_out] == [str(missing)]


@pytest.mark.parametrize("which", [0, -1])
def test_a_segment_that_ends_too_early_is_reported(store: Path, which: int) -> None:
    cut = segments(store)[which]
    end = HEADER_BYTES + record_bytes(b"0", b"x" * 20)
    cut.write_bytes(cut.read_bytes()[:end])
    report, found = salvaged(store)
    assert len(found) == 5
    (damage,) = report.left_out
    assert (damage.path, damage.offset) == (str(cut), end)
    assert damage.length == record_bytes(b"0", b"x" * 20)


@pytest.mark.parametrize("byte", [0, 8, 9, 15, 22, 30])
def test_a_damaged_header_costs_no_record(store: Path, byte: int) -> None:
    flip(segments(store)[1], byte, 5)
    report, found = salvaged(store)
    assert len(found) == 6, "the manifest knows what the records need of the header"
    assert [each.path for each in report.left_out] == [str(segments(store)[1])]


def test_without_a_manifest_every_segment_counts(store: Path) -> None:
    (store / "MANIFEST").unlink()
    report, found = salvaged(store)
    assert len(found) == 6
    assert not report.manifest_read
    assert "manifest" in str(report)


def test_without_manifest_and_header_a_segment_is_left_out(store: Path) -> None:
    (store / "MANIFEST").write_bytes(b"")
    flip(segments(store)[1], 30, 5)
    report, found = salvaged(store)
    assert found.keys() == {b"0", b"1", b"4", b"5"}
    (damage,) = report.left_out
    assert damage.path == str(segments(store)[1])
    assert damage.length == segments(store)[1].stat().st_size


def test_a_segment_of_another_store_is_left_out(store: Path, tmp_path: Path) -> None:
    with kvstore.open(tmp_path / "theirs") as db:
        db[b"theirs"] = b"x"
    name = segments(store)[0].name
    (store / name).write_bytes((tmp_path / "theirs" / name).read_bytes())
    report, found = salvaged(store)
    assert found.keys() == {b"2", b"3", b"4", b"5"}
    assert [each.path for each in report.left_out] == [str(store / name)]


def test_a_batch_without_an_end_is_left_out(tmp_path: Path) -> None:
    db = kvstore.open(tmp_path / "store")
    db[b"ada"] = b"1815"
    with db.batch() as batch:
        batch[b"alan"] = b"1912"
        del batch[b"ada"]
    torn = copy_of(tmp_path / "store", "torn")
    last = segments(torn)[-1]
    last.write_bytes(last.read_bytes()[:-1])
    report, found = salvaged(torn)
    assert found == {b"ada": b"1815"}
    assert report.left_out != ()


def test_a_record_that_was_lost_once_is_not_brought_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with kvstore.open(store) as db:
        db[b"kept"] = b"1"
        length = segments(store)[0].stat().st_size
        db[b"lost"] = b"2"
    whole = segments(store)[0].read_bytes()
    segments(store)[0].write_bytes(whole[:length])  # the power went before that
    (store / "MARK").unlink()
    with kvstore.open(store):
        pass
    segments(store)[0].write_bytes(whole)  # the sector comes to light
    report, found = salvaged(store)
    assert found == {b"kept": b"1"}, "a reader of the damaged store finds no more"
    assert [each.offset for each in report.left_out] == [length]


def test_salvage_reads_a_store_that_is_open_elsewhere(store: Path) -> None:
    with kvstore.open(store) as db:
        db[b"0"] = b"new"
        target = store.with_name("saved")
        report = kvstore.salvage(store, target)
        assert read(target) == dict(db)
        assert report.left_out == ()


def test_salvage_writes_to_nothing_that_is_there(store: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear ada")
    (tmp_path / "empty").mkdir()
    for name in ("letter.txt", "empty", "store"):
        with pytest.raises(FileExistsError, match=name):
            kvstore.salvage(store, tmp_path / name)
    assert (tmp_path / "letter.txt").read_text() == "dear ada"
    assert list((tmp_path / "empty").iterdir()) == []


def test_salvage_of_what_is_no_store_makes_none(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear ada")
    with pytest.raises(kvstore.StoreNotFoundError, match="letters"):
        kvstore.salvage(tmp_path / "letters", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_salvage_of_what_does_not_exist_says_so(tmp_path: Path) -> None:
    with pytest.raises((kvstore.StoreNotFoundError, FileNotFoundError)):
        kvstore.salvage(tmp_path / "nowhere", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_salvage_refuses_a_manifest_of_a_newer_format(store: Path) -> None:
    raw = (store / "MANIFEST").read_bytes()
    newer = raw[:8] + (2).to_bytes(4, "little") + raw[12:-4]
    (store / "MANIFEST").write_bytes(newer + crc32(newer).to_bytes(4, "little"))
    with pytest.raises(kvstore.NewerFormatError):
        kvstore.salvage(store, store.with_name("saved"))


def test_a_flipped_version_of_a_manifest_is_damage_and_does_not_stop_salvage(
    store: Path,
) -> None:
    raw = bytearray((store / "MANIFEST").read_bytes())
    raw[8] ^= 2
    (store / "MANIFEST").write_bytes(raw)
    with pytest.raises(kvstore.CorruptionError):
        kvstore.open(store)
    found = kvstore.salvage(store, store.with_name("saved"))
    assert not found.manifest_read
    assert found.keys > 0, "one bit of the manifest cost all that could be read"


def test_a_disk_that_fails_is_no_damage(store: Path) -> None:
    filesystem = FaultyFileSystem()
    error = OSError(errno.EIO, "Input/output error")
    filesystem.fail("read", error, name=".segment", first=3)
    with pytest.raises(OSError, match="Input/output error"):
        kvstore.salvage(store, store.with_name("saved"), filesystem=filesystem)
    assert not store.with_name("saved").exists(), "nothing is made from half a reading"


def test_whatever_bit_flips_what_is_saved_was_once_written(tmp_path: Path) -> None:
    expected = small_store(tmp_path / "store")
    written = {
        b"ada": {b"ADA", b"0", b"1", b"2", b""},
        b"bob": {b"BOB"},
        b"cyd": {b"CYD"},
        b"dan": {b"DAN"},
        b"eve": {b"EVE"},
        b"fay": {b"Fay"},
        b"": {b"\0" * 5},
    }
    for name in [each.name for each in segments(tmp_path / "store")]:
        for byte in range((tmp_path / "store" / name).stat().st_size):
            directory = copy_of(tmp_path / "store", f"{name}-{byte}")
            flip(directory / name, byte, byte % 8)
            report, found = salvaged(directory)
            assert report.left_out, f"byte {byte} of {name}: damage is reported"
            for key, value in found.items():
                assert value in written[key], f"byte {byte} of {name}: {key!r}"
            lost = expected.keys() - found.keys()
            assert len(lost) <= 1, f"byte {byte} of {name}: one record is lost, no more"
