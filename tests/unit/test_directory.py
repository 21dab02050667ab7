"""What is in the directory of a store: found, made, and swept."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvstore
from kvstore.directory import create_store, find_store, leftovers
from kvstore.manifest import Manifest
from kvstore.posix import DISK
from kvstore.segment import SEGMENT_HEADER_BYTES
from kvstore.watermark import Watermark
from tests.helpers import (
    FIRST,
    GOLDEN,
    files,
    folder,
    manifest_of,
    manifest_with,
    new_segment,
    read,
    watermark_of,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the path of an empty store."""
    create_store(DISK, folder(tmp_path))
    return tmp_path


def left_over(store: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of the segments that a manifest leaves out."""
    return leftovers(folder(store), manifest)


def test_a_store_begins_with_one_empty_segment(store: Path) -> None:
    manifest = manifest_of(store)
    assert sorted(files(store)) == [FIRST, "MANIFEST", "MARK"]
    assert manifest[:3] == (2, 0, b"")
    assert manifest.active[::2] == (1, SEGMENT_HEADER_BYTES)
    assert watermark_of(store) == Watermark(manifest.active, closed=True)
    assert left_over(store, manifest) == []


def test_a_store_that_begins_anew_goes_on_counting(store: Path) -> None:
    new_segment(store, 9)  # left behind by an interrupted change
    used = manifest_of(store)._replace(next_number=7, sequence=1234)
    (store / "MANIFEST").write_bytes(used.encode())
    create_store(DISK, folder(store))
    manifest = manifest_of(store)
    assert manifest.active.number == 10, "a number was given out twice"
    assert manifest[:2] == (11, 1234)
    assert left_over(store, manifest) == [1, 9]


# That a store whose making was interrupted can be made, see pitfall 27.


@pytest.mark.parametrize("kept", ["MARK", "00000001.segment", "00000002.segment"])
def test_a_store_without_a_manifest_is_not_empty(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).write_bytes((GOLDEN / kept).read_bytes())
    with pytest.raises(kvstore.CorruptionError, match="manifest is missing"):
        find_store(DISK, folder(tmp_path))


def test_only_segments_that_do_not_count_are_left_over(store: Path) -> None:
    manifest = manifest_of(store)
    sealed = new_segment(store, 2).meta()
    new_segment(store, 3)
    (store / "00000001.segment.cut-32").write_bytes(b"a torn tail, kept")
    (store / "notes.txt").write_bytes(b"a stranger's")
    manifest = manifest_with(4, 0, (sealed,), manifest.active)
    assert left_over(store, manifest) == [3]


@pytest.mark.parametrize("digits", [9, 17, 18])
def test_a_segment_of_a_number_that_nobody_gave_out_is_left_alone(
    path: Path, digits: int
) -> None:
    stray = path / f"{'9' * digits}.segment"
    kvstore.open(path).close()
    stray.write_bytes(b"not ours")
    for flag in ("w", "n", "c", "r"):
        with kvstore.open(path, flag, segment_bytes=1) as db:
            if flag != "r":
                db.update({b"ada": b"1815", b"alan": b"1912"})
            assert len(db) == 2
    assert stray.exists(), "it was taken for a leftover"
    assert stray.read_bytes() == b"not ours"


def test_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear ada")
    for flag in ("r", "w", "c", "n"):
        with pytest.raises(kvstore.ForeignDirectoryError, match=r"\.txt is a file"):
            kvstore.open(tmp_path / "letter.txt", flag)
    assert (tmp_path / "letter.txt").read_text() == "dear ada"


def test_hidden_files_and_lost_found_are_not_foreign(path: Path) -> None:
    (path / "lost+found").mkdir(parents=True)
    (path / ".DS_Store").write_bytes(b"\0")
    try:
        kvstore.open(path).close()
    except kvstore.ForeignDirectoryError as error:
        pytest.fail(f"it is taken for foreign: {error}")
    for name in ("notes.txt", "7.segment", "x.segment", "00000001.segment.bak"):
        (path / name).write_text("dear ada")
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
    assert read(path) == {b"ada": b"1815"}
    assert (path / "7.segment").read_text() == "dear ada", "it was there beside ours"
