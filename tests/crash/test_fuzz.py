"""Bytes of any kind, given to everything that parses bytes: the default share.

What a parser has to make of each file of the corpus stands in `EXPECTED`, and nowhere
else. A segment is `"whole"` if a scan comes to its end.
"""

from __future__ import annotations

import fuzz
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import FIXED
from share import Share

from kvstore.errors import (
    BadRecordError,
    CorruptionError,
    ForeignDirectoryError,
    NewerFormatError,
)

EXPECTED: dict[str, fuzz.Outcome] = {
    "record/whole-put": "whole",
    "record/whole-delete-in-a-batch": "whole",
    "record/whole-with-nothing-in-it": "whole",
    "record/whole-with-the-largest-sequence": "whole",
    "record/one-byte-too-few": BadRecordError,
    "record/claims-a-gigabyte": BadRecordError,
    "record/claims-one-byte-more": BadRecordError,
    "record/kind-is-zero": BadRecordError,
    "record/sequence-beyond-the-limit": BadRecordError,
    "record/sealed-with-another-seed": BadRecordError,
    "segment/whole-with-three": "whole",
    "segment/whole-but-a-batch-has-no-end": "whole",
    "segment/header-cut": CorruptionError,
    "segment/header-of-segment-two": CorruptionError,
    "segment/header-of-a-newer-format": NewerFormatError,
    "segment/header-with-a-flipped-version": CorruptionError,
    "segment/same-record-twice": CorruptionError,
    "segment/sequence-falls": CorruptionError,
    "segment/torn-in-a-head": CorruptionError,
    "segment/zeros-behind": CorruptionError,
    "segment/record-of-another-file": CorruptionError,
    "segment/record-inside-a-damaged-value": CorruptionError,
    "segment/length-swallows-its-neighbours": CorruptionError,
    "segment/found-a-number-beyond-the-limits": CorruptionError,
    "segment/found-a-likely-head-at-the-end": CorruptionError,
    "segment/found-records-between-damage": CorruptionError,
    "segment/found-damage-without-a-record": CorruptionError,
    "manifest/whole-of-a-new-store": "whole",
    "manifest/whole-with-two-sealed": "whole",
    "manifest/text-of-another-program": ForeignDirectoryError,
    "manifest/newer-format": NewerFormatError,
    "manifest/version-zero": CorruptionError,
    "manifest/counts-four-billion": CorruptionError,
    "manifest/counts-one-less": CorruptionError,
    "manifest/flipped-bit": CorruptionError,
    "manifest/cut-behind-its-head": CorruptionError,
    "mark/whole-in-use": "whole",
    "mark/whole-closed": "whole",
    "mark/closed-is-two": None,
    "mark/flipped-bit": None,
    "mark/newer-format": None,
    "mark/one-byte-more": None,
}

# What the inputs must have come to, each at least once, or they show little.
REACHED: dict[str, list[fuzz.Outcome]] = {
    "record": ["whole", BadRecordError],
    "manifest": ["whole", CorruptionError, ForeignDirectoryError, NewerFormatError],
    "mark": ["whole", None],
    "segment": ["whole", CorruptionError, NewerFormatError],
    "directory": ["whole", CorruptionError, ForeignDirectoryError, NewerFormatError],
    "limits": ["whole", CorruptionError, NewerFormatError],
}

SHARE = Share(fuzz)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_the_corpus_is_read_or_refused_as_it_should_be(name: str) -> None:
    found = fuzz.check_file(name)
    assert found == EXPECTED[name], (
        f"T8, no guesses: {name} came to {fuzz.in_words(found)}, "
        f"and should come to {fuzz.in_words(EXPECTED[name])}"
    )


def test_every_file_of_the_corpus_has_an_expected_outcome() -> None:
    files = [path for path in fuzz.CORPUS.rglob("*") if path.is_file()]
    names = {path.relative_to(fuzz.CORPUS).as_posix() for path in files}
    assert names == EXPECTED.keys(), "the corpus and the list of its outcomes differ"


@pytest.mark.parametrize("case", fuzz.CASES)
def test_any_bytes_are_read_as_what_they_say_or_refused(case: str) -> None:
    SHARE.run(case)
    kind, _ = case.split()
    for outcome in REACHED.get(kind, []):
        words = fuzz.count(kind, outcome)
        assert SHARE.tally[words], f"none of the {words}: the inputs show little"


@pytest.mark.parametrize("kind", fuzz.MAKERS)
def test_hypothesis_finds_no_bytes_that_mislead(kind: str) -> None:
    """Let Hypothesis make the choices: what it finds, it makes as small as it can."""

    @FIXED
    @given(st.randoms(use_true_random=False))
    def give(chance: fuzz.Random) -> None:
        fuzz.try_input(kind, chance, f"{kind} by Hypothesis")

    give()


@FIXED
@given(st.binary(max_size=200))
def test_bytes_that_nobody_wrote_are_refused(raw: bytes) -> None:
    for kind, check in fuzz.CHECKS.items():
        trial = fuzz.Trial(f"{kind} by Hypothesis", [repr(raw)])
        assert check(raw, trial) != "whole", (
            f"T8, no guesses: {raw!r} passes for a {kind}"
        )


def test_the_book_says_how_many_inputs_that_were() -> None:
    SHARE.agrees_with_the_book()


def test_a_case_is_replayed_by_its_line() -> None:
    case = fuzz.another(3)
    assert fuzz.run(case) == fuzz.run(case), f"two runs of {case!r} differ"


def test_a_file_of_the_corpus_is_replayed_by_its_line() -> None:
    assert fuzz.run("corpus record/whole-put") == {"record inputs: whole": 1}
