"""Numbers in the prose, and whether the cells beside them bear them out.

A machine compares what a cell prints with what it printed before. Nobody compares it with the
sentence below that says "31 of the flips". So each number in the words of a section has to occur
in the cells of that section, in their source or in their output. Where it stands in no cell that
a reader sees, a hidden one asserts it.

What a run does not decide is left out: references to other places in the book, sentences that
cite a source (their numbers, and years, are the source's), formulas, and `CONSTANTS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

# Numbers that are part of a name or of the language, and that no cell can decide.
CONSTANTS = (
    r"Unicode \d\.\d",
    r"Python \d\.\d+(?:(?:,| and| to) \d\.\d+)*",
    r"Protocol \d",
    r"\d{1,2}(?:,000)?(?: bytes)? or \d{1,2},\d{3}(?= bytes)",  # a disk's sectors
    r"kill -9",
    r"About \d+ minutes to read",  # counted by another test
)

REFERENCES = re.compile(
    r"\b(?:[Cc]hapters?|[Ee]xercises?|[Ss]ections?|[Rr]ules?|[Ss]teps?|[Rr]ecords?|[Ss]egments?)"
    r" \d+(?:\.\d+)?(?:(?:, | and | or | to )\d+(?:\.\d+)?)*"
)
DROPPED = re.compile(
    r"```.*?```"  # something to type
    r"|\$\$.*?\$\$|\$[^$\n]*\$"  # formulas
    r"|^\([\w-]+\)=$"  # labels
    r"|^:::\{admonition\} Exercise.*?^:::$"  # a task's numbers are its own
    r"|^#+ \d+\.|^\s*\d+\. |<summary>\d+\."  # the numbers of lists and headings
    r"|\]\([^)]*\)"  # where a link leads
    r"|<[^>]*>",
    re.MULTILINE | re.DOTALL,
)
TABLE_OF_SOURCES = re.compile(r"^(?:### Sources|.*class: design)", re.MULTILINE)

NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?![\d\w])"
)
POWER = re.compile(r"\b(\d+)([⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
ANYWHERE = re.compile(r"\d{1,3}(?:[,_]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
WRITTEN_OUT = re.compile(r"(\d+) ?(<<|\*\*) ?(\d+)")

ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"]
TEENS += ["seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = {word: number for number, word in enumerate(TEENS, start=11)}
WORDS |= {word: 10 * number for number, word in enumerate(TENS, start=2)}
WORDS |= {f"{t}-{o}": WORDS[t] + n for t in TENS for n, o in enumerate(ONES, start=1)}
SPELLED = re.compile(
    r"\b(" + "|".join(sorted(WORDS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)


@dataclass
class Section:
    """A heading and what stands under it, up to the next one."""

    title: str
    prose: list[tuple[str, str]] = field(default_factory=list)  # cell id, words
    cells: list[str] = field(default_factory=list)


def sections_of(path: Path) -> list[Section]:
    """The sections of a chapter, split at headings of the first three levels."""
    sections = [Section("the opening")]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "markdown":
            sections[-1].cells += [source, *outputs_of(cell)]
            continue
        for part in re.split(r"^(?=#{1,3} )", source, flags=re.MULTILINE):
            if heading := re.match(r"#{1,3} (.*)", part):
                sections.append(Section(heading[1]))
            sections[-1].prose.append((cell["id"], part))
    return sections


def outputs_of(cell: dict[str, Any]) -> Iterator[str]:
    """What a cell printed, as text; a picture counts with the words that go with it."""
    for output in cell["outputs"]:
        yield "".join(output.get("text", ()))
        yield "\n".join(output.get("traceback", ()))
        for kind in ("text/plain", "text/markdown"):
            yield "".join(output.get("data", {}).get(kind, ()))


def borne_out(section: Section) -> set[Fraction]:
    """Every number in the cells of a section."""
    text = "\n".join(section.cells)
    found = {value(number) for number in ANYWHERE.findall(text)}
    for left, sign, right in WRITTEN_OUT.findall(text):
        if int(right) <= 64:
            base = 2 if sign == "<<" else int(left)
            times = int(left) if sign == "<<" else 1
            found.add(Fraction(times * base ** int(right)))
    return found


def claims(text: str) -> Iterator[tuple[str, Fraction]]:
    """The numbers in some words that a run decides, as they are written and as numbers."""
    if TABLE_OF_SOURCES.search(text):
        text = "\n\n".join(p for p in text.split("\n\n") if "{cite" not in p)
    for sentence in re.split(r"(?<=[.?!])\s|\n\n|\n- ", DROPPED.sub(" ", text)):
        if "{cite" in sentence:
            continue
        words = sentence
        for pattern in (*CONSTANTS, REFERENCES):
            words = re.sub(pattern, " ", words)
        for base, power in POWER.findall(words):
            exponent = int(power.translate(SUPERSCRIPTS))
            yield base + power, Fraction(int(base) ** exponent)
        for written in NUMBER.findall(POWER.sub(" ", words)):
            yield written, value(written)
        for written in SPELLED.findall(words):
            yield written, Fraction(WORDS[written.lower()])


def words_of(path: Path) -> int:
    """How many words of prose a chapter has."""
    text = "\n".join(text for each in sections_of(path) for _, text in each.prose)
    return len(re.sub(r"```.*?```", " ", text, flags=re.DOTALL).split())


def lines_of(path: Path) -> tuple[int, int]:
    """How many lines of listings a reader sees in a chapter, and of other code."""
    listed = typed = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "listing" in tags:
            (output,) = cell["outputs"]
            _, _, source = "".join(output["data"]["text/plain"]).partition("\n\n")
            listed += len(source.splitlines())
        elif cell["cell_type"] == "code" and "remove-input" not in tags:
            typed += len("".join(cell["source"]).splitlines())
    return listed, typed


def minutes(path: Path) -> int:
    """How long a chapter takes to read: 200 words a minute, and 15 lines of code."""
    return round(words_of(path) / 200 + sum(lines_of(path)) / 15)


def value(written: str) -> Fraction:
    """Return the number that some digits stand for."""
    return Fraction(written.replace(",", "").replace("_", ""))


def unsupported(path: Path) -> list[str]:
    """The numbers in a chapter's prose that occur in no cell of their section."""
    return [
        f"{path.name}, cell {cell}, under {section.title!r}: {written}"
        for section in sections_of(path)
        for cell, text in section.prose
        for written, number in claims(text)
        if number not in borne_out(section)
    ]
