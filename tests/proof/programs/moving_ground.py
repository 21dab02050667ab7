"""What a store stands on moves under it, and those that it serves get in each other's way.

============ ================================================================================
case         what happens, before the step of a script that the number names
============ ================================================================================
chdir        the working directory changes to one where another store has the same name
renamed      the directory gets another name, and another process makes a store under the old
above        the directory above gets another name, and the same
removed      the directory is removed, with all that is in it
replaced     the same, and another process makes a store under the name
unlocked     somebody removes the file that a writer locks
descriptors  there are no more descriptors, for this one step
few          (in a child) there are fewer descriptors than the store has files
full         a simulated disk is full from now on, and then it is not
tmpfs        the same on a real disk of a few kilobytes, where we may mount one
forks        threads write and sync, and a child is forked that reads, or writes, or closes
same-number  a child has the process number of its parent, as in a namespace of its own
collector    the collector runs inside the store, and finalizers use it
handlers     a signal handler uses the store inside an operation of it
copies       somebody copies the open store
forgotten    nobody closes a store that syncs at intervals
============ ================================================================================

A store goes on in its directory, whatever that is called, and touches no other. Where its
directory is gone, it does not say that something is safe. It refuses nothing for a shortage that
is over. A call from inside another one does what it says, or says that it can't. Nothing hangs.

A case is one of these words; to replay one trial, a number follows.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tests.proof.moves import directories, inside, owners, shortages
from tests.proof.moves.story import LATER, Trial, watched
from tests.proof.programme import Tally, line
from tests.proof.promises import Broken, Promise
from tests.proof.subject import Subject

NAME = "moving-ground"
NEEDS = frozenset({Promise.ONLY_THE_END, Promise.SAFE, Promise.ONE_WRITER})

MOVES: dict[str, tuple[Callable[[Trial], None], Sequence[int]]] = {
    "chdir": (directories.chdir, LATER),
    "renamed": (directories.renamed, LATER),
    "above": (partial(directories.renamed, above="above"), LATER),
    "removed": (directories.removed, LATER),
    "replaced": (directories.replaced, LATER),
    "unlocked": (directories.unlocked, LATER),
    "descriptors": (shortages.descriptors, LATER),
    "few": (shortages.few, range(1)),
    "full": (shortages.full, range(60)),
    "tmpfs": (shortages.tmpfs, range(4)),
    "forks": (owners.forks, range(4)),
    "same-number": (owners.same_number, range(1)),
    "collector": (inside.collector, range(len(inside.OUTSIDE) - 1)),
    "handlers": (inside.handlers, range(inside.TURNS)),
    "copies": (owners.copies, range(1)),
    "forgotten": (owners.forgotten, range(4)),
}
MANY = 20  # trials that make up a case


def cases(_: Subject) -> list[str]:
    """Return every word; those with many trials in parts."""
    told = []
    for name, (_move, numbers) in MOVES.items():
        for start in range(0, len(numbers), MANY):
            some = numbers[start : start + MANY]
            upto = f"-{some[-1]}" if len(some) > 1 else ""
            told.append(f"{name} {some[0]}{upto}")
    return told


def another(_: Subject, seed: int) -> str:
    """Return a case with numbers that nobody has tried, where there are such."""
    chance = random.Random(seed)
    name = chance.choice(list(MOVES))
    fixed = MOVES[name][1] in (LATER, range(1))
    number = chance.choice(MOVES[name][1]) if fixed else chance.randrange(10_000)
    return f"{name} {number}"


def run(subject: Subject, case: str) -> Tally:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Python delivers signals to the main thread alone")
    name, numbers = case.split()
    first, _, last = numbers.partition("-")
    tally = Tally()
    for number in range(int(first), int(last or first) + 1):
        told = line(NAME, subject, name, number)
        folder = Path(tempfile.mkdtemp()).resolve()
        try:
            itself = name in ("handlers", "collector")
            with nullcontext() if itself else watched("it"):
                MOVES[name][0](Trial(subject, number, tally, folder))
        except Broken as error:
            raise error.seen(f"{name}, step {number}", told) from error.__cause__
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        tally.count(f"ground that moved: {name}")
    return tally
