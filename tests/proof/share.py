"""The share of a programme that every test run has, and what the book says it counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proof.engines import ENGINES
from tests.proof.programme import Programme, Tally, share_of

FIGURES = Path(__file__).resolve().parents[2] / "book" / "proof.json"


class Share:
    """Runs the cases of one programme, and adds up what they count, engine by engine."""

    def __init__(self, programme: Programme) -> None:
        self.programme = programme
        self.cases = [
            f"{name} {case}"
            for name, subject in ENGINES.items()
            for case in share_of(programme, subject)
        ]
        self.ran: set[str] = set()
        self.tallies = {name: Tally() for name in ENGINES}

    def run(self, case: str) -> None:
        """Run one case; its first word is the engine's name."""
        name, _, words = case.partition(" ")
        self.tallies[name].add(self.programme.run(ENGINES[name], words))
        self.ran.add(case)

    def counted(self, engine: str = "log") -> dict[str, int]:
        """Return what was counted, or skip the test if only a part of the cases was run."""
        if self.ran != set(self.cases):
            pytest.skip("a part of the cases was run")
        return self.tallies[engine].counts()

    def agrees_with_the_book(self) -> None:
        """Compare what was counted with what the book prints."""
        told = json.loads(FIGURES.read_text("utf-8"))["figures"]
        for name, tally in self.tallies.items():
            self.counted(name)
            assert tally.steady() == told[name][self.programme.NAME], (
                "the chapter prints other figures: run python3 tests prove --write, "
                "and then the chapter"
            )
