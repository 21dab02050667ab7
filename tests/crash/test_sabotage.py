"""Bugs are planted, and the tests have to notice every one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import astuple, replace

import pytest
import sabotage
from bugs import BUGS, Bug
from sabotage import Verdict
from share import FIGURES

HERE = sabotage.ROOT / "tests" / "crash"


def in_a_new_process(*arguments: str) -> list[Verdict]:
    """Run Python in a process that has not loaded the package; return the verdicts.

    What this run of pytest tells its own processes is none of the business of the next one.
    """
    told = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=told,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout, f"the bugs could not be planted:\n{done.stderr}"
    return [Verdict(**verdict) for verdict in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    """Plant every bug."""
    found = in_a_new_process(str(HERE / "sabotage.py"), "--json")
    return {verdict.bug: verdict for verdict in found}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[bug.name]
    assert verdict.caught, (
        f"{bug.words}, and {bug.test} does not notice: {verdict.words}"
    )


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_has_exactly_one_place(bug: Bug) -> None:
    source = (sabotage.PACKAGE / f"{bug.module}.py").read_text("utf-8")
    assert source.count(bug.old) == 1, (
        f"{bug.name}: kvstore/{bug.module}.py has changed, and the bug has no place in it"
    )
    assert bug.plant(source) != source, f"{bug.name} changes nothing"


PROGRAM = """
import json, sys
from dataclasses import asdict
sys.path.insert(0, sys.argv[1])
import sabotage
from bugs import Bug
verdict = sabotage.attempt_in_a_fork(Bug(*json.loads(sys.argv[2])))
print(json.dumps([asdict(verdict)]))
"""

REAL = BUGS[0]
MISSED = {
    "a remark changes nothing": (
        replace(REAL, new=f"{REAL.old}                # nothing\n"),
        "pytest ended with OK",
    ),
    "the test does not exist": (
        replace(REAL, test="tests/test_of_nothing.py::test_nothing"),
        "pytest ended with USAGE_ERROR",
    ),
    "the bug has no place": (replace(REAL, old="no such line"), "LookupError"),
    "the bug is no Python": (replace(REAL, new=")\n"), "SyntaxError"),
    "the test stumbles": (replace(REAL, new=f"{'':16}1 / 0\n"), "ZeroDivisionError"),
}


@pytest.mark.parametrize("why", MISSED)
def test_what_no_check_has_noticed_counts_as_missed(why: str) -> None:
    bug, words = MISSED[why]
    (verdict,) = in_a_new_process("-c", PROGRAM, str(HERE), json.dumps(astuple(bug)))
    assert words in verdict.words, f"{why}, and another thing happened: {verdict.words}"
    assert not verdict.caught, f"{why}, and that counts as caught"


def test_there_are_at_least_forty_five_bugs_and_the_book_lists_them() -> None:
    assert len(BUGS) >= 45
    assert len({bug.name for bug in BUGS}) == len(BUGS), "two bugs have one name"
    told = json.loads(FIGURES.read_text("utf-8"))["bugs"]
    assert told == [[bug.words, bug.module, bug.test] for bug in BUGS], (
        "run python tests/crash/prove.py --write, then python book/refresh.py 09"
    )
