"""A log-structured key-value store: a mapping from bytes to bytes that outlives you.

    import kvstore

    with kvstore.open("people") as db:
        db[b"ada"] = b"1815"

This module names what is public, and nothing more.
"""

from kvstore.damage import Damage
from kvstore.engine import Batch, Flag, Store, Sync
from kvstore.errors import (
    BadRecordError,
    ClosedError,
    CorruptionError,
    ForeignDirectoryError,
    KVStoreError,
    LimitError,
    LockedError,
    NewerFormatError,
    ReadOnlyError,
    ReentrantError,
    StoreNotFoundError,
    StoreRemovedError,
    UnsupportedPlatformError,
    WriteRefusedError,
)
from kvstore.opening import open
from kvstore.recovery import TornTail
from kvstore.reports import CompactionReport, SalvageReport, Stats, VerificationReport
from kvstore.salvaging import salvage

__all__ = [
    "BadRecordError",
    "Batch",
    "ClosedError",
    "CompactionReport",
    "CorruptionError",
    "Damage",
    "Flag",
    "ForeignDirectoryError",
    "KVStoreError",
    "LimitError",
    "LockedError",
    "NewerFormatError",
    "ReadOnlyError",
    "ReentrantError",
    "SalvageReport",
    "Stats",
    "Store",
    "StoreNotFoundError",
    "StoreRemovedError",
    "Sync",
    "TornTail",
    "UnsupportedPlatformError",
    "VerificationReport",
    "WriteRefusedError",
    "open",
    "salvage",
]
