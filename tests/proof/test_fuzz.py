"""Bytes of any kind, given to everything that parses bytes.

A file of the corpus says in its name what should come of it: one whose name begins with
"whole" is read, and any other is refused, with the error that `REFUSED` or `SPECIAL` says.
A segment is whole if a scan comes to its end.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import (
    BadRecordError,
    CorruptionError,
    ForeignDirectoryError,
    NewerFormatError,
)
from tests.helpers import FIXED
from tests.proof.engines import ENGINES
from tests.proof.hostile import Outcome, Random, Trial
from tests.proof.programme import Tally
from tests.proof.programs import fuzz
from tests.proof.share import Share

SHARE = Share(fuzz)
LOG = ENGINES["log"]
FILES = sorted(
    str(path.relative_to(fuzz.CORPUS / "log"))
    for path in (fuzz.CORPUS / "log").glob("*/*")
)
REFUSED: dict[str, Outcome] = {
    "record": BadRecordError,
    "segment": CorruptionError,
    "manifest": CorruptionError,
    "watermark": None,
}
SPECIAL: dict[str, Outcome] = {
    "segment/header-of-a-newer-format": NewerFormatError,
    "manifest/newer-format": NewerFormatError,
    "manifest/text-of-another-program": ForeignDirectoryError,
}


@pytest.mark.parametrize("case", SHARE.cases)
def test_no_promise_breaks(case: str) -> None:
    SHARE.run(case)


def test_the_book_says_how_many_inputs_that_were() -> None:
    SHARE.agrees_with_the_book()


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_corpus_is_read_or_refused_as_it_should_be(name: str) -> None:
    kind, _, words = name.partition("/")
    right = SPECIAL.get(name, REFUSED[kind])
    expected = "whole" if words.startswith("whole") else right
    found = fuzz.try_file(LOG, name, Tally())
    assert found == expected, (
        f"T8, no guesses: {name} came to {fuzz.in_words(found)}, "
        f"and should come to {fuzz.in_words(expected)}"
    )


@pytest.mark.parametrize("kind", LOG.codecs.CODECS)
def test_hypothesis_finds_no_bytes_that_mislead(kind: str) -> None:
    """Let Hypothesis make the choices: what it finds, it makes as small as it can."""

    @FIXED
    @given(st.randoms(use_true_random=False))
    def give(chance: Random) -> None:
        fuzz.try_bytes(LOG.codecs.CODECS[kind], chance, Trial(f"{kind} by Hypothesis"))

    give()


@FIXED
@given(st.binary(max_size=200))
def test_bytes_that_nobody_wrote_are_refused(raw: bytes) -> None:
    for kind, codec in LOG.codecs.CODECS.items():
        trial = Trial(f"{kind} by Hypothesis", [repr(raw)])
        assert codec.check(raw, trial) != "whole", (
            f"T8, no guesses: {raw!r} is a {kind}"
        )


@pytest.mark.parametrize(
    "case", ["record 1 17", "directory 7 3", "limits closed 40", f"corpus {FILES[0]}"]
)
def test_a_case_that_names_one_input_is_that_one(case: str) -> None:
    counted = fuzz.run(LOG, case)
    assert counted == fuzz.run(LOG, case), f"two runs of {case!r} differ"
    assert sum(counted.counts().values()) == 1
