"""Bugs are planted, and the tests have to notice every one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.proof.mutants import MUTANTS, ROOT, Mutant
from tests.proof.mutants.planting import Verdict
from tests.proof.share import FIGURES


def in_a_new_process(*arguments: str) -> list[Verdict]:
    """Run Python in a process that has not loaded the package; return the verdicts.

    What this run of pytest tells its own processes is none of the business of the next one.
    """
    told = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
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
    found = in_a_new_process("-m", "tests.proof.mutants.planting", "--json")
    return {verdict.bug: verdict for verdict in found}


@pytest.mark.parametrize("bug", MUTANTS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Mutant, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[bug.name]
    assert verdict.caught, (
        f"{bug.words}, and {bug.test} does not notice: {verdict.words}"
    )


@pytest.mark.parametrize("bug", MUTANTS, ids=lambda bug: bug.name)
def test_a_bug_has_exactly_one_place(bug: Mutant) -> None:
    source = bug.file.read_text("utf-8")
    assert bug.plant(source) != source, f"{bug.name} changes nothing"


PROGRAM = """
import json, sys
from dataclasses import asdict
from tests.proof.mutants import Mutant
from tests.proof.mutants.planting import attempt_in_a_fork
verdict = attempt_in_a_fork(Mutant(*json.loads(sys.argv[1])))
print(json.dumps([asdict(verdict)]))
"""

REAL = next(bug for bug in MUTANTS if bug.name == "sync-does-nothing")
MISSED = {
    "a remark changes nothing": (
        REAL._replace(new=f"{REAL.old}  # nothing"),
        "pytest ended with OK",
    ),
    "the test does not exist": (
        REAL._replace(noticed_by="test_nothing"),
        "LookupError",
    ),
    "the case does not exist": (
        REAL._replace(noticed_by="power-cuts log nothing"),
        "pytest ended with USAGE_ERROR",
    ),
    "the bug has no place": (REAL._replace(old="no such piece"), "USAGE_ERROR"),
    "the bug is no Python": (REAL._replace(new=")"), "USAGE_ERROR"),
    "the test stumbles": (REAL._replace(new="1 / 0"), "ZeroDivisionError"),
}


@pytest.mark.parametrize("why", MISSED)
def test_what_no_check_has_noticed_counts_as_missed(why: str) -> None:
    bug, words = MISSED[why]
    (verdict,) = in_a_new_process("-c", PROGRAM, json.dumps(bug))
    assert words in verdict.words, f"{why}, and another thing happened: {verdict.words}"
    assert not verdict.caught, f"{why}, and that counts as caught"


def test_there_are_at_least_a_hundred_bugs_and_the_book_lists_them() -> None:
    assert len(MUTANTS) >= 100
    assert len({bug.name for bug in MUTANTS}) == len(MUTANTS), "two bugs have one name"
    told = json.loads(FIGURES.read_text("utf-8"))["bugs"]
    assert told == [bug.told for bug in MUTANTS], (
        "run python3 tests prove --write, and then the chapter"
    )
