"""Syncing the log every few seconds, and a last time when nobody holds the store.

A promise about seconds has to hold when a program forgets its store, or ends without
closing it. So the thread holds the log, and not the store: the store is seen to go.
"""

from __future__ import annotations

import queue
import threading
import weakref
from contextlib import suppress

from kvstore.errors import (
    ClosedError,
    ReadOnlyError,
    ReentrantError,
    StoreRemovedError,
    WriteRefusedError,
)
from kvstore.log import Log, logger


def sync_at_intervals(
    store: object, log: Log, stop: queue.SimpleQueue[None], seconds: float
) -> None:
    """Have a thread sync the log of a store, until something is put into `stop`.

    When nobody holds the store any more, and when the program ends, it is synced once
    more.
    """
    thread = threading.Thread(
        target=sync_now_and_then, args=(log, stop, seconds), daemon=True
    )
    thread.start()
    weakref.finalize(store, sync_at_last, log, stop)


def sync_now_and_then(log: Log, stop: queue.SimpleQueue[None], seconds: float) -> None:
    """Sync a log at intervals, until it is to stop, or refuses; a last time in the end."""
    going_on = True
    while going_on:
        try:
            stop.get(timeout=seconds)
            going_on = False
        except queue.Empty:
            pass
        going_on = sync_or_say_why_not(log) and going_on


def sync_at_last(log: Log, stop: queue.SimpleQueue[None]) -> None:
    """Sync the log of a store that nobody holds any more.

    The collector may call this in the middle of anything, even of the thread's own sync.
    Then that thread does it, when it takes up what is put into the queue.
    """
    stop.put(None)
    with suppress(ReentrantError):
        sync_or_say_why_not(log)


def sync_or_say_why_not(log: Log) -> bool:
    """Sync a log; return False where that can't be done any more, and log why."""
    try:
        log.enter(log.sync)
    except (ClosedError, ReadOnlyError):  # ReadOnlyError: in a forked child
        return False
    except (WriteRefusedError, StoreRemovedError, OSError) as error:
        logger.error("the sync in the background failed: %s", error)
        return False
    return True
