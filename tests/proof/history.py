"""What a store was told, what of it was acknowledged, and whether it kept that.

The history lives outside the store and outside its disk. It is told of every change before
the store is, and again when the store says that the change is done, or on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tests.proof.promises import Breach, Promise

Contents = dict[bytes, bytes]
Changes = Mapping[bytes, bytes | None]  # None: the key is deleted

TOLD = Breach(Promise.SAFE, "a change that was acknowledged as on the disk is gone")
DONE = Breach(Promise.ONLY_THE_END, "a change that returned died with its process")
BATCH = Breach(Promise.WHOLE, "of a batch a part is there")
INVENTED = Breach(Promise.NEWEST, "there is a key or a value that was never written")
BACK = Breach(Promise.ONLY_THE_END, "a key is back from the dead")
NO_PREFIX = Breach(Promise.ONLY_THE_END, "what is there is no prefix of the history")


def after(state: Contents, changes: Changes) -> Contents:
    """Return what a state becomes by some changes. To delete what is not there is fine."""
    kept = {key: value for key, value in state.items() if key not in changes}
    return kept | {k: v for k, v in changes.items() if v is not None}


@dataclass
class History:
    """The states that a store went through, and how far it has answered for them."""

    states: list[Contents] = field(default_factory=lambda: [{}])
    done: int = 0  # the last change that has returned
    safe: int = 0  # the last change that was acknowledged as on the disk
    founded: bool = False  # whether the making of the store has returned
    settled: bool = False  # whether the store was opened since the last power cut

    @property
    def now(self) -> Contents:
        """Return what the store holds, or is about to hold."""
        return self.states[-1]

    def plan(self, changes: Changes) -> None:
        """Note a change, or a batch of them, that the store is about to be told."""
        self.states.append(after(self.now, changes))

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

    def after_a_power_cut(self, found: Contents) -> Breach | None:
        """Return the promise that broke, if what was found after a power cut is wrong."""
        return self._breach(found, self.safe, TOLD)

    def after_a_kill(self, found: Contents) -> Breach | None:
        """Return the promise that broke, if what a killed process left is wrong."""
        return self._breach(found, self.done, DONE)

    def _breach(self, found: Contents, least: int, lost: Breach) -> Breach | None:
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


def between(found: Contents, before: Contents, then: Contents) -> bool:
    """Say whether some of a batch's changes are there, and others are not."""
    keys = found.keys() | before.keys() | then.keys()
    return all(found.get(k) in (before.get(k), then.get(k)) for k in keys)


def in_words(contents: Contents | None) -> str:
    """Return the contents of a store, with values cut to what helps; None: no store."""
    if contents is None:
        return "no store"
    pairs = (f"{key!r}: {value[:12]!r}" for key, value in sorted(contents.items()))
    return "{" + ", ".join(pairs) + "}"
