"""A store and a dict that are told the same hold the same, through every crash."""

from __future__ import annotations

import model
import pytest
from proof import Broken
from share import Share

import kvstore

SHARE = Share(model)
CRASHES = ("kills", "power cuts", "torn tails", "failed fsyncs", "full disks")


@pytest.mark.parametrize("case", model.CASES)
def test_a_store_holds_what_a_dict_holds_whatever_it_is_told(case: str) -> None:
    SHARE.run(case)


def test_the_stories_have_crashes_of_every_kind() -> None:
    if len(SHARE.ran) < len(model.CASES):
        pytest.skip("a part of the cases was run")
    for what in CRASHES:
        assert SHARE.tally[f"{what} of the model*"] >= 50, f"hardly any {what}"


def test_the_book_says_how_many_steps_that_were() -> None:
    SHARE.agrees_with_the_book()


def test_a_broken_promise_is_told_with_the_steps_that_break_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kvstore.Store, "clear", kvstore.Store.__len__)
    with pytest.raises(Broken, match="--replay 'model 1'") as caught:
        model.run("1")
    assert caught.value.promise == model.NEWEST, "a clear that does nothing breaks T3"
    steps = caught.value.state.splitlines()
    assert any("clear()" in step for step in steps), f"the steps are not told: {steps}"
