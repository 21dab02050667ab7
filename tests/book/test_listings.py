"""Every line of the package is introduced in the book, in one place."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from listing import lines_of, show

from tests.book.notebooks import CHAPTERS, ROOT, Listing, listings_of

MODULES = sorted((ROOT / "kvstore").rglob("*.py"))
LISTINGS = [listing for chapter in CHAPTERS for listing in listings_of(chapter)]


def where(listing: Listing) -> str:
    return f"{listing.chapter}, cell {listing.cell}"


@cache
def lines_in(listing: Listing) -> tuple[Path, set[int]]:
    return lines_of(*listing.names, head=listing.head)


@cache
def introductions() -> dict[Path, dict[int, list[str]]]:
    """For each module and line: the listings that show it for the first time."""
    shown: dict[Path, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for listing in LISTINGS:
        if not listing.again:
            path, numbers = lines_in(listing)
            for number in numbers:
                shown[path.resolve()][number].append(where(listing))
    return shown


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Line numbers as runs: [3, 4, 5, 9] is (3, 5), (9, 9)."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_line_is_introduced_in_exactly_one_place(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = introductions()[path.resolve()]
    filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
    trouble = []
    for first, last in runs([number for number in filled if not shown.get(number)]):
        text = "\n".join(f"    {line}" for line in lines[first - 1 : last])
        trouble.append(f"never shown: lines {first} to {last}\n{text}")
    for number in filled:
        if len(shown.get(number, ())) > 1:
            places = "; ".join(shown[number])
            text = f"    {lines[number - 1]}"
            trouble.append(f"shown more than once: line {number} in {places}\n{text}")
    if trouble:
        pytest.fail(f"{path.name}\n" + "\n".join(trouble), pytrace=False)


def test_a_listing_is_shown_again_only_after_it_was_shown() -> None:
    shown: dict[Path, set[int]] = defaultdict(set)
    for listing in LISTINGS:
        path, numbers = lines_in(listing)
        filled = path.read_text(encoding="utf-8").splitlines()
        numbers = {number for number in numbers if filled[number - 1].strip()}
        if listing.again:
            new = sorted(numbers - shown[path])
            assert not new, f"{where(listing)}: lines {new} of {path.name} are new here"
        shown[path] |= numbers


@pytest.mark.parametrize("listing", LISTINGS, ids=where)
def test_a_listing_shows_the_lines_that_it_names(listing: Listing) -> None:
    path, numbers = lines_in(listing)
    lines = path.read_text(encoding="utf-8").splitlines()
    expected = sorted(lines[number - 1].strip() for number in numbers)
    text = show(*listing.names, head=listing.head).source
    shown = sorted(
        line.strip() for line in text.splitlines() if line.strip() != "# ..."
    )
    assert [line for line in shown if line] == [line for line in expected if line]
