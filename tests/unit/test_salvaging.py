"""Salvage: what can still be read of a damaged store, in a new one."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvstore
from kvstore.segment import SEGMENT_HEADER_BYTES
from tests.disks import NO_SYNC, FaultyFileSystem
from tests.helpers import (
    Contents,
    copy_of,
    disk_broken,
    disk_full,
    even_store,
    files,
    flip,
    read,
    record_bytes,
    sealed,
    segments,
    small_store,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a closed store of six keys, two in each of its segments."""
    return even_store(tmp_path / "store")


def salvaged(store: Path) -> tuple[kvstore.SalvageReport, Contents]:
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
    flip(first, SEGMENT_HEADER_BYTES + 18, 2)
    with pytest.raises(kvstore.CorruptionError, match=r"kvstore\.salvage"):
        kvstore.open(store)
    report, found = salvaged(store)
    assert found == {b"%d" % number: b"x" * 20 for number in range(1, 6)}
    (damage,) = report.left_out
    assert (damage.path, damage.offset) == (str(first), SEGMENT_HEADER_BYTES)
    assert damage.length == length
    assert report.records_read == 5


@pytest.mark.parametrize("which", [0, -1])
def test_a_segment_that_ends_too_early_is_reported(store: Path, which: int) -> None:
    cut = segments(store)[which]
    end = SEGMENT_HEADER_BYTES + record_bytes(b"0", b"x" * 20)
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


def test_salvage_refuses_a_manifest_of_a_newer_format(store: Path) -> None:
    raw = (store / "MANIFEST").read_bytes()
    (store / "MANIFEST").write_bytes(sealed(raw[:8] + b"\2\0\0\0" + raw[12:-4]))
    with pytest.raises(kvstore.NewerFormatError):
        kvstore.salvage(store, store.with_name("saved"))


def test_a_sector_that_can_not_be_read_is_left_out_and_reported(store: Path) -> None:
    filesystem = FaultyFileSystem()
    name = segments(store)[1].name
    filesystem.fail("read", disk_broken(), name, times=99)
    saved = store.with_name("saved")
    try:
        report = kvstore.salvage(store, saved, filesystem=filesystem)
    except OSError as error:
        pytest.fail(f"one sector costs all that could be read: {error}")
    assert read(saved).keys() == {b"0", b"1", b"4", b"5"}
    assert {each.path for each in report.left_out} == {str(store / name)}
    assert "Input/output error" in str(report)


def test_any_other_error_of_the_system_is_no_damage(store: Path) -> None:
    filesystem = FaultyFileSystem()
    filesystem.fail("read", disk_full(), name=".segment", first=3)
    with pytest.raises(OSError, match="No space left"):
        kvstore.salvage(store, store.with_name("saved"), filesystem=filesystem)
    assert not store.with_name("saved").exists(), "nothing is made from half a reading"
