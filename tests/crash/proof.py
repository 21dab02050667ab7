"""What the programmes of this folder have in common.

Each programme is a module with four names:

CASES
    the share of the default test run: one line of words each, such as ``rotation always 7``
`another`
    makes a case from a seed, for a run that goes on for as long as it is told
`run`
    runs one case and returns what it counted, or raises `Broken`
`NAME`
    the word before a case in the line that replays it
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

Contents = dict[bytes, bytes]
Tally = Counter[str]


class Programme(Protocol):
    """What a programme has."""

    NAME: str
    CASES: list[str]

    def another(self, seed: int) -> str:
        """Return a case that nobody has run yet."""

    def run(self, case: str) -> Tally:
        """Run one case, and count."""


class Broken(AssertionError):
    """A promise of the store that broke, and in which state of the disk or of its threads."""

    def __init__(self, promise: str, state: str, case: str) -> None:
        super().__init__(promise, state, case)
        self.promise = promise
        self.state = state
        self.case = case

    def __str__(self) -> str:
        return (
            f"{self.promise}\n    {self.state}\n"
            f"    again: python tests/crash/prove.py --replay {self.case!r}"
        )
