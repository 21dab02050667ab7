from __future__ import annotations

import pytest

from tests.proof.programs import power_cuts
from tests.proof.share import Share

SHARE = Share(power_cuts)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_much_that_was() -> None:
    SHARE.agrees_with_the_book()
