"""Signals come at every point of every operation."""

from __future__ import annotations

import pytest

from tests.proof.programs import interruptions
from tests.proof.share import Share

SHARE = Share(interruptions)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_interrupts_that_were() -> None:
    SHARE.agrees_with_the_book()
