"""What is in a directory: a store, space for one, or something else.

And what is done with it before a store can be used: make one, read one beside its writer,
or read it alone and put in order what a crash has left.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from kvstore.errors import (
    CorruptionError,
    ForeignDirectoryError,
    LimitError,
    StoreNotFoundError,
)
from kvstore.filesystem import Directory, FileSystem
from kvstore.manifest import (
    MANIFEST,
    MANIFEST_ASIDE,
    MAX_NEXT_NUMBER,
    Manifest,
    install_manifest,
    read_manifest,
    write_manifest_aside,
)
from kvstore.record import MAX_SEQUENCE
from kvstore.recovery import Recovered, recover
from kvstore.segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    segment_name,
    segment_numbers,
)
from kvstore.watermark import WATERMARK, Watermark, WatermarkFile, read_watermark

LOCK = "LOCK"  # the file that the one writer holds locked
NOT_OURS_AND_NO_MATTER = {"lost+found"}  # the root of a file system has one

logger = logging.getLogger("kvstore")


def find_store(filesystem: FileSystem, directory: Directory) -> bool:
    """Say whether there is a store in a directory. If not, there is space for one.

    Raises `ForeignDirectoryError` for a directory of other files, `CorruptionError` for a
    store whose manifest is gone.
    """
    names = [
        name
        for name in directory.names()
        if not name.startswith(".") and name not in NOT_OURS_AND_NO_MATTER
    ]
    if MANIFEST in names or unfinished(filesystem, directory, names):
        return MANIFEST in names
    if directory.exists(MANIFEST):
        return True  # another process has made the store meanwhile
    if WATERMARK in names or segment_numbers(names):
        path = f"{directory.path}/{MANIFEST}"
        raise CorruptionError(
            path, 0, "the manifest is missing, and segments are there"
        )
    raise ForeignDirectoryError(
        f"{directory.path} holds other files ({names[0]}, for one) and is not a store; "
        f"choose an empty or a new directory"
    )


def unfinished(
    filesystem: FileSystem, directory: Directory, names: Collection[str]
) -> bool:
    """Say whether these are at most the traces of a store whose making was interrupted."""
    first = segment_name(1)
    if not {LOCK, MANIFEST_ASIDE, first}.issuperset(names):
        return False
    if first not in names:
        return True
    try:
        file = directory.open(first)
    except FileNotFoundError:  # another process begins the making anew
        return True
    return filesystem.size(file) <= SEGMENT_HEADER_BYTES


def find_or_raise(filesystem: FileSystem, directory: Directory, flag: str) -> bool:
    """Say whether there is a store, or raise where the flag asks for one and none is.

    Nothing is touched before this has found that the directory is a store's.
    """
    found = find_store(filesystem, directory)
    if found:
        manifest_unless_damaged(filesystem, directory)  # raises for a foreign one
    if not found and flag in ("r", "w"):
        raise not_found(directory.path, flag)
    return found


def not_found(path: str, flag: str) -> StoreNotFoundError:
    """Return the error for a path without a store, and a flag that makes none."""
    return StoreNotFoundError(
        f'there is no store at {path}; flag="c" makes one, flag={flag!r} does not'
    )


def manifest_unless_damaged(
    filesystem: FileSystem, directory: Directory
) -> Manifest | None:
    """Return the manifest, or None for a damaged one, which an empty store may replace.

    Raises `ForeignDirectoryError` and `NewerFormatError` for what is not ours to touch.
    """
    with suppress(FileNotFoundError, CorruptionError):
        return read_manifest(filesystem, directory)
    return None


def create_store(filesystem: FileSystem, directory: Directory) -> None:
    """Make an empty store in a directory, in place of the one there, if there is one.

    The new manifest is the moment at which it happens. Before it, nothing is changed.
    """
    previous = manifest_unless_damaged(filesystem, directory)
    number = 1 if previous is None else previous.next_number
    end = AT_ONCE + (number if previous else MAX_NEXT_NUMBER // 2)
    names = directory.names()
    if MANIFEST in names:
        taken = [each for each in segment_numbers(names) if each < end]
        number = max([number, *(each + 1 for each in taken)])
    elif segment_name(1) in names:
        directory.remove(segment_name(1))
    first = Segment.create(filesystem, directory, number)
    sequence = previous.sequence if previous else 0
    fresh = Manifest(number + 1, sequence, b"", first.meta())
    write_manifest_aside(filesystem, directory, fresh)
    install_manifest(directory)
    WatermarkFile(filesystem, directory).write(first.meta(), closed=True)


def load(
    filesystem: FileSystem, directory: Directory, manifest: Manifest, *, writable: bool
) -> tuple[Watermark | None, Recovered]:
    """Read the watermark, and then the segments that a manifest names.

    The watermark comes first: it must not speak of bytes that were written after the
    segments were read.
    """
    watermark = read_watermark(filesystem, directory)
    synced = watermark.synced if watermark else None
    found = recover(filesystem, directory, manifest, synced, writable=writable)
    return watermark, found


def load_beside_a_writer(
    filesystem: FileSystem, directory: Directory
) -> tuple[Manifest, Recovered]:
    """Read a store without changing anything, while another process may write to it.

    A compaction there may take a segment away before it is opened here. Then the
    manifest has changed as well, and the new one leads to where its records went.
    """
    while True:
        manifest = read_manifest(filesystem, directory)
        try:
            return manifest, load(filesystem, directory, manifest, writable=False)[1]
        except CorruptionError:
            if read_manifest(filesystem, directory) == manifest:
                raise


LOST_AT_MOST = 1 << 28  # more records than fit the 4 GiB that an offset can reach


def load_alone(
    filesystem: FileSystem, directory: Directory
) -> tuple[Manifest, Recovered]:
    """Read a store, put right what a crash left, and make sure that all is on the disk.

    After a crash, records may have been lost whose sequence numbers we can't know. A gap
    makes sure that none is given out twice. The manifest notes it, and where the log goes
    on: a lost record that comes to light there is known by its number.
    """
    manifest = read_manifest(filesystem, directory)
    watermark, recovered = load(filesystem, directory, manifest, writable=True)
    recovered.sequence = max(recovered.sequence, manifest.sequence)
    if recovered.sequence > MAX_SEQUENCE - 2 * LOST_AT_MOST:
        raise LimitError(
            f"{directory.path} has no sequence numbers left; copy it into a new store"
        )
    left_behind = leftovers(directory, manifest)
    active = recovered.active.meta()
    if left_behind or watermark != Watermark(active, closed=True):
        recovered.sequence += LOST_AT_MOST
        highest = max([active.number, *left_behind])
        manifest = manifest.advanced(recovered.sequence, active, highest + 1)
        write_manifest_aside(filesystem, directory, manifest)
        install_manifest(directory)
    for number in left_behind:
        with suppress(OSError):  # it goes at the next open
            directory.remove(segment_name(number))
    if recovered.torn_tail is not None:
        logger.warning("%s", recovered.torn_tail)
    return manifest, recovered


def leftovers(directory: Directory, manifest: Manifest) -> list[int]:
    """Return the numbers of segments that an interrupted change left behind.

    A number far beyond those that were given out is none of ours, and is left alone.
    """
    counted = {segment.number for segment in (*manifest.sealed, manifest.active)}
    found = segment_numbers(directory.names())
    end = manifest.next_number + AT_ONCE
    return [number for number in found if number not in counted and number < end]


AT_ONCE = 1 << 20  # more segments than one compaction makes
