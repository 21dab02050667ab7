"""Copy all that can still be read of a damaged store into a new one.

A store that finds damage refuses to open: it can't know whether a missing record would
have changed the answer. A person can decide that what is left is better than nothing.
Salvage never writes to the damaged store, and says what it had to leave out.

Two things it can't know. Where a record is lost, an older one of its key may come back,
or a key that was deleted. And a batch that was damaged in the middle comes in part; only
at the end of a segment is it left out, since it may never have been whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath

from kvstore.errors import (
    CorruptionError,
    KVStoreError,
    NewerFormatError,
    StoreNotFoundError,
)
from kvstore.filesystem import DISK, FileSystem
from kvstore.index import unpack
from kvstore.manifest import Manifest, read_manifest
from kvstore.mark import read_mark
from kvstore.recovery import LOST_BEFORE, Damage, Newest, survey
from kvstore.reports import Salvage
from kvstore.segment import (
    HEADER_BYTES,
    Description,
    Entry,
    Segment,
    segment_name,
    segment_numbers,
)
from kvstore.store import open


def salvage(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    filesystem: FileSystem = DISK,
) -> Salvage:
    """Copy what is left of the store at `source` into a new store at `target`.

    Returns what was copied and what was left out. Raises `FileExistsError` if there is
    anything at `target`, and `NewerFormatError` for files this program does not know.
    """
    directory, goal = fspath(source), fspath(target)
    if filesystem.exists(goal):
        raise FileExistsError(f"{goal} exists; salvage writes to a new store only")
    manifest = manifest_if_readable(filesystem, directory)
    if manifest is None and not segment_numbers(filesystem.names(directory)):
        raise StoreNotFoundError(f"there is not one segment of a store in {directory}")
    damage: list[Damage] = []
    segments: dict[int, Segment] = {}
    newest, records = Newest(), 0
    for found in segments_of(filesystem, directory, manifest):
        if isinstance(found, Damage):
            damage.append(found)
            continue
        segments[found.number] = found
        for piece in whole_batches(found, manifest):
            if isinstance(piece, Damage):
                damage.append(piece)
            else:
                newest.add(found.number, piece)
                records += 1
    index = newest.index()
    with open(goal, filesystem=filesystem) as copy:
        for key, location in index.items():
            number, offset, length = unpack(location)
            copy[key] = segments[number].value(offset, length, key)
    return Salvage(len(index), records, manifest is not None, tuple(damage))


def manifest_if_readable(filesystem: FileSystem, directory: str) -> Manifest | None:
    """Return the manifest, or None where it is missing or damaged."""
    try:
        return read_manifest(filesystem, directory)
    except NewerFormatError:
        raise
    except (KVStoreError, FileNotFoundError):
        return None


def segments_of(
    filesystem: FileSystem, directory: str, manifest: Manifest | None
) -> Iterator[Segment | Damage]:
    """Yield the segments that make up the store, and damage where one is not whole."""
    present = segment_numbers(filesystem.names(directory))
    if manifest is None:
        known = [Description(number, 0, 0) for number in present]
    else:
        mark = read_mark(filesystem, directory)
        last = manifest.active
        if mark and mark.synced[:2] == last[:2]:  # number and seed
            last = max(last, mark.synced)  # the longer one
        known = [*manifest.sealed, last]
    for number, seed, length in known:
        path = f"{directory}/{segment_name(number)}"
        if number not in present:
            yield Damage(path, 0, length, "the segment is missing")
            continue
        segment = open_readable(filesystem, directory, number, seed)
        yield segment
        if isinstance(segment, Segment) and segment.size < length:
            lost = length - segment.size
            yield Damage(path, segment.size, lost, "the file ends here")


def open_readable(
    filesystem: FileSystem, directory: str, number: int, seed: int
) -> Segment | Damage:
    """Open a segment, with the seed from the manifest where its header is damaged."""
    try:
        segment = Segment.open(filesystem, directory, number)
    except (CorruptionError, NewerFormatError) as error:
        path = f"{directory}/{segment_name(number)}"
        file = filesystem.open(path)
        size = filesystem.size(file)
        if not seed or size < HEADER_BYTES:
            return Damage(path, 0, size, str(error))
        return Segment(filesystem, file, path, number, seed, size)
    if seed and segment.seed != seed:
        reason = "this is another store's segment"
        return Damage(segment.path, 0, segment.size, reason)
    return segment


def without_lost(
    segment: Segment, manifest: Manifest | None
) -> Iterator[Entry | Damage]:
    """Yield what `survey` finds, but call a record that was lost before damage."""
    old_until, sequence = segment.size, 0
    if manifest and manifest.active[:2] == segment.describe()[:2]:  # number and seed
        old_until, sequence = manifest.active.length or segment.size, manifest.sequence
    for found in survey(segment):
        offset, length = found.offset, found.length
        is_old = isinstance(found, Entry) and found.sequence <= sequence
        if is_old and offset >= old_until:
            yield Damage(segment.path, offset, length, LOST_BEFORE)
        else:
            yield found


def whole_batches(
    segment: Segment, manifest: Manifest | None
) -> Iterator[Entry | Damage]:
    """Yield what `survey` finds, but for a last batch whose end is not there."""
    batch: list[Entry] = []
    for found in without_lost(segment, manifest):
        if isinstance(found, Entry):
            batch.append(found)
            if found.continued:
                continue
        elif batch and found.offset + found.length >= segment.size:
            break
        yield from batch
        batch.clear()
        if isinstance(found, Damage):
            yield found
    if batch:
        start = batch[0].offset
        length = segment.size - start
        yield Damage(
            segment.path, start, length, "the batch that begins here has no end"
        )
