"""Salvage: what can still be read of a damaged store, in a new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kvstore
from kvstore.segment import SEGMENT_HEADER_BYTES
from tests.disks import NO_SYNC, FaultyFileSystem
from tests.helpers import (
    Contents,
    change,
    copy_of,
    disk_broken,
    disk_full,
    even_store,
    files,
    flip,
    read,
    sealed,
    segments,
    small_store,
)

KEYS = {b"%d" % number for number in range(6)}


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
    shutil.rmtree(target)
    assert report.keys == len(found), "the report counts the keys"
    return report, found


def test_a_whole_store_is_copied_whole(tmp_path: Path) -> None:
    expected = small_store(tmp_path / "store")
    report, found = salvaged(tmp_path / "store")
    assert found == expected
    assert report.left_out == ()
    assert report.manifest_read


@pytest.mark.parametrize("which", [0, 2])
def test_what_is_damaged_is_left_out_and_reported(store: Path, which: int) -> None:
    segment, start = segments(store)[which], SEGMENT_HEADER_BYTES
    whole = segment.read_bytes()
    harm: list[tuple[Callable[[], object], set[int], tuple[int, int]]] = [
        (lambda: flip(segment, start + 18, 2), {0}, (start, 40)),
        (lambda: os.truncate(segment, start + 40), {1}, (start + 40, 40)),
        (segment.unlink, {0, 1}, (0, start + 80)),
    ]
    for work, lost, place in harm:
        work()
        with pytest.raises(kvstore.CorruptionError, match=r"kvstore\.salvage"):
            kvstore.open(store)
        report, found = salvaged(store)
        assert found.keys() == KEYS - {b"%d" % (2 * which + number) for number in lost}
        (damage,) = report.left_out
        assert (damage.path, damage.offset, damage.length) == (str(segment), *place)
        assert report.records_read == 6 - len(lost)
        segment.write_bytes(whole)


@pytest.mark.parametrize("byte", [0, 8, 9, 15, 22, 30])
def test_a_damaged_header_costs_no_record_but_where_there_is_no_manifest(
    store: Path, byte: int
) -> None:
    damaged = segments(store)[1]
    flip(damaged, byte, 5)
    report, found = salvaged(store)
    assert found.keys() == KEYS, (
        "the manifest knows what the records need of the header"
    )
    assert [each.path for each in report.left_out] == [str(damaged)]
    (store / "MANIFEST").write_bytes(b"")
    report, found = salvaged(store)
    assert found.keys() == KEYS - {b"2", b"3"}
    assert report.left_out[0][:3] == (str(damaged), 0, damaged.stat().st_size)


def test_a_segment_of_another_store_is_left_out(store: Path, tmp_path: Path) -> None:
    another = segments(even_store(tmp_path / "theirs"))[0]
    (store / another.name).write_bytes(another.read_bytes())
    report, found = salvaged(store)
    assert found.keys() == KEYS - {b"0", b"1"}
    assert [each.path for each in report.left_out] == [str(store / another.name)]


def test_without_a_manifest_every_segment_counts(store: Path) -> None:
    (store / "MANIFEST").unlink()
    report, found = salvaged(store)
    assert found.keys() == KEYS
    assert not report.manifest_read
    assert "manifest" in str(report)


def test_a_batch_without_an_end_is_left_out(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    change(db, {b"alan": b"1912", b"ada": None})
    torn = copy_of(path, "torn")
    last = segments(torn)[-1]
    last.write_bytes(last.read_bytes()[:-1])
    report, found = salvaged(torn)
    assert found == {b"ada": b"1815"}
    assert report.left_out != ()


def test_a_record_that_was_lost_once_is_not_brought_back(path: Path) -> None:
    with kvstore.open(path) as db:
        db[b"kept"] = b"1"
        length = segments(path)[0].stat().st_size
        db[b"lost"] = b"2"
    whole = segments(path)[0].read_bytes()
    os.truncate(segments(path)[0], length)  # the power went before that
    (path / "MARK").unlink()
    kvstore.open(path).close()
    segments(path)[0].write_bytes(whole)  # the sector comes to light
    report, found = salvaged(path)
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
