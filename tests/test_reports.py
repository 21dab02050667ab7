"""Reports: numbers that are right, and that print well."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import record_bytes, segments

import kvstore
from kvstore.segment import HEADER_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


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
        assert stats.dead_bytes == 2 * one + record_bytes(b"1"), (
            "what was overwritten, what was deleted, and the delete"
        )
        store_files = [each for each in path.iterdir() if each.name != "LOCK"]
        assert stats.bytes_on_disk == sum(each.stat().st_size for each in store_files)
    with kvstore.open(path, "r") as db:
        assert db.stats() == stats, "a reader counts the same"


def test_stats_of_an_empty_store(path: Path) -> None:
    with kvstore.open(path) as db:
        stats = db.stats()
    assert (stats.keys, stats.live_bytes, stats.dead_bytes) == (0, 0, 0)
    assert stats.bytes_on_disk > HEADER_BYTES
    assert stats.amplification == float("inf")
    assert "inf" in str(stats)


def test_amplification_is_the_bytes_on_disk_for_each_live_byte() -> None:
    assert STATS.amplification == 1.5


def test_stats_print_as_an_aligned_table() -> None:
    lines = str(STATS).splitlines()
    assert lines[0] == "keys          1,234,567"
    assert lines[-1] == "amplification      1.50"
    assert len({len(line) for line in lines}) == 1, (
        "the numbers stand one below another"
    )
    assert len(lines) == 6


class Table(HTMLParser):
    """Reads the cells of a table, and notes tags that are left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and begin a cell."""
        assert tag != "table" or ("class", "kvstore-stats") in attrs
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Take the text of a cell."""
        self.cells.append(data)


def test_stats_show_as_a_table_in_a_notebook() -> None:
    table = Table(STATS._repr_html_())
    assert table.open == [], "every tag is closed"
    rows = list(zip(table.cells[::2], table.cells[1::2], strict=True))
    assert rows == STATS.rows()
    assert ("keys", "1,234,567") in rows


def test_a_verification_says_what_it_read_and_what_is_damaged() -> None:
    whole = kvstore.Verification(2, 1500, 90_000, ())
    assert whole.ok
    assert (
        str(whole)
        == "1,500 records in 2 segments read, all of them as they were written"
    )
    damage = (
        kvstore.Damage("a/1.segment", 32, 1000, "the checksum is wrong"),
        kvstore.Damage("a/2.segment", 99, 5, "zeros"),
    )
    broken = kvstore.Verification(2, 1500, 90_000, damage)
    assert not broken.ok
    assert str(broken).splitlines() == [
        "1,500 records in 2 segments read, damage in 2 places:",
        "  a/1.segment, offset 32, 1,000 bytes: the checksum is wrong",
        "  a/2.segment, offset 99, 5 bytes: zeros",
    ]


def test_a_salvage_says_what_it_copied_and_what_it_left_out() -> None:
    assert str(kvstore.Salvage(1000, 2000, True, ())) == (
        "1,000 keys copied, 2,000 records read"
    )
    assert str(kvstore.Salvage(1, 1, True, ())) == "1 key copied, 1 record read"
    damage = (kvstore.Damage("a/1.segment", 32, 1000, "the checksum is wrong"),)
    text = str(kvstore.Salvage(5, 7, False, damage))
    assert text == (
        "5 keys copied, 7 records read; the manifest could not be read, so every "
        "segment found was used; left out:\n"
        "  a/1.segment, offset 32, 1,000 bytes: the checksum is wrong"
    )
