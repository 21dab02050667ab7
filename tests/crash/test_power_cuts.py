"""The power goes after every call of every life, in the ways that it can go."""

from __future__ import annotations

import power_cuts
import pytest
from share import Share

SHARE = Share(power_cuts)


@pytest.mark.parametrize("case", power_cuts.CASES)
def test_a_power_cut_breaks_no_promise(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_states_that_were() -> None:
    assert SHARE.tally["crash images"] >= 20_000 or len(SHARE.ran) < len(
        power_cuts.CASES
    )
    SHARE.agrees_with_the_book()
