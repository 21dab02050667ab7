"""Which files an open store stands on, and how that changes.

The manifest on the disk and this object say the same, but for the moment between a rename
and the assignment after it. Whoever changes the files holds the lock `changing`, writes the
new manifest aside, which may fail and do no harm, and then installs it; if anything
interrupts the installing, writes are refused from then on.

A segment that a compaction has replaced is retired. Its file is removed when no iteration
can need it any more.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from contextlib import suppress

from kvstore.errors import CorruptionError, LimitError, StoreRemovedError
from kvstore.filesystem import Directory, FileSystem
from kvstore.manifest import (
    MAX_NEXT_NUMBER,
    Manifest,
    install_manifest,
    write_manifest_aside,
)
from kvstore.segment import Segment


class Files:
    """The files of an open store.

    `segments` has every segment that can be read, by number: those of the manifest, and
    the retired ones.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        directory: Directory,
        manifest: Manifest,
        segments: dict[int, Segment],
    ) -> None:
        self.filesystem = filesystem
        self.directory = directory
        self.manifest = manifest
        self.segments = segments
        self.make_lock()
        self._numbers = itertools.count(manifest.next_number)
        self._retired: list[tuple[int, Segment]] = []

    def make_lock(self) -> None:
        """Make the lock for changing files, and in a forked child make it anew."""
        self.changing = threading.RLock()

    def sealed(self) -> list[Segment]:
        """Return the segments that take no more records."""
        return [self.segments[each.number] for each in self.manifest.sealed]

    def sizes(self) -> dict[int, int]:
        """Return how many bytes each segment of the store has, by number."""
        manifest = self.manifest
        sizes = {each.number: each.length for each in manifest.sealed}
        active = self.segments.get(manifest.active.number)
        sizes[manifest.active.number] = active.size if active else 0  # 0: just closed
        return sizes

    def new_segment(self) -> Segment:
        """Make a segment that the manifest does not know yet."""
        number = next(self._numbers)
        if number >= MAX_NEXT_NUMBER - 1:
            raise LimitError(
                f"{self.directory.path} has no numbers for segments left; copy it into a "
                f"new store"
            )
        return Segment.create(self.filesystem, self.directory, number)

    def write_aside(self, manifest: Manifest) -> None:
        """Write a manifest to be installed. An error here changes nothing."""
        write_manifest_aside(self.filesystem, self.directory, manifest)

    def install(self, manifest: Manifest, new: Iterable[Segment] = ()) -> None:
        """Let the manifest that was written aside count, and the new segments with it.

        The caller refuses writes from then on if this raises.
        """
        self.segments.update({segment.number: segment for segment in new})
        install_manifest(self.directory)
        self.manifest = manifest

    def retire(self, segments: Iterable[Segment], moment: int) -> None:
        """Have files removed when no iteration needs them that began before `moment`."""
        self._retired += [(moment, segment) for segment in segments]

    def sweep(self, oldest: float) -> None:
        """Remove what no iteration needs, the oldest of which began at `oldest`."""
        with self.changing:
            due = [pair for pair in self._retired if pair[0] <= oldest]
            if not due:
                return
            for _, segment in due:
                self.segments.pop(segment.number, None)
                segment.let_go()
            self.discard(segment for _, segment in due)
            self._retired = [pair for pair in self._retired if pair[0] > oldest]

    def discard(self, segments: Iterable[Segment]) -> None:
        """Remove the files of segments that the manifest does not name.

        One that can't be removed goes at the next open.
        """
        named = {meta.number for meta in (*self.manifest.sealed, self.manifest.active)}
        for segment in segments:
            if segment.number not in named:
                with suppress(OSError):
                    self.directory.remove(segment.name)

    def hold_for_iterations(self) -> None:
        """Keep segments open for iterations that go on when the store is closed.

        As many as the budget allows; another writer may take the names of the others.
        """
        wanted = [*(each for _, each in self._retired), *self.segments.values()]
        for segment in wanted[: self.filesystem.budget.most]:
            with suppress(OSError, CorruptionError):
                segment.hold()

    def let_go(self) -> None:
        """Drop every file, and the directory."""
        self.segments = {}
        self._retired = []
        self.directory.close()

    def check_directory(self) -> None:
        """Raise `StoreRemovedError` if the directory has no name any more."""
        removed = False
        with suppress(OSError):  # no answer: what was synced is synced all the same
            removed = self.directory.is_removed()
        if removed:
            raise StoreRemovedError(
                f"{self.directory.path} was removed while the store was open, and what it "
                f"held is gone; write what is still in memory to another store"
            )
