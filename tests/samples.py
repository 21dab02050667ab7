"""What several test files share: fixed randomness, flipped bits, calls in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults import FaultyFileSystem
from hypothesis import settings

import kvstore

PACKAGE = Path(kvstore.__file__).parent
GOLDEN = Path(__file__).parent / "golden"

# The same examples in every run, and nothing kept between runs.
FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=200)


@dataclass
class SteadyFileSystem(FaultyFileSystem):
    """A file system whose random bytes are 1, 2, 3 and so on, in every run."""

    given: int = 0

    def random_bytes(self, count: int) -> bytes:
        self.given += 1
        return self.given.to_bytes(count, "little")


def flipped(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each bit of `raw`, and `raw` with that bit flipped."""
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def first_missing(log: Sequence[str], steps: Sequence[str]) -> str | None:
    """Return the first step that does not come in the log after the steps before it."""
    position = 0
    for step in steps:
        try:
            position = log.index(step, position) + 1
        except ValueError:
            return step
    return None
