from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path
from typing import NoReturn

import pytest

from tests.proof import history
from tests.proof.engines import ENGINES
from tests.proof.engines.log import LogStore
from tests.proof.history import Contents
from tests.proof.programs import kills
from tests.proof.programs.kills import ACCOUNTS, DEPOSIT, Child, Trial, print_of, sealed
from tests.proof.promises import Breach, Broken
from tests.proof.share import Share
from tests.proof.subject import Engine, Tail

SHARE = Share(kills)
LOG = ENGINES["log"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_much_that_was() -> None:
    SHARE.agrees_with_the_book()


def test_the_kills_landed_in_every_part_of_the_store() -> None:
    counted = SHARE.counted()
    assert counted["kills"] == 200
    for place in LOG.places.values():
        assert f"kills in {place}*" in counted, f"no writer died in {place}"
    assert counted["torn tails*"], "no writer died in the middle of a record"
    assert counted["read-only openings*"] > counted["kills"]


# --- the programme notices what is wrong --------------------------------------------------

A, B, C, D, E = (b"key-%d" % number for number in range(5))
A1, B2, A3 = sealed(A, 1, 0), sealed(B, 2, 0), sealed(A, 3, 0)
C4, D4, E0 = sealed(C, 4, 0), sealed(D, 4, 0), sealed(E, 0, 0)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """Return a trial after three changes that were acknowledged, and one that was not."""
    made = Trial(LOG, "kills log os 1 1", tmp_path / "store", "os", 1)
    for change in ({A: A1}, {B: B2}, {A: A3}, {C: C4, D: D4}):
        made.history.plan(change)
    made.history.done = 3
    made.prints += map(print_of, made.history.states[1:])
    return made


WRONG: dict[str, tuple[Contents, Breach]] = {
    "older": ({A: A1, B: B2}, history.DONE),
    "in part": ({A: A3, B: B2, C: C4}, history.BATCH),
    "a loss in the middle": ({A: A3}, history.NO_PREFIX),
    "back from the dead": ({A: A3, B: B2, E: E0}, history.BACK),
    "of another key": ({A: B2, B: B2}, kills.CHECKED),
    "changed": ({A: A3.replace(b" 3 ", b" 2 "), B: B2}, kills.CHECKED),
    "money": ({A: A3, ACCOUNTS[0]: sealed(ACCOUNTS[0], 1, DEPOSIT)}, kills.WHOLE),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_kill_left_is_held_against_the_history(trial: Trial, what: str) -> None:
    found, breach = WRONG[what]
    with pytest.raises(Broken) as caught:
        trial.judge(found, "kill 1")
    assert caught.value.breach == breach
    assert str(caught.value).endswith("--replay 'kills log os 1 1'")


@pytest.mark.parametrize("found", [{A: A3, B: B2}, {A: A3, B: B2, C: C4, D: D4}])
def test_a_change_under_way_may_be_there_or_not(trial: Trial, found: Contents) -> None:
    trial.judge(found, "kill 1")


def test_an_onlooker_sees_states_of_a_history_and_never_goes_back(
    trial: Trial,
) -> None:
    states = trial.history.states
    for numbers in ([0, 0], [2], [2, 3]):
        seen = [print_of(states[number]) for number in numbers]
        trial.compare(b"".join(b"%d\n" % each for each in seen))
    assert trial.tally.counts()["read-only openings*"] == 5
    for contents, breach in ((states[1], kills.FORWARD), ({B: B2}, kills.PICTURE)):
        with pytest.raises(Broken) as caught:
            trial.compare(b"%d\n" % print_of(contents))
        assert caught.value.breach == breach


def test_a_tail_is_torn_only_where_a_write_was_cut_off(trial: Trial) -> None:
    trial.account_for(Tail("a", 50, 7, None), "a batch: write a, 7 of 9")
    trial.account_for(Tail("a", 50, 7, None), "from outside")  # not recovered since
    trial.account_for(Tail("a", 4 * PAGESIZE - 9, 9, None), "from outside")
    with pytest.raises(Broken, match="no write was cut off"):
        trial.account_for(Tail("a", 50, 8, None), "from outside")


def test_a_planted_bug_is_found_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: what an engine rearranges loses a key."""
    children, fork = [], os.fork

    def noted_fork() -> int:
        children.append(fork())
        return children[-1]

    rearrange = LogStore.rearrange

    def lose_a_key(self: LogStore, db: Engine, share: float = 0.0) -> None:
        rearrange(self, db, share)
        db.popitem()

    monkeypatch.setattr(LogStore, "rearrange", lose_a_key)
    monkeypatch.setattr(os, "fork", noted_fork)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Broken):
        kills.run(LOG, "os 25 1492")
    assert len(children) > 1
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    assert list(tmp_path.iterdir()) == []


# --- the processes ------------------------------------------------------------------------


def idle(_: int) -> NoReturn:
    while True:
        signal.pause()


def fail(_: int) -> NoReturn:
    raise ValueError("by design")


def end(_: int) -> NoReturn:
    os._exit(3)


def test_a_child_is_gone_after_its_block() -> None:
    with pytest.raises(KeyError), Child(idle, "a case") as child:
        raise KeyError
    with pytest.raises(ChildProcessError):
        os.waitpid(child.process, os.WNOHANG)


HEAR: list[Callable[[Child], bytes]] = [
    Child.hear,
    lambda child: child.hear_to_the_end(lines=1_000),
]


@pytest.mark.parametrize("hear", HEAR, ids=["next", "to the end"])
@pytest.mark.parametrize(
    ("work", "words"), [(fail, "by design"), (end, "status 768")], ids=["fail", "end"]
)
def test_a_child_that_fails_or_ends_by_itself_is_an_error_of_the_parent(
    work: Callable[[int], NoReturn], words: str, hear: Callable[[Child], bytes]
) -> None:
    with Child(work, "a case") as child, pytest.raises(Broken, match=words):
        hear(child)
