"""The index: locations packed into integers, and what is counted from them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from samples import FIXED

from kvstore.index import Index, pack, unpack

half = st.integers(0, (1 << 32) - 1)


@FIXED
@given(st.integers(0, 1 << 64), half, half)
def test_a_location_comes_back_as_it_was_packed(
    segment: int, offset: int, length: int
) -> None:
    location = unpack(pack(segment, offset, length))
    assert location == (segment, offset, length)
    assert (location.segment, location.offset, location.length) == location


def test_an_index_is_a_dictionary() -> None:
    index = Index([(b"ada", 1), (b"alan", 2)])
    index[b"grace"] = 3
    del index[b"ada"]
    assert list(index.items()) == [(b"alan", 2), (b"grace", 3)]


def test_live_bytes_are_counted_segment_by_segment() -> None:
    seed = 5
    chance = random.Random(seed)
    index, expected = Index(), dict.fromkeys((1, 2, 1 << 40), 0)
    for n in range(500):
        number, length = chance.choice(list(expected)), chance.randrange(19, 1 << 32)
        index[b"%d" % n] = pack(number, chance.randrange(1 << 32), length)
        expected[number] += length
    assert index.live_bytes() == expected, f"seed {seed}: the count is wrong"
    assert Index().live_bytes().total() == 0


def test_a_key_moves_to_its_records_new_place() -> None:
    index = Index({b"ada": pack(1, 32, 26), b"alan": pack(1, 58, 27)})
    index.move(b"ada", pack(1, 32, 26), pack(2, 500, 26))
    assert index == {b"ada": pack(2, 500, 26), b"alan": pack(1, 58, 27)}


def test_a_key_that_was_written_or_deleted_meanwhile_stays_as_it_is() -> None:
    index = Index({b"ada": pack(3, 32, 26)})
    index.move(b"ada", pack(1, 32, 26), pack(2, 32, 26))
    index.move(b"alan", pack(1, 58, 27), pack(2, 58, 27))
    assert index == {b"ada": pack(3, 32, 26)}, "an older record won over a newer one"
