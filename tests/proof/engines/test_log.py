"""The small stores of the proof have in them, as a log store, what they are meant to have."""

from __future__ import annotations

import pytest

from tests.proof.engines import log_format as told
from tests.proof.samples import STATES, left_as
from tests.proof.subject import Left


def left(name: str) -> Left:
    return left_as("log", name)


def safe(name: str) -> int:
    layout = left(name).layout
    return layout.safe[layout.tail]


@pytest.mark.parametrize("name", STATES)
def test_what_a_change_of_files_leaves_is_there_where_it_was_cut_short(
    name: str,
) -> None:
    state = left(name)
    segments = {path for path in state.image if path.endswith(".segment")}
    # A power cut brings back what was removed, and not yet for sure.
    cut_short = name in ("rotating", "merged", "replaced", "torn")
    assert (segments > set(state.layout.records)) == cut_short
    assert (f"{told.MANIFEST}.new" in state.image) == (name in ("rotating", "merged"))
    assert bool(state.layout.kept) == (name == "mended")


@pytest.mark.parametrize("name", ["synced", "closed", "large"])
def test_all_that_was_synced_is_safe(name: str) -> None:
    assert safe(name) == len(left(name).log)


def test_what_is_not_synced_has_a_batch_in_it() -> None:
    records, batches = told.borders(left("unsynced").log)
    assert told.HEADER_BYTES < safe("unsynced") < records[-1]
    assert any(place > safe("unsynced") for place in set(records) - set(batches))
    noted = told.rows_of(left("unsynced").image)[-1].length
    assert told.HEADER_BYTES < noted <= safe("unsynced"), "the compaction's manifest"


def test_the_torn_log_has_whole_records_after_a_hole() -> None:
    state = left("torn")
    torn = state.image[state.layout.tail]
    hole = told.in_common(torn, state.log)
    last = told.borders(state.log).records[-2]
    assert safe("torn") < max(end for end in state.ends if end <= hole) < last
    assert torn[last:] == state.log[last:]


@pytest.mark.parametrize("name", ["closed", "large"])
def test_a_tombstone_stays_because_of_an_older_record(name: str) -> None:
    state = left(name)
    bobs = [
        record.puts
        for path in state.layout.records[:-1]
        for record in told.records_in(state.image[path])
        if record.key == b"bob"
    ]
    assert sorted(bobs) == [False, True]


def test_some_records_fill_sectors_so_that_whole_records_change_places() -> None:
    state = left("closed")
    first = state.image[state.layout.records[0]]
    assert told.borders(first).records == [0, told.HEADER_BYTES, 64, 128, 192]
