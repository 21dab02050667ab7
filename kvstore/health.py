"""Why a store does not take writes, if it does not.

There are four reasons: it was opened for reading, it belongs to the parent of this
process, it was closed, or something failed after which nobody knows what of the last
writes is on the disk. The last one stays until the store is opened again, which reads
the files anew. PostgreSQL learned in 2018 that trying the fsync once more is no way out:
the kernel has forgotten what it could not write (Rebello and others, 2020).
"""

from __future__ import annotations

from kvstore.errors import (
    ClosedError,
    KVStoreError,
    ReentrantError,
    WriteRefusedError,
)


class Health:
    """Whether a store takes writes.

    `trouble` is None while it does. Code that fails half-way assigns what it was doing,
    and the error: an assignment, since a call is a place at which a signal could come
    first, and take the failure's place.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.trouble: KVStoreError | tuple[str, BaseException] | None = None

    @property
    def is_closed(self) -> bool:
        """Say whether the store was closed."""
        return isinstance(self.trouble, ClosedError)

    def refusal(self) -> KVStoreError:
        """Return the reason to refuse writes, as a new error to raise."""
        trouble = self.trouble
        assert trouble is not None
        if isinstance(trouble, KVStoreError):
            return type(trouble)(*trouble.args)
        what, error = trouble
        return WriteRefusedError(
            f"{self._path} takes no more writes, since {what} failed ({error!r}); "
            f"reading goes on. Fix the cause, close the store and open it again"
        )

    def check(self) -> None:
        """Raise the reason, if there is one to refuse writes."""
        if self.trouble is not None:
            raise self.refusal()  # not by a name: an error in its own frame is a circle

    def check_open(self) -> None:
        """Raise `ClosedError` if the store was closed."""
        if self.is_closed:
            self.check()


def reentrant() -> ReentrantError:
    """Return the error for a call from inside."""
    return ReentrantError(
        "the store was called from inside one of its own calls, by a signal handler or a "
        "finalizer; have that set a flag, and call the store afterwards"
    )
