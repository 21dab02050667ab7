"""Every call of every life fails once, in every way that it can."""

from __future__ import annotations

import calls
import pytest
from share import Share

SHARE = Share(calls)


@pytest.mark.parametrize("case", calls.CASES)
def test_a_call_that_fails_breaks_no_promise(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_calls_that_were() -> None:
    SHARE.agrees_with_the_book()
