"""What a store stands on moves, and those that it serves get in each other's way."""

from __future__ import annotations

import pytest

from tests.proof.programs import moving_ground
from tests.proof.share import Share

SHARE = Share(moving_ground)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_often_the_ground_moved() -> None:
    SHARE.agrees_with_the_book()
