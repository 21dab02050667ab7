"""A log-structured key-value store: a mapping from bytes to bytes that outlives you.

    import kvstore

    with kvstore.open("people") as db:
        db[b"ada"] = b"1815"

This module names what is public, and nothing more.
"""

from kvstore.compaction import Compaction
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
    StoreNotFoundError,
    WriteRefusedError,
)
from kvstore.recovery import Cut, Damage
from kvstore.reports import Salvage, Stats, Verification
from kvstore.salvage import salvage
from kvstore.store import Batch, Store, open

__all__ = [
    "BadRecordError",
    "Batch",
    "ClosedError",
    "Compaction",
    "CorruptionError",
    "Cut",
    "Damage",
    "ForeignDirectoryError",
    "KVStoreError",
    "LimitError",
    "LockedError",
    "NewerFormatError",
    "ReadOnlyError",
    "Salvage",
    "Stats",
    "Store",
    "StoreNotFoundError",
    "Verification",
    "WriteRefusedError",
    "open",
    "salvage",
]
