"""Every damage to every file of small stores, and that the stores are what they should be."""

from __future__ import annotations

import itertools
import logging
from operator import itemgetter

import damage
import pytest
from proof import Broken, Contents
from share import Share

import kvstore
from kvstore.manifest import LOCK, MANIFEST_ASIDE
from kvstore.segment import HEADER_BYTES

SHARE = Share(damage)


@pytest.fixture(autouse=True)
def torn_tails_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Keep ten thousand warnings out of the log."""
    caplog.set_level(logging.ERROR, "kvstore")


@pytest.mark.parametrize("case", damage.CASES)
def test_damage_is_found_or_does_no_harm(case: str) -> None:
    SHARE.run(case)


def undamaged(name: str) -> damage.State:
    """Return a state of a store."""
    return damage.state_named(name)


def leftovers(name: str) -> list[str]:
    """Return the segments in a state that the manifest leaves out."""
    state = undamaged(name)
    found = [path for path in state.image if path.endswith(".segment")]
    return sorted(set(found) - set(state.segments))


def test_the_largest_store_has_four_kibibytes() -> None:
    assert sum(map(len, undamaged("large").image.values())) >= 4096


@pytest.mark.parametrize("name", damage.STATES)
def test_a_real_lock_has_bytes_to_damage(name: str) -> None:
    assert undamaged(name).image[damage.in_store(LOCK)]


@pytest.mark.parametrize("name", ["created", "rotated"])
def test_a_new_segment_holds_no_record(name: str) -> None:
    state = undamaged(name)
    assert len(state.log) == HEADER_BYTES
    assert leftovers(name) == []


@pytest.mark.parametrize("name", ["synced", "closed", "large"])
def test_the_mark_vouches_for_all_that_was_synced(name: str) -> None:
    state = undamaged(name)
    assert state.safe == len(state.log) == len(state.image[state.active])


def test_what_is_not_synced_has_a_batch_in_it() -> None:
    state = undamaged("unsynced")
    records, batches = damage.borders(state.log)
    assert HEADER_BYTES < state.safe < records[-1]
    assert any(place > state.safe for place in set(records) - set(batches))


def test_the_manifest_of_a_compaction_vouches_for_a_part_of_the_log() -> None:
    state = undamaged("unsynced")
    assert HEADER_BYTES < damage.noted(state.image) <= state.safe


def test_the_torn_log_has_whole_records_behind_a_hole() -> None:
    state = undamaged("torn")
    torn = state.image[state.active]
    hole = damage.in_common(torn, state.log)
    last = damage.borders(state.log).records[-2]
    assert state.safe < max(end for end in state.ends if end <= hole) < last
    assert torn[last:] == state.log[last:]
    assert len(torn) == len(state.log)


def test_the_mended_store_has_kept_its_tail() -> None:
    state = undamaged("mended")
    (kept,) = (path for path in state.image if ".cut-" in path)
    assert state.image[kept]
    assert state.safe == len(state.image[state.active]) < len(state.log)


@pytest.mark.parametrize("name", ["rotating", "merged", "replaced"])
def test_a_killed_store_has_segments_that_do_not_count(name: str) -> None:
    assert leftovers(name), f"{name}: there are no leftovers"
    aside = damage.in_store(MANIFEST_ASIDE) in undamaged(name).image
    assert aside == (name != "replaced")


@pytest.mark.parametrize("name", ["closed", "large"])
def test_a_tombstone_stays_because_of_an_older_record(name: str) -> None:
    state = undamaged(name)
    bobs = {
        path: value
        for path in state.segments[:-1]
        for _, key, value in damage.records_in(state.image[path])
        if key == b"bob"
    }
    assert sorted(bobs.values(), key=bool) == [None, *filter(None, bobs.values())]
    assert len(bobs) == 2
    assert b"bob" not in state.contents[len(state.log)]


def test_there_are_an_empty_key_and_an_empty_value() -> None:
    state = undamaged("closed")
    contents = state.contents[len(state.log)]
    assert b"" in contents
    assert b"" in contents.values()


def test_some_records_fill_sectors_so_that_whole_records_change_places() -> None:
    state = undamaged("closed")
    starts = damage.borders(state.image[state.segments[0]]).records
    assert starts == [0, HEADER_BYTES, 64, 128, 192]


def newest_in(segments: list[bytes]) -> Contents:
    """Return what undamaged segments hold: of each key the newest record."""
    records = sorted(
        itertools.chain(*map(damage.records_in, segments)), key=itemgetter(0)
    )
    last = {key: value for _, key, value in records}
    return {key: value for key, value in last.items() if value is not None}


@pytest.mark.parametrize("name", ["closed", "torn", "merged", "chance-1", "chance-2"])
def test_the_account_agrees_with_what_the_files_hold(name: str) -> None:
    state = undamaged(name)
    sealed = [state.image[path] for path in state.segments[:-1]]
    noted = damage.noted(
        state.image
    )  # what a compaction dropped is not needed from here
    for end in (each for each in state.ends if each >= noted):
        found = newest_in([*sealed, state.log[:end]])
        assert found == state.contents[end], f"{name}: the log cut at {end}"


def test_a_failure_names_the_one_damage_and_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kvstore.recovery, "check_sealed", lambda *_: None)
        with pytest.raises(Broken) as swept:
            damage.run("closed cut")
        line = swept.value.case
        program, case = line.split(" ", 1)
        assert program == damage.NAME
        assert case.startswith("closed cut 00000001.segment ")
        with pytest.raises(Broken) as replayed:
            damage.run(case)
        assert str(replayed.value) == str(swept.value)
    assert damage.run(case)["truncations"] == 1


@pytest.mark.parametrize(
    "case",
    [
        "closed bit 00000001.segment 57 3",
        "closed swap64 00000001.segment 1 00000001.segment 2",
        "closed foreign MANIFEST",
        "closed live MARK 12 0",
        "chance-1 several cut MARK 3 + gone LOCK",
    ],
)
def test_a_case_with_a_place_is_one_damage(case: str) -> None:
    tally = damage.run(case)
    kinds = {"bits", "sectors swapped", "files exchanged", "mixtures"}
    kinds.add("bits under an open store")
    assert sum(tally[kind] for kind in kinds) == 1


def test_a_new_case_is_the_same_for_the_same_seed() -> None:
    case = damage.another(11)
    assert case == damage.another(11) != damage.another(12)
    image = undamaged(case.split()[0]).image
    damage.state_named.cache_clear()
    assert undamaged(case.split()[0]).image == image, f"{case}: another store"
    assert damage.run(case)["mixtures"] > 0


def test_the_book_says_how_much_damage_that_was() -> None:
    SHARE.agrees_with_the_book()
