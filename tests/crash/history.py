"""What a store was told, what of it was acknowledged, and whether it kept that.

The history lives outside the store and outside its disk. It is told of every change before
the store is, and again when the store says that the change is done, or on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from proof import Contents

Changes = dict[bytes, bytes | None]  # None: the key is deleted

TOLD = "T7, safe when you say: a change that was acknowledged as on the disk is gone"
DONE = "T6, only the end: a change that had returned did not outlive its process"
BATCH = "T5, all or nothing: of a batch a part is there"
INVENTED = "T3, the newest, checked: there is a key or a value that was never written"
BACK = "T6, only the end: a key is back from the dead"
NO_PREFIX = "T6, only the end: what is there is no prefix of the history"


@dataclass
class History:
    """The states that a store went through, and how far it has answered for them."""

    states: list[Contents] = field(default_factory=lambda: [{}])
    done: int = 0  # the last change that has returned
    safe: int = 0  # the last change that was acknowledged as on the disk
    founded: bool = False  # whether the making of the store has returned
    mended: bool = False  # whether the store was opened since the last power cut

    def plan(self, changes: Changes) -> None:
        """Note a change, or a batch of them, that the store is about to be told."""
        state = self.states[-1] | {k: v for k, v in changes.items() if v is not None}
        for key in (key for key, value in changes.items() if value is None):
            state.pop(key, None)
        self.states.append(state)

    def forget(self) -> None:
        """Take back a change that the store has refused."""
        self.states.pop()

    def is_done(self) -> None:
        """Note that every change has returned."""
        self.done = len(self.states) - 1

    def is_safe(self) -> None:
        """Note that all that is done was acknowledged as on the disk."""
        self.safe = self.done

    def goes_on_from(self, state: Contents) -> None:
        """Begin anew with what a crash has left."""
        self.states, self.done, self.safe = [state], 0, 0

    def after_a_power_cut(self, found: Contents) -> str | None:
        """Return the promise that broke, if what was found after a power cut is wrong."""
        return self._broken(found, self.safe, TOLD)

    def after_a_kill(self, found: Contents) -> str | None:
        """Return the promise that broke, if what a killed process left is wrong."""
        return self._broken(found, self.done, DONE)

    def _broken(self, found: Contents, least: int, lost: str) -> str | None:
        if found in self.states[least:]:
            return None
        if found in self.states[:least]:
            return lost
        written = {pair for state in self.states for pair in state.items()}
        if not written.issuperset(found.items()):
            return INVENTED
        if any(between(found, *pair) for pair in pairwise(self.states)):
            return BATCH
        if any(key not in state for key in found for state in self.states[least:]):
            return BACK
        return NO_PREFIX

    def possible(self, least: int) -> str:
        """Return the states that would have been right, in words."""
        return " or ".join(map(in_words, self.states[least:]))


def between(found: Contents, before: Contents, after: Contents) -> bool:
    """Say whether some of a batch's changes are there, and others are not."""
    keys = found.keys() | before.keys() | after.keys()
    return all(found.get(k) in (before.get(k), after.get(k)) for k in keys)


def in_words(contents: Contents) -> str:
    """Return the contents of a store, with values cut to what helps."""
    pairs = (f"{key!r}: {value[:12]!r}" for key, value in sorted(contents.items()))
    return "{" + ", ".join(pairs) + "}"
