from __future__ import annotations

import os
import tempfile
from mmap import PAGESIZE
from pathlib import Path

import pytest

from tests.proof import history
from tests.proof.engines import ENGINES
from tests.proof.engines.log import LogStore
from tests.proof.history import Contents
from tests.proof.programs import kills
from tests.proof.programs.kills import Child, Trial, print_of
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

A, B, C, D = b"a", b"b", b"c", b"d"


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """Return a trial after three changes that were acknowledged, and one that was not."""
    made = Trial(LOG, tmp_path / "store", "os", 1)
    for change in ({A: b"1"}, {B: b"2"}, {A: b"3"}, {C: b"4", D: b"4"}):
        made.history.plan(change)
    made.history.done = 3
    made.prints += map(print_of, made.history.states[1:])
    return made


LEFT: dict[str, tuple[Contents, Breach | None]] = {
    "what is done": ({A: b"3", B: b"2"}, None),
    "what was under way": ({A: b"3", B: b"2", C: b"4", D: b"4"}, None),
    "older": ({A: b"1", B: b"2"}, history.DONE),
    "in part": ({A: b"3", B: b"2", C: b"4"}, history.BATCH),
    "a loss in the middle": ({A: b"3"}, history.NO_PREFIX),
    "never written": ({A: b"3", B: b"3"}, history.INVENTED),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_a_kill_left_is_held_against_the_history(trial: Trial, what: str) -> None:
    found, breach = LEFT[what]
    assert trial.history.after_a_kill(found) == breach


def test_an_onlooker_sees_states_of_a_history_and_never_goes_back(
    trial: Trial,
) -> None:
    states = trial.history.states
    for state in (states[0], states[0], states[2], states[3]):
        trial.compare(b"%d\n" % print_of(state))
    for contents, breach in ((states[1], kills.FORWARD), ({B: b"2"}, kills.PICTURE)):
        with pytest.raises(Broken) as caught:
            trial.compare(b"%d\n" % print_of(contents))
        assert caught.value.breach == breach


def test_a_tail_is_torn_only_where_a_write_was_cut_off(trial: Trial) -> None:
    trial.last_words = "a batch: write a, 7 of 9"
    trial.account_for(Tail("a", 50, 7, None))
    trial.last_words = "from outside"
    trial.account_for(Tail("a", 50, 7, None))  # not recovered since
    trial.account_for(Tail("a", 4 * PAGESIZE - 9, 9, None))
    with pytest.raises(Broken, match="no write was cut off"):
        trial.account_for(Tail("a", 50, 8, None))


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
    with pytest.raises(Broken, match=r"again: .*--replay 'kills log os 25 1492'"):
        kills.run(LOG, "os 25 1492")
    assert len(children) > 1
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_by_itself_is_an_error() -> None:
    with Child(os._exit) as child, pytest.raises(Broken, match="ended with status"):
        child.hear_to_the_end(1)
