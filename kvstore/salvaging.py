"""Copy all that can still be read of a damaged store into a new one.

A store that finds damage refuses to open: it can't know whether a missing record would
have changed the answer. A person can decide that what is left is better than nothing.
Salvage never writes to the damaged store, and says what it had to leave out.

Two things it can't know. Where a record is lost, an older one of its key may come back,
or a key that was deleted. And a batch that was damaged in the middle comes in part; only
at the end of a segment is it left out, since it may never have been whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from kvstore.damage import Damage, scan_past_damage
from kvstore.errors import (
    CorruptionError,
    KVStoreError,
    NewerFormatError,
    StoreNotFoundError,
)
from kvstore.filesystem import Directory, FileSystem
from kvstore.index import IndexBuilder, unpack
from kvstore.manifest import Manifest, read_manifest
from kvstore.opening import AnyPath, open, this_machine
from kvstore.recovery import LOST_BEFORE, note
from kvstore.reports import SalvageReport
from kvstore.segment import (
    MISSING,
    SEGMENT_HEADER_BYTES,
    Entry,
    Segment,
    SegmentMeta,
    segment_name,
    segment_numbers,
)
from kvstore.watermark import read_watermark


def salvage(
    source: AnyPath, target: AnyPath, *, filesystem: FileSystem | None = None
) -> SalvageReport:
    """Copy what is left of the store at `source` into a new store at `target`.

    Returns what was copied and what was left out. Raises `FileExistsError` if there is
    anything at `target`, and `NewerFormatError` for files this program does not know.
    """
    machine = filesystem or this_machine()
    goal = os.fsdecode(target)
    if machine.exists(goal):
        raise FileExistsError(f"{goal} exists; salvage writes to a new store only")
    directory = machine.open_directory(os.fsdecode(source))
    manifest = manifest_if_readable(machine, directory)
    if manifest is None and not segment_numbers(directory.names()):
        raise StoreNotFoundError(
            f"there is not one segment of a store in {directory.path}"
        )
    damage: list[Damage] = []
    segments: dict[int, Segment] = {}
    builder, records = IndexBuilder(), 0
    for found in segments_of(machine, directory, manifest):
        if isinstance(found, Damage):
            damage.append(found)
            continue
        segments[found.number] = found
        for piece in whole_batches(found, manifest):
            if isinstance(piece, Damage):
                damage.append(piece)
            else:
                note(builder, found.number, piece)
                records += 1
    locations = builder.locations()
    with open(goal, filesystem=machine) as copy:
        for key, location in locations.items():
            number, offset, length = unpack(location)
            copy[key] = segments[number].value(offset, length, key)
    return SalvageReport(len(locations), records, manifest is not None, tuple(damage))


def manifest_if_readable(
    filesystem: FileSystem, directory: Directory
) -> Manifest | None:
    """Return the manifest, or None where it is missing or damaged."""
    try:
        return read_manifest(filesystem, directory)
    except NewerFormatError:
        raise
    except (KVStoreError, FileNotFoundError):
        return None


def segments_of(
    filesystem: FileSystem, directory: Directory, manifest: Manifest | None
) -> Iterator[Segment | Damage]:
    """Yield the segments that make up the store, and damage where one is not whole."""
    present = segment_numbers(directory.names())
    if manifest is None:
        known = [SegmentMeta(number, 0, 0) for number in present]
    else:
        watermark = read_watermark(filesystem, directory)
        last = manifest.active
        if watermark and watermark.synced[:2] == last[:2]:  # number and seed
            last = max(last, watermark.synced)  # the longer one
        known = [*manifest.sealed, last]
    for number, seed, length in known:
        path = f"{directory.path}/{segment_name(number)}"
        if number not in present:
            yield Damage(path, 0, length, MISSING)
            continue
        segment = open_readable(filesystem, directory, number, seed)
        yield segment
        if isinstance(segment, Segment) and segment.size < length:
            lost = length - segment.size
            yield Damage(path, segment.size, lost, "the file ends here")


def open_readable(
    filesystem: FileSystem,
    directory: Directory,
    number: int,
    seed: int,
) -> Segment | Damage:
    """Open a segment, with the seed from the manifest where its header is damaged."""
    try:
        segment = Segment.open(filesystem, directory, number, sealed=True)
    except (CorruptionError, NewerFormatError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EIO:
            raise
        name = segment_name(number)
        size = filesystem.size(directory.open(name))
        if not seed or size < SEGMENT_HEADER_BYTES:
            return Damage(f"{directory.path}/{name}", 0, size, str(error))
        meta = SegmentMeta(number, seed, size)
        return Segment(filesystem, directory, meta)
    if seed and segment.seed != seed:
        reason = "this is another store's segment"
        return Damage(segment.path, 0, segment.size, reason)
    return segment


def without_lost(
    segment: Segment, manifest: Manifest | None
) -> Iterator[Entry | Damage]:
    """Yield what `scan_past_damage` finds, but call a record that was lost before damage."""
    old_until, sequence = segment.size, 0
    if manifest and manifest.active[:2] == segment.meta()[:2]:  # number and seed
        old_until, sequence = manifest.active.length or segment.size, manifest.sequence
    for found in scan_past_damage(segment):
        offset, length = found.offset, found.length
        is_old = isinstance(found, Entry) and found.sequence <= sequence
        if is_old and offset >= old_until:
            yield Damage(segment.path, offset, length, LOST_BEFORE)
        else:
            yield found


def whole_batches(
    segment: Segment, manifest: Manifest | None
) -> Iterator[Entry | Damage]:
    """Yield what `scan_past_damage` finds, but for a last batch whose end is not there."""
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
