"""Recovery: what a store makes of its files, whole, torn or damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import kvstore
from kvstore.index import IndexBuilder
from kvstore.posix import DISK
from kvstore.record import CONTINUED, DELETE, PUT
from kvstore.recovery import LOST_BEFORE, Flaw, recover, replay
from kvstore.segment import SEGMENT_HEADER_BYTES
from tests.helpers import (
    copy_of,
    even_store,
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
    synced_bytes,
)

# One segment


@pytest.mark.parametrize("torn", [1, 20, 30])
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
    assert builder.locations().keys() == {b"a"}, "there is a part of a torn batch"
    assert outcome.end == SEGMENT_HEADER_BYTES + record_bytes(b"a", b"1")
    assert outcome.sequence == 1
    assert outcome.flaw is not None
    if torn == 20:  # the whole last record
        assert outcome.flaw.offset == outcome.end, "the batch begins there"
        assert "has no end" in outcome.flaw.reason


@pytest.mark.parametrize(
    ("old_until", "sequence", "end"),
    [
        (22, 3, 66),  # 4 and 9 came behind 3, as they should
        (44, 4, 66),
        (44, 8, 66),
        (44, 9, 44),
        (22, 4, 22),
        (23, 4, 66),  # the second begins in front of the place
        (0, 3, 0),
        (66, 100, 66),  # all of it was there before
    ],
)
def test_replay_ends_in_front_of_a_record_that_was_lost_before(
    tmp_path: Path, old_until: int, sequence: int, end: int
) -> None:
    """Places count from the first of three records, each of 22 bytes."""
    records = [(PUT, number, b"key", b"") for number in (3, 4, 9)]
    segment = new_segment(tmp_path, 1, *records)
    first = SEGMENT_HEADER_BYTES
    outcome = replay(segment, IndexBuilder(), first + old_until, sequence)
    assert outcome.end == first + end
    assert outcome.flaw == (None if end == 66 else Flaw(first + end, LOST_BEFORE))


# Torn tails


def test_a_torn_tail_is_cut_off_kept_and_reported(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    extend(segments(path)[0], b"\x01torn")
    torn = copy_of(path, "torn")
    last, end = segments(torn)[0], SEGMENT_HEADER_BYTES + record_bytes(b"ada", b"1815")
    with kvstore.open(torn, "r") as db:
        words = "00000001.segment: a torn tail of 5 bytes at offset 58"
        assert words in str(db.torn_tail)
        assert str(db.torn_tail).endswith("was left out")
    with kvstore.open(torn) as db:
        cut = db.torn_tail
        assert cut is not None, "what is cut off is reported"
        assert cut[:3] == (str(last), end, 5)
        assert cut.kept_as == f"{last}.cut-58", "it is kept beside the segment"
        assert Path(cut.kept_as).read_bytes() == b"\x01torn", "nothing is lost"
        assert f"kept as {last}.cut-58" in str(cut)
        assert "too few for a record" in str(cut), "it says why"
        assert str(cut) in [each.getMessage() for each in caplog.records]
        assert caplog.records[-1].levelno == logging.WARNING
        assert last.stat().st_size == end, "the segment ends behind the last record"
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


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_store_with_an_older_manifest_is_whole(
    path: Path, flag: kvstore.Flag
) -> None:
    """Older versions noted no length of the active segment after a compaction.

    The number beside it is that of the store's last record, which may stand in there.
    """
    expected = small_store(path)
    manifest = manifest_of(path)
    *_, last = old_segment(path, manifest.active.number).scan()
    older = manifest.advanced(last.sequence, manifest.active._replace(length=0))
    (path / "MANIFEST").write_bytes(older.encode())
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
    first = segments(even_store(path))[0]
    end = SEGMENT_HEADER_BYTES + record_bytes(b"0", b"x" * 20)
    first.write_bytes(first.read_bytes()[:end])
    with pytest.raises(kvstore.CorruptionError, match="sealed with") as caught:
        kvstore.open(path)
    assert caught.value.offset == end


@pytest.mark.parametrize("which", [0, -1])
def test_a_segment_of_another_store_is_not_taken_for_ours(
    tmp_path: Path, which: int
) -> None:
    ours, theirs = even_store(tmp_path / "ours"), even_store(tmp_path / "theirs")
    mixed = segments(ours)[which]
    mixed.write_bytes((theirs / mixed.name).read_bytes())
    with pytest.raises(kvstore.CorruptionError, match="another store") as caught:
        kvstore.open(ours)
    assert caught.value.path == str(mixed)


# The mark


def test_the_mark_says_how_far_the_log_is_on_the_disk(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    assert synced_bytes(path) == SEGMENT_HEADER_BYTES, "a put alone does not move it"
    db.sync()
    db[b"alan"] = b"1912"
    end = SEGMENT_HEADER_BYTES + record_bytes(b"ada", b"1815")
    assert synced_bytes(path) == end
    db.close()
    assert synced_bytes(path) == segments(path)[0].stat().st_size
