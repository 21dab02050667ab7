"""The log store, as the programme sees it.

============================= ============================================================
what is damaged               what has to come of it
============================= ============================================================
the manifest, in any way      an error that names it: `ForeignDirectoryError` if its magic
                              is damaged, `CorruptionError` otherwise. If it is another
                              store's, the error names a segment that it takes for its own
a sealed segment, in any way  `CorruptionError` with its path, and the offset of its header
                              or of the record, or batch, in which the damage begins
the active segment, in its    the same
header or below the mark,
or below what the manifest
says of it
the active segment, above     the history up to the last change that ends before the damage.
both                          A torn tail says where that is and how many bytes follow, and
                              a writer keeps those. Nothing follows if the file was cut
                              between two changes: that looks like a change never written
the mark, in any way          nothing is lost. But it vouches for nothing then: what the
                              manifest says of the active segment is all that does
LOCK, MANIFEST.new, segments  nothing
that the manifest leaves out,
what was kept of a torn tail
============================= ============================================================

One thing is promised less exactly. A record does not say where in its segment it belongs.
Where a sector that begins with a whole record changes places with another one, above the mark
or right at it, the record passes for the next one, and those between are cut off with the
tail. A torn tail is reported then, and every value that is found was written under its key
once.

To open a store, its manifest is read at most three times and each segment once, where a
writer reads the part of the active one above the mark once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import CodeType

import kvstore
from kvstore import compaction, directory, files, health, index, log, opening, store
from kvstore.compaction import Compactor
from kvstore.filesystem import FileSystem
from kvstore.log import Log
from kvstore.powercut import Image
from kvstore.segment import LONGEST_START, WINDOW_BYTES
from tests.proof.engines import log_codecs
from tests.proof.engines import log_format as form
from tests.proof.promises import Promise
from tests.proof.subject import (
    PATH,
    Codecs,
    Engine,
    Expected,
    Flag,
    Layout,
    Left,
    Place,
    Rescue,
    Sync,
    Tail,
    codes_in,
    codes_of,
)


class LogStore:
    """The log store, on any disk."""

    name = "log"
    share = 1.0
    promises = frozenset(Promise)
    lock_file = form.LOCK
    codecs: Codecs = log_codecs
    places: Mapping[CodeType, str] = {
        store.LogStore.__setitem__.__code__: "a put or a delete",
        store.LogStore.__delitem__.__code__: "a put or a delete",
        store.LogStore.change.__code__: "a batch",
        Log._make_ready.__code__: "rotation",
        Log.rotate.__code__: "rotation",
        Log.sync_through.__code__: "a sync",
        store.LogStore.close.__code__: "closing",
        Compactor.run.__code__: "compaction",
        directory.load_alone.__code__: "recovery",
        opening.open.__code__: "opening",
    }
    meets = frozenset(
        (
            *codes_in(
                *(store, log, files, compaction, index, health),
                without={  # what one thread does alone, or when a close fails
                    *("__init__", "begin", "disown", "reentrant"),
                    *("_give_up", "is_durable"),
                },
            ),
            *codes_of(directory.load_beside_a_writer),
        )
    )

    def open(
        self,
        disk: FileSystem,
        flag: Flag = "c",
        sync: Sync = "os",
        small: int | None = None,
        path: str = PATH,
    ) -> Engine:
        size = {} if small is None else {"segment_bytes": small}
        return kvstore.open(path, flag, sync=sync, filesystem=disk, **size)

    def rearrange(self, db: Engine, share: float = 0.0) -> None:
        db.compact(share)

    def torn_tail(self, db: Engine) -> Tail | None:
        torn = db.torn_tail
        if torn is None:
            return None
        return Tail(torn.path, torn.offset, torn.length, torn.kept_as)

    def damage(self, db: Engine) -> list[Place]:
        found = db.verify().damage
        return [Place(each.path, each.offset, each.length) for each in found]

    def salvage(self, disk: FileSystem, source: str, target: str) -> Rescue:
        report = kvstore.salvage(source, target, filesystem=disk)
        silent = report.manifest_read and not report.left_out
        return Rescue(len(report.left_out), silent, str(report))

    def layout(self, image: Image) -> Layout:
        *sealed, active = form.rows_of(image)
        safe = {row.path: row.length for row in sealed}
        safe[active.path] = form.vouched_for(image)
        return Layout(
            live=frozenset({form.MANIFEST, form.MARK, *safe}),
            kept=frozenset(path for path in image if ".cut-" in path),
            records=tuple(safe),
            safe=safe,
            borders=lambda path: form.borders(image[path]).records,
            tail=active.path,
        )

    def unfinished(self, image: Image) -> bool:
        """Say whether there is at most what the making of a store begins with."""
        first = f"{PATH}/00000001.segment"
        begun = {f"{PATH}/", form.LOCK, f"{form.MANIFEST}.new", first}
        return image.keys() <= begun and len(image.get(first, b"")) <= form.HEADER_BYTES

    def expected(self, left: Left, damaged: Image) -> Expected:
        """Say what has to come of damage, as told at the top of this module."""
        errors: dict[str, set[int]] = {}
        *sealed, active = form.rows_of(left.image)
        manifest = damaged.get(form.MANIFEST)
        if manifest != left.image[form.MANIFEST]:
            errors |= form.places_for_manifest(manifest)
        for row in sealed:
            if damaged.get(row.path) != left.image[row.path]:
                errors[row.path] = form.places_in_segment(
                    left.image[row.path], damaged.get(row.path)
                )
        mark_stands = damaged.get(form.MARK) == left.image[form.MARK]
        safe = left.layout.safe[active.path] if mark_stands else active.length
        log = damaged.get(active.path)
        whole = 0 if log is None else form.in_common(left.log, log)
        moved = log is not None and form.stands_elsewhere(left.log, log, whole)
        if whole < safe and not moved:
            written = left.log[: len(left.image[active.path])]
            errors[active.path] = form.places_in_segment(written, log)

        def most(path: str, flag: Flag) -> int:
            size = len(damaged[path])
            if path == form.MANIFEST:
                return 3 * size
            if path not in left.layout.records:
                return size if path == form.MARK else 0
            overlaps = size // WINDOW_BYTES * LONGEST_START
            is_kept = path == active.path and flag == "c"
            return size + overlaps + (max(0, size - safe) if is_kept else 0)

        foreign = manifest is not None and not manifest.startswith(form.MANIFEST_MAGIC)
        end = form.last_before(left.ends, whole)
        return Expected(
            errors, form.MANIFEST if foreign else "", end, moved, most, fixed
        )

    def locks(self, db: Engine) -> Iterable[tuple[object, str]]:
        assert isinstance(db, store.LogStore)
        yield db._compactor, "compacting"
        yield db._files, "changing"
        yield db._log, "syncing"
        yield db._log, "writing"


def fixed(path: str) -> int:
    """Return how many bytes may be asked for without a look at a file's length."""
    if path == form.MARK:
        return form.MARK_BYTES
    return form.HEADER_BYTES if path.endswith(".segment") else 0
