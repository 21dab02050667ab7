"""Reports: numbers that are right, and that print well."""

from __future__ import annotations

import re
from pathlib import Path

import kvstore
from kvstore.segment import SEGMENT_HEADER_BYTES
from tests.helpers import record_bytes, segments

STATS = kvstore.Stats(
    keys=1_234_567, segments=12, bytes_on_disk=3000, live_bytes=2000, dead_bytes=999
)


def test_stats_count_keys_segments_and_bytes(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(5)})
        db[b"0"] = b"longer than before"
        del db[b"1"]
        stats = db.stats()
        one = record_bytes(b"0", b"x" * 20)
        newest = record_bytes(b"0", b"longer than before")
        assert stats.keys == 4
        assert stats.segments == len(segments(path)) == 4
        assert stats.live_bytes == 3 * one + newest
        dead = 2 * one + record_bytes(b"1")  # overwritten, deleted, and the delete
        assert stats.dead_bytes == dead
        store_files = [each for each in path.iterdir() if each.name != "LOCK"]
        assert stats.bytes_on_disk == sum(each.stat().st_size for each in store_files)
    with kvstore.open(path, "r") as db:
        assert db.stats() == stats, "a reader counts the same"


def test_stats_of_an_empty_store(path: Path) -> None:
    with kvstore.open(path) as db:
        stats = db.stats()
    assert (stats.keys, stats.live_bytes, stats.dead_bytes) == (0, 0, 0)
    assert stats.bytes_on_disk > SEGMENT_HEADER_BYTES
    assert stats.amplification == float("inf")
    assert "inf" in str(stats)


def test_stats_print_as_an_aligned_table() -> None:
    assert STATS.amplification == 1.5, "the bytes on disk for each live byte"
    lines = str(STATS).splitlines()
    assert lines[0] == "keys          1,234,567"
    assert lines[-1] == "amplification      1.50"
    assert {len(line) for line in lines} == {23}, "the numbers stand one below another"
    assert len(lines) == 6


def test_stats_show_as_a_table_in_a_notebook() -> None:
    table = STATS._repr_html_()
    assert table.startswith('<table class="kvstore-stats">')
    rows = re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", table)
    assert rows == STATS.rows()
    assert ("keys", "1,234,567") in rows


def test_a_verification_says_what_it_read_and_what_is_damaged() -> None:
    whole = kvstore.VerificationReport(2, 1500, 90_000, ())
    assert whole.ok
    words = "1,500 records in 2 segments read, all of them as they were written"
    assert str(whole) == words
    damage = (
        kvstore.Damage("a/1.segment", 32, 1000, "the checksum is wrong"),
        kvstore.Damage("a/2.segment", 99, 5, "zeros"),
    )
    broken = kvstore.VerificationReport(2, 1500, 90_000, damage)
    assert not broken.ok
    assert str(broken).splitlines() == [
        "1,500 records in 2 segments read, damage in 2 places:",
        "  a/1.segment, offset 32, 1,000 bytes: the checksum is wrong",
        "  a/2.segment, offset 99, 5 bytes: zeros",
    ]


def test_a_salvage_says_what_it_copied_and_what_it_left_out() -> None:
    assert str(kvstore.SalvageReport(1000, 2000, True, ())) == (
        "1,000 keys copied, 2,000 records read"
    )
    assert str(kvstore.SalvageReport(1, 1, True, ())) == "1 key copied, 1 record read"
    damage = (kvstore.Damage("a/1.segment", 32, 1000, "the checksum is wrong"),)
    text = str(kvstore.SalvageReport(5, 7, False, damage))
    assert text == (
        "5 keys copied, 7 records read; the manifest could not be read, so every "
        "segment found was used; left out:\n"
        "  a/1.segment, offset 32, 1,000 bytes: the checksum is wrong"
    )
