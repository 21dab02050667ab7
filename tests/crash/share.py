"""The share of a programme that every test run has, and what the book says it counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from proof import Programme, Tally

FIGURES = Path(__file__).resolve().parents[2] / "book" / "proof.json"


class Share:
    """Runs the cases of one programme, and adds up what they count."""

    def __init__(self, programme: Programme) -> None:
        self.programme = programme
        self.ran: list[str] = []
        self.tally: Tally = Counter()

    def run(self, case: str) -> None:
        """Run one case."""
        self.tally += self.programme.run(case)
        self.ran.append(case)

    def agrees_with_the_book(self) -> None:
        """Compare what was counted with what the book prints, when every case was run."""
        if len(self.ran) < len(self.programme.CASES):
            pytest.skip("a part of the cases was run")
        told = json.loads(FIGURES.read_text("utf-8"))["figures"][self.programme.NAME]
        assert steady(self.tally) == told, (
            "the chapter prints other figures: run python tests/crash/prove.py --write, "
            "then python book/refresh.py 09"
        )


def steady(tally: Tally) -> dict[str, int]:
    """Return the counts that are the same in every run; a star marks the others."""
    return {what: count for what, count in sorted(tally.items()) if what[-1] != "*"}
