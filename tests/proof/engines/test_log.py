"""The small stores of the proof have in them, as a log store, what they are meant to have."""

from __future__ import annotations

import pytest

from tests.proof.engines import log_format as told
from tests.proof.samples import STATES, left_as
from tests.proof.subject import Left


def left(name: str) -> Left:
    return left_as("log", name)


def leftovers(name: str) -> list[str]:
    """Return the segments that the manifest leaves out."""
    found = [path for path in left(name).image if path.endswith(".segment")]
    return sorted(set(found) - set(left(name).layout.records))


def safe(name: str) -> int:
    layout = left(name).layout
    return layout.safe[layout.tail]


def test_the_largest_store_has_four_kibibytes() -> None:
    assert sum(map(len, left("large").image.values())) >= 4096


@pytest.mark.parametrize("name", STATES)
def test_a_real_lock_has_bytes_to_damage(name: str) -> None:
    assert left(name).image[told.LOCK]


@pytest.mark.parametrize("name", ["created", "rotated"])
def test_a_new_segment_holds_no_record(name: str) -> None:
    assert len(left(name).log) == told.HEADER_BYTES
    assert leftovers(name) == []


@pytest.mark.parametrize("name", ["synced", "closed", "large"])
def test_all_that_was_synced_is_safe(name: str) -> None:
    tail = left(name).image[left(name).layout.tail]
    assert safe(name) == len(left(name).log) == len(tail)


def test_what_is_not_synced_has_a_batch_in_it() -> None:
    records, batches = told.borders(left("unsynced").log)
    assert told.HEADER_BYTES < safe("unsynced") < records[-1]
    assert any(place > safe("unsynced") for place in set(records) - set(batches))


def test_the_manifest_of_a_compaction_vouches_for_a_part_of_the_log() -> None:
    noted = told.rows_of(left("unsynced").image)[-1].length
    assert told.HEADER_BYTES < noted <= safe("unsynced")


def test_the_torn_log_has_whole_records_after_a_hole() -> None:
    state = left("torn")
    torn = state.image[state.layout.tail]
    hole = told.in_common(torn, state.log)
    last = told.borders(state.log).records[-2]
    assert safe("torn") < max(end for end in state.ends if end <= hole) < last
    assert torn[last:] == state.log[last:]
    assert len(torn) == len(state.log)


def test_the_mended_store_has_kept_its_tail() -> None:
    state = left("mended")
    (kept,) = state.layout.kept
    assert state.image[kept]
    assert safe("mended") == len(state.image[state.layout.tail]) < len(state.log)


@pytest.mark.parametrize("name", ["rotating", "merged", "replaced"])
def test_a_killed_store_has_segments_that_do_not_count(name: str) -> None:
    assert leftovers(name), f"{name}: there are no leftovers"
    assert (f"{told.MANIFEST}.new" in left(name).image) == (name != "replaced")


@pytest.mark.parametrize("name", ["closed", "large"])
def test_a_tombstone_stays_because_of_an_older_record(name: str) -> None:
    state = left(name)
    bobs = {
        path: record.puts
        for path in state.layout.records[:-1]
        for record in told.records_in(state.image[path])
        if record.key == b"bob"
    }
    assert sorted(bobs.values()) == [False, True]
    assert b"bob" not in state.contents[len(state.log)]


def test_there_are_an_empty_key_and_an_empty_value() -> None:
    state = left("closed")
    contents = state.contents[len(state.log)]
    assert b"" in contents
    assert b"" in contents.values()


def test_some_records_fill_sectors_so_that_whole_records_change_places() -> None:
    state = left("closed")
    first = state.image[state.layout.records[0]]
    assert told.borders(first).records == [0, told.HEADER_BYTES, 64, 128, 192]
