"""What every store promises, and how a broken promise is told."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Promise(Enum):
    """What a store promises. Every failure of the programme names one of these."""

    ONE_WRITER = "T1, one writer"
    ONE_MOMENT = "T2, one moment"
    NEWEST = "T3, the newest, checked"
    STILL = "T4, a still picture"
    WHOLE = "T5, all or nothing"
    ONLY_THE_END = "T6, only the end"
    SAFE = "T7, safe when you say"
    NO_GUESSES = "T8, no guesses"


class Breach(NamedTuple):
    """One of the ways to break a promise, in words."""

    promise: Promise
    words: str

    def __str__(self) -> str:
        return f"{self.promise.value}: {self.words}"


class Broken(AssertionError):
    """A promise of a store that broke: how, in which state, and the case that shows it.

    Where it is noticed the state may be known only in part, and the case not at all: see
    `seen`.
    """

    def __init__(self, breach: Breach, state: str, case: str = "") -> None:
        super().__init__(breach, state, case)
        self.breach = breach
        self.state = state
        self.case = case

    def seen(self, where: str, case: str) -> Broken:
        """Return the same, told by somebody who knows where it was, and the case."""
        return Broken(self.breach, f"{where}; {self.state}", case)

    def __str__(self) -> str:
        again = f"\n    again: python3 tests prove --replay {self.case!r}"
        return f"{self.breach}\n    {self.state}{again if self.case else ''}"
