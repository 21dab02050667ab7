"""What the programmes have in common: cases, and counts of different states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from kvstore.powercut import Image
from tests.proof.promises import Promise
from tests.proof.subject import Subject


def fingerprint(*parts: object) -> int:
    """Return a number for some parts: the same in every process, another for others."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest())


def fingerprint_of(image: Image) -> int:
    return fingerprint(sorted(image.items()))


@dataclass
class Tally:
    """What was counted: how often, or how many different ones.

    A star at the end of the words says that the count differs from run to run.
    """

    often: Counter[str] = field(default_factory=Counter)
    different: dict[str, set[int]] = field(default_factory=dict)

    def count(self, words: str, times: int = 1) -> None:
        self.often[words] += times

    def meet(self, words: str, number: int) -> bool:
        """Count something if it is new here; return whether it is."""
        known = self.different.setdefault(words, set())
        before = len(known)
        known.add(number)
        return len(known) > before

    def add(self, other: Tally) -> None:
        self.often += other.often
        for words, numbers in other.different.items():
            self.different.setdefault(words, set()).update(numbers)

    def counts(self) -> dict[str, int]:
        """Return the counts, in the order of their words."""
        of_different = {words: len(found) for words, found in self.different.items()}
        return dict(sorted((self.often | Counter(of_different)).items()))

    def steady(self) -> dict[str, int]:
        """Return the counts that are the same in every run."""
        return {words: n for words, n in self.counts().items() if words[-1] != "*"}


class Programme(Protocol):
    """What a module in `programs` has."""

    NAME: str
    NEEDS: frozenset[Promise]  # the promises without which it makes no sense

    def cases(self, subject: Subject) -> list[str]:
        """Return the cases of the default test run: a line of words each."""

    def another(self, subject: Subject, seed: int) -> str:
        """Return a case that nobody has run yet."""

    def run(self, subject: Subject, case: str) -> Tally:
        """Run one case, and count; raise `Broken` if a promise broke.

        `case` does not name the engine. A case of fewer words stands for many.
        """


def share_of(programme: Programme, subject: Subject) -> list[str]:
    """Return the cases of the default test run for an engine, spread evenly."""
    if not subject.promises.issuperset(programme.NEEDS):
        return []
    return programme.cases(subject)[:: round(1 / subject.share)]


def line(programme: str, subject: Subject, *words: object) -> str:
    return " ".join(filter(None, (programme, subject.name, *map(str, words))))


def total(tallies: Iterable[Tally]) -> Tally:
    result = Tally()
    for tally in tallies:
        result.add(tally)
    return result
