"""Whether the answers that threads got can have come from one key, one at a time.

An operation takes time. It is invoked, it returns, and others run meanwhile. A history of
such operations is linearizable if each can be given one moment between its two stamps, so
that all the answers are those of a key that is asked at these moments, one after the other
(Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", ACM
TOPLAS 12(3), 1990). They also prove that the whole is linearizable if each of its objects
is. So a store that promises nothing across keys can be checked key by key, which is what
keeps the search small.

The search is that of Wing and Gong ("Testing and verifying concurrent objects", Journal of
Parallel and Distributed Computing 17, 1993): try every operation that may come next, and
go back where none fits. What was tried once, the same operations done and the same value
left, is not tried again (Lowe, "Testing for linearizability", Concurrency and Computation:
Practice and Experience 29(4), 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Kind = Literal["put", "delete", "pop", "setdefault", "get", "in"]
Held = bytes | None  # what a key holds; None: there is no such key


class Operation(NamedTuple):
    """One operation on a key: what was asked or answered, and when it began and ended.

    ================ ================================================================
    kind             value
    ================ ================================================================
    ``"put"``        what was put; None deletes the key, whether or not there is one
    ``"delete"``     whether there was a key to delete, or else a `KeyError`
    ``"pop"``        the answer, None for a `KeyError`; deletes the key
    ``"setdefault"`` the answer; `default` is what was put if there was no key
    ``"get"``        the answer, None for a `KeyError`
    ``"in"``         the answer
    ================ ================================================================

    One that never returned may have been done or not, and its answer is not known.
    """

    kind: Kind
    value: bytes | bool | None
    invoked: int
    returned: float = math.inf
    default: bytes | None = None

    def fits(self, held: Held) -> bool:
        """Say whether the answer is right for a key that holds this."""
        if self.kind == "put" or self.returned == math.inf:
            return True
        if self.kind == "setdefault":
            return self.value == self.leaves(held)
        is_value = self.kind in ("get", "pop")
        return self.value == (held if is_value else held is not None)

    def leaves(self, held: Held) -> Held:
        if self.kind == "put":
            assert not isinstance(self.value, bool)
            return self.value
        if self.kind == "setdefault":
            return self.default if held is None else held
        return None if self.kind in ("delete", "pop") else held

    def __str__(self) -> str:
        return f"{self.kind} {self.value!r} ({self.invoked} to {self.returned})"


class Attempt(NamedTuple):
    """A linearization as far as it got: all before `first` and those in `ahead` are done."""

    first: int
    ahead: frozenset[int]
    held: Held

    def then(self, number: int, held: Held) -> Attempt:
        """Return the attempt with one more operation done."""
        first, ahead = self.first, self.ahead | {number}
        while first in ahead:
            ahead -= {first}
            first += 1
        return Attempt(first, ahead, held)

    def next_ones(self, operations: Sequence[Operation]) -> list[int]:
        """Return those that may come next: no other one returned before they were invoked."""
        found, earliest_return = [], math.inf
        for number in range(self.first, len(operations)):
            if operations[number].invoked > earliest_return:
                break
            if number not in self.ahead:
                found.append(number)
                earliest_return = min(earliest_return, operations[number].returned)
        return found


class Misfit(NamedTuple):
    """Where the longest attempt ended: one of these had to come next, and none fits."""

    held: Held
    choices: Sequence[Operation]

    def __str__(self) -> str:
        choices = "; ".join(map(str, self.choices))
        return f"it holds {self.held!r}, and none of these can come next: {choices}"


def misfit(history: Iterable[Operation]) -> Misfit | None:
    """Return None if the history of a key is linearizable; the key is missing at first."""
    operations = sorted(history, key=lambda operation: operation.invoked)
    start = Attempt(0, frozenset(), None)
    to_try, known = [start], {start}
    most_done, longest = -1, Misfit(None, ())
    while to_try:
        attempt = to_try.pop()
        numbers = attempt.next_ones(operations)
        choices = [operations[number] for number in numbers]
        if all(choice.returned == math.inf for choice in choices):
            return None
        done = attempt.first + len(attempt.ahead)
        if done > most_done:
            most_done, longest = done, Misfit(attempt.held, choices)
        # The first to return is tried first: it mostly was the first to be done.
        for number in sorted(numbers, key=lambda n: -operations[n].returned):
            choice = operations[number]
            if choice.fits(attempt.held):
                after = attempt.then(number, choice.leaves(attempt.held))
                if after not in known:
                    known.add(after)
                    to_try.append(after)
    return longest
