"""Numbers in the prose, and the length of chapters: what nobody counts again by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.book import prose
from tests.book.notebooks import CHAPTERS

NUMBERED = [path for path in CHAPTERS if path.name[0].isdigit()]

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
every_numbered = pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)


@every_chapter
def test_a_number_in_the_prose_occurs_in_a_cell_of_its_section(path: Path) -> None:
    missing = prose.unsupported(path)
    assert not missing, "\n".join(["in no cell of their section:", *missing])


@every_numbered
def test_a_chapter_is_short_enough_for_an_evening(path: Path) -> None:
    assert prose.words_of(path) <= 4500
    assert prose.lines_of(path)[0] <= 500


@every_numbered
def test_a_chapter_says_how_long_it_takes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    (stated,) = re.findall(r"About (\d+) minutes to read", text)
    assert abs(int(stated) - prose.minutes(path)) <= 5, prose.minutes(path)


def section(words: str, *cells: str) -> list[str]:
    """The numbers in some words that no cell bears out."""
    known = prose.borne_out(prose.Section("", cells=list(cells)))
    return [written for written, number in prose.claims(words) if number not in known]


@pytest.mark.parametrize(
    "words",
    [
        "31 flips are found.",
        "The file has 1,688 bytes.",
        "It reaches 2³² at most.",
        "It takes 1.65 bytes.",
        "Twenty-one calls lead to it.",
        "Only `97` is left.",
        "| 12 | 8 |",
    ],
)
def test_a_number_that_no_cell_shows_is_found(words: str) -> None:
    assert section(words)


@pytest.mark.parametrize(
    ("words", "cell"),
    [
        ("31 flips are found.", "[(True, 31)]"),
        ("The file has 1,688 bytes.", "assert size == 1688"),
        ("It reaches 2³² at most.", "limit = 1 << 32"),
        ("It takes 1.65 bytes.", "1.65 for each byte"),
        ("Twenty-one calls lead to it.", "21 calls"),
        ("As [chapter 6](06-the-index.ipynb) and exercise 3.1 say.", ""),
        ("In 2010 it had 12 files {cite}`sheehy2010`.", ""),
        ("Rule C5, in CRC-32 and UTF-8.", ""),
        ("$1 / (1 - 77)$", ""),
        ("## 6. The index", ""),
    ],
)
def test_a_number_that_a_cell_shows_passes(words: str, cell: str) -> None:
    assert section(words, cell) == []
