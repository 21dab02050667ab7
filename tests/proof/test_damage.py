from __future__ import annotations

import pytest

from tests.proof.engines import ENGINES
from tests.proof.engines.log import LogStore
from tests.proof.programs import damage
from tests.proof.promises import Broken
from tests.proof.samples import left_as
from tests.proof.share import Share
from tests.proof.subject import Expected, Left

SHARE = Share(damage)
LOG = ENGINES["log"]


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_much_that_was() -> None:
    SHARE.agrees_with_the_book()


def test_a_failure_names_the_one_damage_and_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bug: the store notices damage of which its format says nothing."""
    expected = LogStore.expected

    def no_errors(self: LogStore, left: Left, damaged: dict[str, bytes]) -> Expected:
        return expected(self, left, damaged)._replace(errors={})

    with monkeypatch.context() as patch:
        patch.setattr(LogStore, "expected", no_errors)
        with pytest.raises(Broken) as swept:
            damage.run(LOG, "closed cut")
        program, engine, case = swept.value.case.split(" ", 2)
        assert (program, engine) == (damage.NAME, "log")
        assert case.startswith("closed cut ")
        with pytest.raises(Broken) as replayed:
            damage.run(LOG, case)
        assert str(replayed.value) == str(swept.value)
    assert damage.run(LOG, case).counts()["different truncations"] == 1


@pytest.mark.parametrize("kind", ["bit", "swap64", "foreign", "live"])
def test_a_case_with_a_place_is_one_damage(kind: str) -> None:
    path = left_as("log", "closed").layout.tail
    places = {"bit": "57 3", "swap64": f"1 {path} 0", "foreign": "", "live": "12 0"}
    counts = damage.run(LOG, f"closed {kind} {path} {places[kind]}").counts()
    assert [n for what, n in counts.items() if "damages:" not in what] == [1]


def test_a_new_case_is_the_same_for_the_same_seed() -> None:
    case = damage.another(LOG, 11)
    assert case == damage.another(LOG, 11) != damage.another(LOG, 12)
    name = case.split()[0]
    image = left_as("log", name).image
    left_as.cache_clear()
    assert left_as("log", name).image == image, f"{case}: another store"
    assert damage.run(LOG, case).counts()["different mixtures of damage"] > 0
