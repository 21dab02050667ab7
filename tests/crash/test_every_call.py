"""The process dies, or the power goes, at every single call that changes a file.

A store lives a short life that touches everything: it is made, filled, rotated, deleted
from, compacted, closed. Its file system ends it at its first change, at its second, and so
on. Whatever is on the disk then has to open, and has to hold a state of the history that
is no older than the last one that was promised to be safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from power import Died, MortalFileSystem
from support import Contents, copy_of, recovered

import kvstore


@dataclass
class Life:
    """What a store is told, and how much of it is done, and how much of that is safe."""

    states: list[Contents] = field(default_factory=lambda: [{}])
    done: int = 0
    safe: int = 0

    def change(self, db: kvstore.Store, *changes: tuple[bytes, bytes | None]) -> None:
        """Put or delete one key; several of them in a batch."""
        state = self.states[-1].copy()
        for key, value in changes:
            if value is None:
                del state[key]
            else:
                state[key] = value
        self.states.append(state)
        if len(changes) == 1:
            apply(db, *changes[0])
        else:
            with db.batch() as batch:
                for key, value in changes:
                    apply(batch, key, value)
        self.done = len(self.states) - 1

    def is_safe(self) -> None:
        """Note that all that is done was promised to be on the disk."""
        self.safe = self.done


def apply(
    target: kvstore.Store | kvstore.Batch, key: bytes, value: bytes | None
) -> None:
    """Put a key, or delete it."""
    if value is None:
        del target[key]
    else:
        target[key] = value


def live(directory: Path, filesystem: MortalFileSystem, life: Life) -> None:
    """Lead a short life that touches everything."""
    with kvstore.open(directory, segment_bytes=100, filesystem=filesystem) as db:
        for key in (b"a", b"b", b"c"):
            life.change(db, (key, b"1" * 9))
        db.sync()
        life.is_safe()
        life.change(db, (b"a", None))
        life.change(db, (b"b", b"2"), (b"d", b"2"), (b"c", None))
        life.change(db, (b"e", b"3"))
        db.compact()
        life.is_safe()
        life.change(db, (b"e", None))
        life.change(db, (b"a", b"4" * 99))
        life.change(db, (b"b", b"5"))  # in a segment that has just been begun
        db.sync()
        life.is_safe()
        db.compact(0.3)
        life.is_safe()
    life.is_safe()


def test_a_crash_at_any_call_leaves_the_store_before_or_after_it(
    tmp_path: Path,
) -> None:
    for die_at in range(1, 10_000):
        directory = tmp_path / str(die_at) / "store"
        directory.mkdir(parents=True)
        filesystem = MortalFileSystem(directory=directory, die_at=die_at)
        life = Life()
        try:
            live(directory, filesystem, life)
        except Died as death:
            where = str(death)
        else:
            break
        after = filesystem.after_power_cut(tmp_path / str(die_at) / "cut")
        for what, remains in after:
            found = recovered(remains)
            possible = life.states[life.safe :]
            assert found in possible, f"power lost {where}, {what}: not in {possible}"
        found = recovered(copy_of(directory))
        possible = life.states[life.done :]
        assert found in possible, f"killed {where}: {found} is not in {possible}"
    assert die_at > 80, "the life of this store is meant to make many calls"
