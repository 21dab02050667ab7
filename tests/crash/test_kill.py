"""A process that writes, killed with kill -9 some twenty times in a row.

What a put or a batch wrote is in the kernel when it returns, and outlives the process. So
the next process finds everything that the last one was told is done, perhaps a little
more, and of that only whole changes in their order.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Contents

import kvstore

ROUNDS, CHANGES = 20, 3000
SEED = 1492

Change = dict[bytes, bytes | None]

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)


def changes(seed: int, contents: Contents) -> Iterator[Change]:
    """Yield changes that fit what a store holds; it holds the change when it is yielded."""
    chance = random.Random(seed)
    for _ in range(CHANGES):
        change: Change = {}
        for _ in range(chance.choice((1, 1, 1, 5))):
            key = b"%d" % chance.randrange(60)
            if key in contents and chance.random() < 0.3:
                change[key] = None
            else:
                change[key] = chance.randbytes(chance.randrange(80))
        for key, value in change.items():
            if value is None:
                del contents[key]
            else:
                contents[key] = value
        yield change


def write(directory: Path, seed: int, contents: Contents, done: int) -> None:
    """Make changes, and say after each that it is done. This is what gets killed."""
    with kvstore.open(directory, segment_bytes=2000) as db:
        for number, change in enumerate(changes(seed, contents)):
            if len(change) == 1:
                ((key, value),) = change.items()
                if value is None:
                    del db[key]
                else:
                    db[key] = value
            else:
                with db.batch() as batch:
                    for key, value in change.items():
                        if value is None:
                            del batch[key]
                        else:
                            batch[key] = value
            os.write(done, b".")
            if number % 100 == 99:
                db.compact(0.5)


def kill_after(directory: Path, seed: int, contents: Contents, count: int) -> int:
    """Have a child write, kill it after some changes, and return how many were done."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            write(directory, seed, contents, write_end)
        finally:
            os._exit(1)  # it was meant to be killed before this
    os.close(write_end)
    with open(read_end, "rb", buffering=0) as pipe:
        done = 0
        while done < count:
            done += len(pipe.read(count - done) or pytest.fail("the writer failed"))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        done += len(pipe.readall() or b"")
    assert os.WIFSIGNALED(status), "the writer was meant to be killed"
    return done


def test_what_was_done_outlives_a_killed_process(tmp_path: Path) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    contents: Contents = {}
    for number in range(ROUNDS):
        seed = SEED + number
        done = kill_after(
            tmp_path / "store", seed, contents.copy(), chance.randrange(600)
        )
        with kvstore.open(tmp_path / "store", segment_bytes=2000) as db:
            found = dict(db)
            assert db.verify().ok
        made, states = contents.copy(), [contents.copy()]
        for _ in changes(seed, made):
            states.append(made.copy())
            if len(states) > done + 2:
                break
        assert found in states[done:], (
            f"round {number}: {done} changes were done, and the store holds "
            f"{'an older state' if found in states else 'what never was a state'}"
        )
        contents = found
    assert contents, "the rounds were meant to leave something"
