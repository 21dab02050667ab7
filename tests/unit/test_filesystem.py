"""The budget of what is open: the one part of the interface that does something itself."""

from __future__ import annotations

import gc

from kvstore.filesystem import Budget


class Holder:
    """Holds something open until it has to let go."""

    is_open = True

    def let_go(self) -> None:
        """Close it."""
        self.is_open = False


def test_who_opened_first_lets_go_first() -> None:
    budget, holders = Budget(3), [Holder() for _ in range(5)]
    for holder in holders:
        budget.note(holder)
    assert [each.is_open for each in holders] == [False, False, True, True, True]
    budget.let_go_of_all()
    assert not any(each.is_open for each in holders)
    budget.let_go_of_all()


def test_a_budget_keeps_nobody_alive() -> None:
    budget, last = Budget(2), Holder()
    budget.note(Holder())
    budget.note(last)
    gc.collect()
    budget.note(Holder())
    assert last.is_open
    budget.note(Holder())
    assert not last.is_open, "it was the oldest"
