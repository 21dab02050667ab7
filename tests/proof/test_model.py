"""A store and a dict that are told the same hold the same, through every crash."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

from kvstore.store import LogStore
from tests.proof.engines import ENGINES
from tests.proof.programs import model
from tests.proof.promises import Broken, Promise
from tests.proof.share import Share

SHARE = Share(model)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


CRASHES = "kills", "power cuts", "torn tails", "failed fsyncs", "full disks"


@pytest.mark.parametrize("what", [*CRASHES, "calls from inside"])
def test_the_stories_have_crashes_of_every_kind(what: str) -> None:
    assert SHARE.counted()[f"{what} of the model*"] >= 50, f"hardly any {what}"


def test_the_book_says_how_many_steps_that_were() -> None:
    SHARE.agrees_with_the_book()


def test_a_broken_promise_is_told_with_the_steps_that_break_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LogStore, "clear", LogStore.__len__)
    at_once = settings(model.SETTINGS, phases=[Phase.generate])
    monkeypatch.setattr(model, "SETTINGS", at_once)
    with pytest.raises(Broken, match="--replay 'model log 1'") as caught:
        model.run(ENGINES["log"], "1")
    assert caught.value.breach.promise is Promise.NEWEST
    steps = caught.value.state.splitlines()
    assert any("clear()" in step for step in steps), f"the steps are not told: {steps}"
