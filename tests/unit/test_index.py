"""The index: places packed into integers, layers that freeze, the newest of all records."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from kvstore.index import (
    GONE,
    MOST_FROZEN,
    STEP,
    Index,
    IndexBuilder,
    Moment,
    pack,
    unpack,
)
from tests.helpers import FIXED

half = st.integers(0, (1 << 32) - 1)


@FIXED
@given(st.integers(0, 1 << 64), half, half)
def test_a_location_comes_back_as_packed(
    segment: int, offset: int, length: int
) -> None:
    location = unpack(pack(segment, offset, length))
    assert location == (segment, offset, length)
    assert (location.segment, location.offset, location.length) == location


def moment_of(index: Index) -> Moment:
    """Freeze what an index holds, as the log does."""
    return index.moment(*index.merge_layers())


def held(moment: Moment) -> dict[bytes, int]:
    """Return what a moment holds."""
    pairs = list(moment.layers.locations())
    assert len(pairs) == len(dict(pairs)), "a key comes twice"
    return dict(pairs)


def test_an_index_of_many_layers_equals_a_dict_and_moments_stay_as_they_were() -> None:
    for seed in range(6):
        chance, index = random.Random(seed), Index()
        expected: dict[bytes, int] = {}
        moments: list[tuple[Moment, dict[bytes, int]]] = []
        for number in range(1, 400):
            keys = [b"%d" % chance.randrange(30) for _ in range(chance.choice((1, 3)))]
            changes = {
                key: GONE if key in expected and chance.random() < 0.4 else number
                for key in keys
            }
            index.apply(changes)
            expected |= changes
            expected = {key: place for key, place in expected.items() if place}
            if chance.random() < 0.2:
                moments.append((moment_of(index), expected.copy()))
            if moments and chance.random() < 0.15:
                moments.pop(chance.randrange(len(moments)))
            if chance.random() < 0.1:
                old, new = chance.randrange(1, number + 1), 10**6 + number
                index.move((key, old, new) for key in list(expected))
                expected = {k: new if p == old else p for k, p in expected.items()}
            stayed = [held(moment) == then for moment, then in moments]
            assert all(stayed), f"seed {seed}: a moment has changed"
            got = {key: index.get(key) or GONE for key in map(b"%d".__mod__, range(30))}
            assert {k: p for k, p in got.items() if p} == expected, f"seed {seed}"
            assert len(index) == len(expected), f"seed {seed}: miscounted"
            index.fold()
        assert len(index.frozen) <= MOST_FROZEN + 1, "a look-up takes ever more steps"
        moments.clear()
        while index.fold():
            pass
        assert (index.top, index.frozen) == (expected, ()), "one dictionary is left"
        assert index.get == index.top.get, "and a look-up is a look-up there"


def test_no_step_of_a_fold_is_longer_than_it_may_be() -> None:
    index = Index({b"%d" % number: 1 for number in range(3 * STEP)})
    moment = moment_of(index)
    index.apply({b"%d" % number: 2 for number in range(STEP, 5 * STEP)})
    assert not index.fold(), "nothing can be folded while a moment is needed"
    assert index.is_needed
    del moment
    (base,) = index.frozen
    sizes = [len(base)]
    while index.fold():
        sizes.append(len(base))
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(steps) <= STEP
    assert len(index) == len(base) == 5 * STEP


def test_the_oldest_moment_is_that_of_the_one_who_still_looks() -> None:
    index = Index()
    assert index.oldest_moment() > 10**9
    first, second = index.pin(), index.pin()
    assert index.oldest_moment() == first.number < second.number < index.next_moment()
    del first
    assert index.oldest_moment() == second.number


def test_some_key_is_found_though_many_were_deleted_there() -> None:
    index = Index({b"%d" % number: 1 for number in range(3 * STEP)})
    for layers in (1, 2):
        taken = []
        for _ in range(STEP + 5):
            key = index.some_key()
            assert key is not None
            index.apply({key: GONE})
            taken.append(key)
        assert len(set(taken)) == len(taken), f"a key came twice, with {layers} layers"
        kept = moment_of(index)
    assert len(index) == STEP - 10
    assert len(held(kept)) == STEP - 10
    assert Index().some_key() is None


def test_live_bytes_are_counted_segment_by_segment() -> None:
    seed = 5
    chance = random.Random(seed)
    index, expected = Index(), dict.fromkeys((1, 2, 1 << 40), 0)
    for n in range(500):
        number, length = chance.choice(list(expected)), chance.randrange(19, 1 << 32)
        index.apply({b"%d" % n: pack(number, chance.randrange(1 << 32), length)})
        expected[number] += length
    live = moment_of(index).live_bytes()
    assert live == expected, f"seed {seed}: the count is wrong"


def test_a_key_that_was_written_or_deleted_meanwhile_is_not_moved() -> None:
    index = Index({b"ada": 3, b"alan": 1})
    index.move([(b"ada", 1, 2), (b"alan", 1, 2), (b"bob", 1, 2)])
    assert index.top == {b"ada": 3, b"alan": 2}, "an older record won over a newer one"


def test_the_newest_record_wins_in_whatever_order_they_are_seen() -> None:
    history = [
        (1, b"a", pack(1, 100, 20)),
        (5, b"a", pack(2, 100, 30)),
        (2, b"b", GONE),
        (1, b"b", pack(1, 200, 20)),
        (4, b"c", GONE),
        (6, b"c", pack(3, 400, 20)),
    ]
    for order in itertools.permutations(history):
        builder = IndexBuilder()
        for record in order:
            builder.add(*record)
        index = {key: unpack(place) for key, place in builder.locations().items()}
        assert index == {b"a": (2, 100, 30), b"c": (3, 400, 20)}, (
            f"the sequence number decides, and nothing else: {order}"
        )
