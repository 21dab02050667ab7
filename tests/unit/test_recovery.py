"""Recovery: what a store makes of its files, whole, torn or damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import kvstore
import kvstore.recovery
from kvstore.index import IndexBuilder
from kvstore.manifest import Manifest
from kvstore.posix import DISK
from kvstore.record import CONTINUED, DELETE, PUT
from kvstore.recovery import LOST_BEFORE, recover, replay
from kvstore.segment import SEGMENT_HEADER_BYTES
from tests.helpers import (
    copy_of,
    extend,
    files,
    folder,
    manifest_of,
    manifest_with,
    new_segment,
    old_segment,
    read,
    record_bytes,
    segments,
    small_store,
    watermark_of,
)

# One segment


@pytest.mark.parametrize("torn", [1, 19, 30])
def test_replay_applies_a_batch_at_its_last_record(tmp_path: Path, torn: int) -> None:
    segment = new_segment(
        tmp_path,
        1,
        (PUT, 1, b"a", b"1"),
        (PUT | CONTINUED, 2, b"b", b""),
        (DELETE | CONTINUED, 3, b"a", b""),
        (PUT, 4, b"c", b""),
    )
    segment.cut(segment.size - torn)
    builder = IndexBuilder()
    outcome = replay(segment, builder)
    assert builder.locations().keys() == {b"a"}, (
        "a batch that is not whole is not there"
    )
    assert outcome.end == SEGMENT_HEADER_BYTES + record_bytes(b"a", b"1")
    assert outcome.sequence == 1
    assert outcome.flaw is not None


def test_replay_says_where_a_batch_without_an_end_begins(tmp_path: Path) -> None:
    segment = new_segment(
        tmp_path, 1, (PUT, 1, b"a", b"1"), (PUT | CONTINUED, 2, b"b", b"")
    )
    trouble = replay(segment, IndexBuilder()).flaw
    assert trouble is not None
    assert trouble.offset == SEGMENT_HEADER_BYTES + record_bytes(b"a", b"1")
    assert "has no end" in trouble.reason


def test_replay_ends_in_front_of_a_record_that_was_lost_before(tmp_path: Path) -> None:
    segment = new_segment(
        tmp_path, 1, (PUT, 3, b"a", b""), (PUT, 4, b"b", b""), (PUT, 9, b"c", b"")
    )
    first, second, third = (entry.offset for entry in segment.scan())
    for old_until, sequence, end in (
        (second, 3, segment.size),  # 4 and 9 came behind 3, as they should
        (third, 4, segment.size),
        (third, 8, segment.size),
        (third, 9, third),
        (second, 4, second),
        (second + 1, 4, segment.size),  # the second begins in front of the place
        (first, 3, first),
        (segment.size, 100, segment.size),  # all of it was there before
    ):
        outcome = replay(segment, IndexBuilder(), old_until, sequence)
        assert outcome.end == end, f"above {sequence} behind {old_until}"
        if end == segment.size:
            assert outcome.flaw is None
        else:
            assert outcome.flaw is not None
            assert (outcome.flaw.offset, outcome.flaw.reason) == (
                end,
                LOST_BEFORE,
            )


# Torn tails


def with_tail(path: Path, tail: bytes) -> Path:
    """Make a store that was not closed, with one record and something after it."""
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    extend(segments(path)[0], tail)
    return copy_of(path, "torn")


def test_a_torn_tail_is_cut_off_kept_and_reported(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn, tail = with_tail(path, b"\x01torn"), b"\x01torn"
    with kvstore.open(torn, "r") as db:
        words = "00000001.segment: a torn tail of 5 bytes at offset 58"
        assert words in str(db.torn_tail)
        assert str(db.torn_tail).endswith("was left out")
    last = segments(torn)[0]
    end = SEGMENT_HEADER_BYTES + record_bytes(b"ada", b"1815")
    with kvstore.open(torn) as db:
        cut = db.torn_tail
        assert cut is not None, "what is cut off is reported"
        assert (cut.path, cut.offset, cut.length) == (str(last), end, len(tail))
        assert cut.kept_as is not None
        assert Path(cut.kept_as).read_bytes() == tail, "nothing is lost"
        assert Path(cut.kept_as).parent == torn, "it is kept beside the segment"
        assert f"kept as {last}.cut-58" in str(cut)
        assert "too few for a record" in str(cut), "it says why"
        assert str(cut) in [each.getMessage() for each in caplog.records]
        assert caplog.records[-1].levelno == logging.WARNING
        assert last.stat().st_size == end, "the segment ends behind the last record"
        assert dict(db) == {b"ada": b"1815"}
        db[b"alan"] = b"1912"
    caplog.clear()
    with kvstore.open(torn) as db:
        assert db.torn_tail is None, "a tail is reported once"
        assert dict(db) == {b"ada": b"1815", b"alan": b"1912"}
    assert not caplog.records


def test_at_most_ten_tails_are_kept_and_the_newest_of_them(path: Path) -> None:
    kvstore.open(path).close()
    for number in range(14):
        db = kvstore.open(path)
        db[b"%d" % number] = b"1"
        crashed = copy_of(path, f"crashed-{number}")
        db.close()
        extend(segments(crashed)[-1], b"torn %d" % number)
        path = crashed
        kvstore.open(path).close()
    kept = {raw for name, raw in files(path).items() if ".cut-" in name}
    assert kept == {b"torn %d" % number for number in range(4, 14)}
    assert len(read(path)) == 14


def older_manifest(directory: Path) -> Manifest:
    """Write a manifest as older versions did, after a compaction, and return it.

    They noted no length of the active segment, and beside it the number of the store's
    last record, which may stand in that segment.
    """
    manifest = manifest_of(directory)
    active = old_segment(directory, manifest.active.number)
    *_, last = active.scan()
    older = manifest.advanced(last.sequence, manifest.active._replace(length=0))
    (directory / "MANIFEST").write_bytes(older.encode())
    return older


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_store_with_an_older_manifest_is_whole(
    path: Path, flag: kvstore.Flag
) -> None:
    expected = small_store(path)
    older = older_manifest(path)
    crashed = copy_of(path, "crashed")
    (crashed / "MARK").unlink()
    for directory in (path, crashed):
        with kvstore.open(directory, flag) as db:
            assert dict(db) == expected
            assert db.torn_tail is None, "no record of old is taken for a lost one"
            assert db.verify().ok
    assert manifest_of(path) == older, "nothing has changed its list"
    noted = manifest_of(crashed).active.length
    assert noted == (0 if flag == "r" else segments(crashed)[-1].stat().st_size)


def test_a_length_that_is_not_known_says_nothing_about_numbers(tmp_path: Path) -> None:
    segment = new_segment(tmp_path, 1, (PUT, 3, b"a", b""), (PUT, 4, b"b", b""))
    for length, sequence, records in ((0, 9, 2), (SEGMENT_HEADER_BYTES, 9, 0)):
        active = segment.meta()._replace(length=length)
        manifest = manifest_with(2, sequence, (), active)
        found = recover(DISK, folder(tmp_path), manifest, None, writable=False)
        assert found.records == records


# Segments that are not what the manifest says


def test_a_sealed_segment_cut_between_two_records_is_damage(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(6)})
    first = segments(path)[0]
    end = SEGMENT_HEADER_BYTES + record_bytes(b"0", b"x" * 20)
    first.write_bytes(first.read_bytes()[:end])
    with pytest.raises(kvstore.CorruptionError, match="sealed with") as caught:
        kvstore.open(path)
    assert caught.value.offset == end


def test_a_segment_of_another_store_is_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        with kvstore.open(tmp_path / name, segment_bytes=100) as db:
            db.update({b"%d" % number: b"x" * 20 for number in range(6)})
    for number in (0, -1):
        mixed = copy_of(tmp_path / "ours", f"mixed{number}")
        name = segments(mixed)[number].name
        (mixed / name).write_bytes((tmp_path / "theirs" / name).read_bytes())
        with pytest.raises(kvstore.CorruptionError, match="another store") as caught:
            kvstore.open(mixed)
        assert caught.value.path == str(mixed / name)


# The mark


def test_the_mark_says_how_far_the_log_is_on_the_disk(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    opened = watermark_of(path)
    assert opened is not None
    assert opened.synced.length == SEGMENT_HEADER_BYTES, "a put alone does not move it"
    db.sync()
    db[b"alan"] = b"1912"
    synced = watermark_of(path)
    assert synced is not None
    assert synced.synced.length == SEGMENT_HEADER_BYTES + record_bytes(b"ada", b"1815")
    assert not synced.closed
    db.close()
    last = watermark_of(path)
    assert last is not None
    assert last.closed
    assert last.synced.length == segments(path)[0].stat().st_size
